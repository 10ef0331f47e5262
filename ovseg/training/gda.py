"""Gaussian discriminant analysis: a classifier of features in closed form, from a few examples.

Every class is a Gaussian around its mean, all with one covariance; the logits are then linear in the feature.
The covariance of few samples in many dimensions has no inverse, so a shrunken estimate of the precision is
taken: `max(D, n - 1) ((n - 1) C + tr(C) I)^-1` for n samples of D dimensions with covariance C.

Source: Wang et al., "A Hard-to-Beat Baseline for Training-Free CLIP-Based Adaptation", ICLR 2024
(arXiv 2402.04087), section 3 (the estimate: Kubokawa and Srivastava, 2008); github.com/mrflogs/ICLR24 at
560fe211, the few-shot script.
Deviations: the published factor is D however many samples there are (`as_published=True`), which lets the
precision fall with their number; dense features come by the thousands, and from n > D on the factor is n - 1.
Sums are double precision, and only sums are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ovseg.errors import ConfigError, ShapeError

#: Strengths against the words' logits that are tried; published: 1e-4 to 1e2 in steps of ten.
STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class GaussianClassifier:
    """Logits `weights f + bias` of every class.

    Attributes:
        weights: `(K, D)`.
        bias: `(K,)`.
    """

    weights: Float[Tensor, "K D"]
    bias: Float[Tensor, " K"]

    def logits(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
        """Logarithm of the joint probability of class and feature, up to what all classes share."""
        return features @ self.weights.T + self.bias


class GaussianSums:
    """What has been seen of each class: counts, sums, products.

    Args:
        num_classes: K.
        dim: D.
    """

    def __init__(self, num_classes: int, dim: int) -> None:
        self.count = torch.zeros(num_classes, dtype=torch.float64)
        self.total = torch.zeros(num_classes, dim, dtype=torch.float64)
        self.products = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, features: Float[Tensor, "N D"], classes: Int[Tensor, " N"]) -> GaussianSums:
        """More samples, of the classes given; itself."""
        if features.shape[1] != self.total.shape[1] or len(features) != len(classes):
            raise ShapeError(
                f"expected features (N, {self.total.shape[1]}) with a class each, got "
                f"{tuple(features.shape)} and {len(classes)}"
            )
        values, classes = features.detach().double().cpu(), classes.cpu()
        self.count += classes.bincount(minlength=len(self.count))
        self.total.index_add_(0, classes, values)
        self.products += values.T @ values
        return self

    @property
    def seen(self) -> Int[Tensor, " k"]:
        """The classes that have a sample."""
        return (self.count > 0).nonzero()[:, 0]

    def fit(self, *, as_published: bool = False) -> GaussianClassifier:
        """The classifier of the classes that have a sample, in their order.

        Raises:
            ConfigError: fewer than two samples.
        """
        number, dim = float(self.count.sum()), self.total.shape[1]
        if number < 2:
            raise ConfigError(f"a covariance needs at least two samples, got {number:.0f}")
        counts = self.count[self.seen][:, None]
        means = self.total[self.seen] / counts
        scatter = self.products - (counts * means).T @ means
        covariance = scatter / (number - 1)
        shrunk = scatter + covariance.trace() * torch.eye(dim, dtype=torch.float64)
        factor = dim if as_published else max(dim, number - 1)
        precision = factor * torch.linalg.pinv(shrunk, hermitian=True)
        weights = means @ precision
        prior = -torch.log(torch.tensor(float(len(means)), dtype=torch.float64))
        return GaussianClassifier(weights.float(), (prior - 0.5 * (weights * means).sum(dim=1)).float())


def accuracy(logits: Float[Tensor, "N K"], classes: Int[Tensor, " N"], *, per_class: bool = True) -> float:
    """Share of right answers, averaged over the classes that occur, or over all samples alike."""
    right = (logits.argmax(dim=1) == classes).double()
    if not per_class:
        return float(right.mean())
    number = classes.bincount(minlength=logits.shape[1])
    hits = torch.zeros(logits.shape[1], dtype=torch.float64).index_add_(0, classes, right)
    return float((hits / number.clamp_min(1))[number > 0].mean())


def best_strength(
    words: Float[Tensor, "N K"],
    examples: Float[Tensor, "N K"],
    classes: Int[Tensor, " N"],
    strengths: Sequence[float] = STRENGTHS,
    *,
    per_class: bool = True,
) -> tuple[float, tuple[float, ...]]:
    """The first strength at which `words + strength * examples` is right most often, and all accuracies.

    Args:
        words: logits of the text.
        examples: logits of `GaussianClassifier`, of samples that it has not seen.
        classes: the truth.
        strengths: those to try.
        per_class: see `accuracy`; published: all samples alike, as many of each class.
    """
    found = tuple(accuracy(words + each * examples, classes, per_class=per_class) for each in strengths)
    return strengths[found.index(max(found))], found
