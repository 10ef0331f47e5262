"""From examples to visual prototypes: Gaussian discriminant analysis of their patches' features."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ovseg.errors import ConfigError
from ovseg.prototypes import VisualPrototypes, evidence
from ovseg.scorer import Scorer
from ovseg.structures import DenseFeatures, TextBank
from ovseg.training.gda import STRENGTHS, GaussianSums, accuracy

#: Groups of images that take turns in being left out while the strength is chosen.
FOLDS = 5
#: Where there is nothing to choose it by, because every class has a single image.
DEFAULT_STRENGTH = 0.3


@dataclass(frozen=True)
class Cells:
    """Patches of one image of which the class is known: unit features `(N, D)`, classes and word logits."""

    features: Float[Tensor, "N D"]
    classes: Int[Tensor, " N"]
    words: Float[Tensor, "N K"]


def shares(
    features: DenseFeatures, labels: Int[np.ndarray, "H W"]
) -> tuple[Int[np.ndarray, " k"], Float[Tensor, "k h w"]]:
    """Which part of what each cell stands for belongs to each class that occurs.

    A cell stands for the pixels that it is resampled to, with their weights: the transposed resampling.
    """
    resampling = features.resampling
    present = np.unique(labels[labels >= 0])
    masks = torch.from_numpy(labels[None] == present[:, None, None]).to(resampling.rows)
    weight = resampling.rows.sum(dim=0)[:, None] * resampling.cols.sum(dim=0)
    return present, resampling.rows.T @ masks @ resampling.cols / weight.clamp_min(1e-6)


def cells_of(
    scorer: Scorer,
    bank: TextBank,
    image: UInt8[np.ndarray, "H W 3"],
    labels: Int[np.ndarray, "H W"],
    *,
    least_share: float = 0.8,
    most_cells: int = 100,
) -> Cells:
    """The patches of an image that lie in one class.

    Args:
        scorer: the method.
        bank: the words.
        image: RGB.
        labels: the class of each pixel, negative where not known.
        least_share: of a patch that its class must have; where no patch of a class has so much, the fullest
            one is taken if it has half of that.
        most_cells: per class and image, evenly from all over it.
    """
    encoded = scorer.encode(scorer.prepare([image]), (image.shape[0], image.shape[1]))
    logits = scorer.score(encoded, bank)
    by_class = torch.stack([logits.per_class(each) for each in logits.logits])[0]
    present, share = shares(encoded, labels)
    chosen, classes = [], []
    for index, part in zip(present.tolist(), share.flatten(1), strict=True):
        least = least_share if part.max() >= least_share else max(float(part.max()), least_share / 2)
        inside = (part >= least).nonzero()[:, 0]
        if len(inside) > most_cells:
            inside = inside[torch.linspace(0, len(inside) - 1, most_cells).round().long()]
        chosen.append(inside)
        classes.append(torch.full((len(inside),), index))
    places = torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.long)
    kinds = torch.cat(classes) if classes else torch.zeros(0, dtype=torch.long)
    rows = [each.flatten(1).T.cpu()[places] for each in (encoded.grid[0], by_class)]
    return Cells(rows[0], kinds, rows[1])


def fit_prototypes(
    cells: Iterable[Cells],
    bank: TextBank,
    *,
    strength: float | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> VisualPrototypes:
    """Prototypes from the patches of all examples.

    Args:
        cells: of one image each.
        bank: the words.
        strength: against the words; None chooses it: images are left out in turn, and the strength is taken
            at which their patches are told apart best.
        note: told what was chosen and why.

    Raises:
        ConfigError: no patch at all.
    """
    images = [each for each in cells if len(each.classes)]
    if not images:
        raise ConfigError(
            "no patch of any example lies inside a labelled part: give larger examples, or a lower share"
        )
    everything = GaussianSums(len(bank.names), images[0].features.shape[1])
    for each in images:
        everything.add(each.features, each.classes)
    facts: dict[str, Any] = {
        "images": len(images),
        "patches": {bank.names[k]: int(everything.count[k]) for k in everything.seen.tolist()},
    }
    if strength is None:
        strength, accuracies = _choose(images, everything)
        if accuracies:
            facts["left_out_accuracy"] = {"words": accuracies[0], "with_examples": max(accuracies[1:])}
            note(
                f"strength {strength:g}: patches of images left out are told apart in "
                f"{100 * max(accuracies[1:]):.1f} % of cases (mean over classes), by words alone in "
                f"{100 * accuracies[0]:.1f} %"
            )
        else:
            note(f"strength {strength:g}: too few images to leave some out and compare")
    taught = everything.fit()
    names = tuple(bank.names[k] for k in everything.seen.tolist())
    return VisualPrototypes(names, taught.weights, taught.bias, strength, facts=facts)


def _choose(images: list[Cells], everything: GaussianSums) -> tuple[float, tuple[float, ...]]:
    """The best strength on images left out, and the accuracies of words alone and of each strength.

    Where some classes of the vocabulary have no examples, as large a share of the others does without in each
    turn: a strength that lets examples win against all that has only words is found out.
    """
    seen, names = everything.seen, len(everything.count)
    hidden = min(-(-len(seen) * (names - len(seen)) // names), len(seen) - 1)
    words, examples, classes = [], [], []
    folds = min(FOLDS, len(images))
    for fold in range(folds):  # images come class by class, so neighbours go to different folds
        by_words = seen.roll(-fold * max(hidden, 1))[:hidden]
        rest = GaussianSums(*everything.total.shape)
        for index, each in enumerate(images):
            kept = ~torch.isin(each.classes, by_words)
            if index % folds != fold and kept.any():
                rest.add(each.features[kept], each.classes[kept])
        mine = images[fold::folds]
        taught = torch.cat([torch.isin(each.classes, rest.seen) for each in mine])
        if not taught.any() or float(rest.count.sum()) < 2:
            continue  # nothing here that examples could get right
        known = taught | torch.cat([torch.isin(each.classes, by_words) for each in mine])
        found = rest.fit().logits(torch.cat([each.features for each in mine])[known])
        added = torch.zeros(len(STRENGTHS), len(found), names)
        for row, strength in zip(added, STRENGTHS, strict=True):
            row[:, rest.seen] = evidence(found, strength)
        examples.append(added)
        words.append(torch.cat([each.words for each in mine])[known])
        classes.append(torch.cat([each.classes for each in mine])[known])
    if not classes:
        return DEFAULT_STRENGTH, ()
    truth, by_word = torch.cat(classes), torch.cat(words)
    accuracies = [accuracy(by_word + each, truth) for each in torch.cat(examples, dim=1)]
    best = STRENGTHS[accuracies.index(max(accuracies))]
    return best, (accuracy(by_word, truth), *accuracies)
