"""Saying no: how sure it is that an image, or a pixel, shows any of the classes at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ovseg.errors import ConfigError, ShapeError
from ovseg.resampling import tile_elements
from ovseg.results import void_label
from ovseg.score_map import ScoreMap
from ovseg.structures import DenseFeatures, TextBank

#: Scores of being known, by name; see `Evidence.score`.
Rule = Literal["msp", "maxlogit", "energy", "mcm", "ctw", "atd"]
NEEDS_NO = ("ctw", "atd")
NO_TOWER = "{rule} needs a 'no' text tower (--no-tower FILE, CLIPN's weights); without one take mcm or energy"
#: Logits of ctw and atd are this times the cosine, whatever the method's own logit scale.
CLIPN_SCALE = 100.0


class Evidence:
    """Sums over classes that all scores are made of; the classes may come a few at a time.

    Sums are relative to the best class, so that scores near 1 stay apart as far as float32 can.
    """

    best: Tensor | None = None
    total: Tensor
    margin: Tensor | None = None
    most: Tensor
    sure: Tensor

    def add(self, yes: Float[Tensor, "k *space"], no: Float[Tensor, "k *space"] | None = None) -> Evidence:
        """More classes: logits of "it is this", and those of "it is not this" where a tower gives them."""
        best, at = yes.max(dim=0)
        peak = best if self.best is None else torch.maximum(self.best, best)
        weights = (yes - peak).exp()
        total = weights.sum(dim=0)
        if no is not None:
            joint = weights * (yes - no).sigmoid()
            margin, most, sure = (yes - no).gather(0, at[None])[0], joint.amax(dim=0), joint.sum(dim=0)
        if self.best is not None:
            faded = (self.best - peak).exp()
            total = total + self.total * faded
            if no is not None and self.margin is not None:
                margin = torch.where(best > self.best, margin, self.margin)
                most, sure = torch.maximum(most, self.most * faded), sure + self.sure * faded
        self.best, self.total = peak, total
        if no is not None:
            self.margin, self.most, self.sure = margin, most, sure
        return self

    def score(self, rule: Rule) -> Float[Tensor, "*space"]:
        """How known it is; higher is more.

        With `y` the logits and `n` those of "no", `p = softmax(y)` and `u_k = sigmoid(y_k - n_k)`:
        msp and mcm `max p` (they differ in the temperature of `y`), maxlogit `max y`, energy
        `log sum exp y`, ctw `u` of the best class, atd `sum_k u_k p_k`.

        Source: Hendrycks and Gimpel, ICLR 2017 (msp); Hendrycks et al., ICML 2022 (maxlogit); Liu et al.,
        NeurIPS 2020 (energy); Ming et al., NeurIPS 2022 (mcm); Wang et al., "CLIPN", ICCV 2023 (ctw, atd;
        xmed-lab/CLIPN at e465074b5f).

        Raises:
            ConfigError: ctw or atd without "no" logits.
        """
        assert self.best is not None, "classes were added"
        if rule == "maxlogit":
            return self.best
        if rule == "energy":
            return self.best + self.total.log()
        if rule in NEEDS_NO:
            if self.margin is None:
                raise ConfigError(NO_TOWER.format(rule=rule))
            return self.margin.sigmoid() if rule == "ctw" else self.sure / self.total
        return 1 / self.total

    def accepted(self, rule: Rule, threshold: float | None) -> Bool[Tensor, "*space"]:
        """Whether it is one of the classes. atd without a threshold lets "none" compete as another class, of
        probability `1 - atd`, as published.
        """
        score = self.score(rule)
        if threshold is None and rule == "atd":
            return self.most / self.total >= 1 - score
        return score >= (0.5 if threshold is None else threshold)


class Rejection(nn.Module):
    """Says "none of these", of images and of pixels.

    As a step of `Scorer.refine` it makes pixels void that any head has given to a class and that are not
    known well enough; what is background stays background.

    Args:
        rule: a name of `Rule`. ctw and atd need words of a "no" text tower, `TextBank.no`.
        threshold: least score that is known. May be None for ctw (0.5, published) and atd ("none" competes as
            a class); for the others `threshold_keeping` finds one.
        temperature: mcm only, divides the cosine (1 as published).
    """

    def __init__(
        self, rule: Rule = "mcm", *, threshold: float | None = None, temperature: float = 1.0
    ) -> None:
        super().__init__()
        if rule not in get_args(Rule):
            raise ConfigError(f"rule must be one of {', '.join(get_args(Rule))}, got '{rule}'")
        if threshold is None and rule not in NEEDS_NO:
            raise ConfigError(
                f"{rule} has no threshold of its own: give one, such as threshold_keeping(scores of images "
                f"that show one of the classes)"
            )
        if threshold is not None and not math.isfinite(threshold):
            raise ConfigError(f"threshold must be a finite number, got {threshold}")
        if not temperature > 0:
            raise ConfigError(f"temperature must be above 0, got {temperature}")
        self.rule: Rule = rule
        self.threshold = threshold
        self.temperature = temperature

    def image_evidence(self, features: DenseFeatures, bank: TextBank, logit_scale: float) -> Evidence:
        """Of whole images, by their class token.

        Args:
            features: of a batch, with `image`.
            bank: the words; each query counts as a class.
            logit_scale: logits are this times the cosine (mcm, ctw and atd take their own).

        Raises:
            ConfigError: the tower has no class token, or the rule needs "no" words.
        """
        if features.image is None:
            raise ConfigError("the image tower gives no class token: reject pixels instead")
        image = features.image.float()
        bank = bank.to(image.device, torch.float32)
        if self.rule not in NEEDS_NO:
            return Evidence().add(self._scale(logit_scale) * bank.embeddings @ image.T)
        yes, no = CLIPN_SCALE * bank.embeddings @ image.T, CLIPN_SCALE * self._no_words(bank) @ image.T
        return Evidence().add(yes, no)

    def pixel_evidence(
        self,
        score_map: ScoreMap,
        index: int = 0,
        size_hw: tuple[int, int] | None = None,
        no: ScoreMap | None = None,
    ) -> Evidence:
        """Of every pixel of one image, a few classes at a time.

        Args:
            score_map: of a batch.
            index: which image.
            size_hw: size of the picture, by default where the map leads.
            no: the "no" tower's score map of the same images and queries.

        Raises:
            ConfigError: the rule needs "no" logits.
            ShapeError: the two maps are not of the same grid and queries.
        """
        self._check_no(no is not None)
        if no is not None and no.cosine.shape != score_map.cosine.shape:
            raise ShapeError(
                f"yes logits are {tuple(score_map.cosine.shape)}, no logits {tuple(no.cosine.shape)} "
                f"(B, Q, h, w): score the same images with the same words"
            )
        evidence = Evidence()
        for yes_part, no_part in self._pictures(score_map, index, size_hw or score_map.image_hw, no):
            evidence.add(yes_part, no_part)
        return evidence

    def pixel_scores(
        self,
        score_map: ScoreMap,
        index: int = 0,
        size_hw: tuple[int, int] | None = None,
        no: ScoreMap | None = None,
    ) -> Float[Tensor, "H W"]:
        """How known each pixel is. See `pixel_evidence`."""
        return self.pixel_evidence(score_map, index, size_hw, no).score(self.rule)

    def forward(self, score_map: ScoreMap, features: DenseFeatures | None = None) -> ScoreMap:
        """The score map with one more revision: pixels of nothing known become void.

        ctw and atd compare the features themselves with both towers' words, because no method says how its
        own changes of scores would change those of "no".

        Args:
            score_map: of a batch.
            features: that it was made of; ctw and atd need them.

        Raises:
            ConfigError: the rule needs "no" words, or features.
        """
        if self.rule not in NEEDS_NO:
            return score_map.revised([self._void] * len(score_map))
        if features is None:
            raise ConfigError(f"{self.rule} compares features with words, and got none")
        words = score_map.bank.to(features.grid.device, torch.float32)
        yes, no = (
            replace(score_map, cosine=features.cosine(rows), temperature=CLIPN_SCALE)
            for rows in (words.embeddings, self._no_words(words))
        )
        pairs = ((yes.select(index), no.select(index)) for index in range(len(score_map)))
        return score_map.revised([partial(self._void, pair=pair) for pair in pairs])

    def _void(
        self,
        score_map: ScoreMap,
        labels: Tensor,
        confidence: Tensor,
        *,
        pair: tuple[ScoreMap, ScoreMap] | None = None,
    ) -> tuple[Tensor, Tensor]:
        yes, no = pair or (score_map, None)
        size_hw = (labels.shape[0], labels.shape[1])
        known = self.pixel_evidence(yes, 0, size_hw, no).accepted(self.rule, self.threshold)
        for background in score_map.bank.background:
            known = known | (labels == background)
        return labels.masked_fill(~known, void_label(len(score_map.bank.names))), confidence

    def _pictures(
        self, score_map: ScoreMap, index: int, size_hw: tuple[int, int], no: ScoreMap | None
    ) -> Iterator[tuple[Float[Tensor, "k H W"], Float[Tensor, "k H W"] | None]]:
        bank = score_map.bank
        compete = score_map.softmax_over == "class" and not bank.one_query_per_class
        at_once = max(4 * tile_elements(score_map.cosine.device) // (size_hw[0] * size_hw[1]), 1)
        queries = torch.arange(len(bank.class_of_query), device=score_map.cosine.device)
        for part in bank.queries_of_class if compete else queries.split(at_once):
            yes = self._logits(score_map, index, part, size_hw)
            other = None if no is None else self._logits(no, index, part, size_hw)
            if compete:  # the best query speaks for its class
                best, at = yes.max(dim=0, keepdim=True)
                yes, other = best, None if other is None else other.gather(0, at)
            yield yes, other

    def _logits(
        self, score_map: ScoreMap, index: int, queries: Tensor, size_hw: tuple[int, int]
    ) -> Float[Tensor, "k H W"]:
        cosine = score_map.cosine[index, queries].float() * self._scale(score_map.temperature)
        return score_map.pictures(index, cosine, size_hw)

    def _scale(self, logit_scale: float) -> float:
        return 1 / self.temperature if self.rule == "mcm" else logit_scale

    def _no_words(self, bank: TextBank) -> Float[Tensor, "Q D"]:
        if bank.no is None:
            raise ConfigError(NO_TOWER.format(rule=self.rule))
        return bank.no

    def _check_no(self, given: bool) -> None:
        if self.rule in NEEDS_NO and not given:
            raise ConfigError(NO_TOWER.format(rule=self.rule))


def threshold_keeping(known: Float[np.ndarray, " N"], share: float = 0.95) -> float:
    """The threshold that keeps at least a share of what is known.

    Args:
        known: scores of images or pixels that show one of the classes.
        share: how many of them to keep.

    Raises:
        ConfigError: no scores, or no share.
    """
    if not len(known) or not 0 <= share <= 1:
        raise ConfigError(f"a threshold needs scores and a share in [0, 1], got {len(known)} and {share}")
    return float(np.quantile(known, 1 - share, method="lower"))
