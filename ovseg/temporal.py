"""Score maps of a video, averaged over time: labels that do not flicker."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ovseg.errors import ConfigError
from ovseg.score_map import ScoreMap
from ovseg.structures import DenseFeatures


class TemporalAverage(nn.Module):
    """An exponential average of the score map over the frames of one video: a step of `Scorer.refine`.

    `average = decay * average + (1 - decay) * frame`, on the cosines and before everything that looks at the
    frame's own pixels. Frames come in order, one or several at a time, which makes no difference. After a
    change of size it begins anew.

    Args:
        decay: 0 is each frame alone; 0.9 looks back about ten frames.

    Raises:
        ConfigError: a decay that is not in [0, 1).
    """

    def __init__(self, decay: float = 0.6) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ConfigError(f"the decay of a temporal average is {decay:g}: expected 0 up to below 1")
        self.decay = decay
        self._averages: dict[tuple[str, ...], Float[Tensor, "1 Q h w"]] = {}
        self._latest: dict[tuple[str, ...], tuple[DenseFeatures, Float[Tensor, "B Q h w"]]] = {}

    def reset(self) -> None:
        """Forgets: before another video, or after a cut."""
        self._averages.clear()
        self._latest.clear()

    def forward(self, score_map: ScoreMap, features: DenseFeatures) -> ScoreMap:
        """The map averaged with those before; frames that are asked again count once."""
        words = score_map.bank.names
        latest = self._latest.get(words)
        if latest is not None and latest[0] is features:
            return replace(score_map, cosine=latest[1])
        average = self._averages.get(words)
        frames = []
        for frame in score_map.cosine.float().split(1):
            if average is None or average.shape != frame.shape:
                average = frame
            else:
                average = self.decay * average + (1 - self.decay) * frame
            frames.append(average)
        if average is not None:
            self._averages[words] = average
        smooth = torch.cat(frames)
        self._latest[words] = features, smooth
        return replace(score_map, cosine=smooth)
