"""Text semantic enrichment (TSE): class names take on attributes that descriptions of all classes share.

Descriptions of every class, written by a language model or by hand, are encoded and clustered; the centres
are a bank of attributes. A class's text moves towards those that it resembles.

Source: Yang et al., arXiv 2503.20826 (ExCEL), section 3.2; github.com/zwyang6/ExCEL at 2cd7f510.
Deviations: k-means is OpenCV's and not scikit-learn's, so centres differ by the random start. Small banks
lose no attribute where the code, dropping "the last 0", loses all and gives NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from jaxtyping import Float
from torch import Tensor

from ovseg.errors import ConfigError, ShapeError, VocabularyError
from ovseg.structures import TextBank
from ovseg.text.encoder import OnLong, TextEncoder
from ovseg.text.templates import fill

#: Of class names, with and without a description behind it.
TEMPLATE = "a clean origami {}."


def read_descriptions(path: Path | str) -> dict[str, list[str]]:
    """A YAML or JSON file that gives every class some sentences.

    Raises:
        VocabularyError: it cannot be read, or is no mapping of classes to lists of sentences.
    """
    path = Path(path).expanduser()
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML, too
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise VocabularyError(f"{path}: not a readable YAML or JSON file ({error})") from None
    if not isinstance(found, dict) or not found:
        raise VocabularyError(f"{path}: expected a mapping of class to a list of sentences")
    for name, sentences in found.items():
        fine = isinstance(sentences, list) and all(isinstance(s, str) and s.strip() for s in sentences)
        if not isinstance(name, str) or not fine or not sentences:
            raise VocabularyError(f"{path}: class '{name}' needs a list of sentences, got {sentences!r}")
    return found


def describe(descriptions: Mapping[str, Sequence[str]], template: str = TEMPLATE) -> list[str]:
    """Every description behind its class's name, lower case, as they are encoded."""
    return [
        f"{fill(template, name)} {sentence}".lower()
        for name, sentences in descriptions.items()
        for sentence in sentences
    ]


def attribute_bank(
    embeddings: Float[Tensor, "N D"], clusters: int = 112, *, seed: int = 0
) -> Float[Tensor, "K D"]:
    """The centres of k-means over descriptions, not brought to unit length, as published.

    Args:
        embeddings: of descriptions, unit length.
        clusters: K (112 for VOC, 224 for COCO); as many as there are descriptions, where those are fewer.
        seed: of the random start.

    Raises:
        ConfigError: there is nothing to cluster, or it shall become nothing.
    """
    if clusters < 1 or not len(embeddings):
        raise ConfigError(f"cannot make {clusters} clusters of {len(embeddings)} descriptions")
    cv2.setRNGSeed(seed)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 300, 1e-4)
    points = embeddings.detach().float().cpu().numpy()
    count = min(clusters, len(points))
    nearest = np.zeros((len(points), 1), np.int32)  # written to, not read
    _, _, centres = cv2.kmeans(points, count, nearest, stop, 5, cv2.KMEANS_PP_CENTERS)
    return torch.from_numpy(np.asarray(centres)).to(embeddings.device)


def encode_attributes(
    encoder: TextEncoder,
    descriptions: Mapping[str, Sequence[str]],
    clusters: int = 112,
    *,
    on_long: OnLong = "truncate",
    seed: int = 0,
) -> Float[Tensor, "K D"]:
    """Descriptions to a bank of attributes.

    Args:
        encoder: the text side of the model.
        descriptions: sentences by class; see `read_descriptions`.
        clusters: see `attribute_bank`.
        on_long: see `TextEncoder.bank`.
        seed: see `attribute_bank`.
    """
    return attribute_bank(encoder.encode(describe(descriptions), on_long=on_long), clusters, seed=seed)


def enrich(
    text: Float[Tensor, "Q D"], attributes: Float[Tensor, "K D"], *, drop: float = 0.1
) -> Float[Tensor, "Q D"]:
    """`normalise(t + softmax(t . a) a)` without each text's least fitting attributes; no temperature.

    Args:
        text: unit length.
        attributes: see `attribute_bank`.
        drop: share of the attributes that is left out, rounded down.

    Raises:
        ConfigError: nothing would be left.
    """
    if not 0 <= drop < 1:
        raise ConfigError(f"drop is a share in [0, 1), got {drop}")
    fit = text @ attributes.T
    least = fit.topk(int(drop * len(attributes)), largest=False).indices
    return F.normalize(text + fit.scatter(1, least, -torch.inf).softmax(dim=-1) @ attributes, dim=-1)


def enrich_bank(bank: TextBank, attributes: Float[Tensor, "K D"], *, drop: float = 0.1) -> TextBank:
    """The bank with every text enriched, except those of background classes. See `enrich`.

    Raises:
        ShapeError: text and attributes are not of the same model.
    """
    if bank.embeddings.shape[1] != attributes.shape[1]:
        raise ShapeError(
            f"text has {bank.embeddings.shape[1]} dimensions and attributes {attributes.shape[1]}: "
            f"encode both with the text tower of the same model"
        )
    enriched = enrich(bank.embeddings, attributes.to(bank.embeddings), drop=drop)
    foreground = torch.tensor([k not in bank.background for k in bank.class_of_query.tolist()])
    chosen = foreground.to(bank.embeddings.device)[:, None]
    return replace(bank, embeddings=torch.where(chosen, enriched, bank.embeddings))
