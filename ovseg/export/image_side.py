"""The image side of a method as one graph: pixels and encoded words in, cosines out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ovseg.errors import ConfigError
from ovseg.methods import METHODS
from ovseg.methods.clip_surgery import SurgeryScorer, feature_surgery
from ovseg.scorer import Scorer

#: Methods that do not become a graph, and why.
NOT_EXPORTED = {
    "trident": "SAM sees the image at its full size and is then prompted with the regions that the words "
    "have found: how often it runs depends on the picture",
    "corrclip": "its regions come from SAM's mask generator or from files, and how many there are depends on "
    "the picture",
}


def check_exportable(method: str) -> None:
    """Raises ConfigError, with the reason, for a method that does not become a graph."""
    if method in NOT_EXPORTED:
        others = ", ".join(name for name in METHODS if name not in NOT_EXPORTED)
        raise ConfigError(f"'{method}' cannot be exported: {NOT_EXPORTED[method]}. These can: {others}")


class ImageSide(nn.Module):
    """What a scorer does with the pixels of a window, and its comparison with words.

    Windows, resizing, upsampling, softmax and refinement are not part of the graph.

    Args:
        scorer: of a method, with all its networks.

    Raises:
        ConfigError: the scorer does something that has no place in a graph for one window of any size.
    """

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        if scorer.positions.as_published or getattr(scorer.correlation, "as_published", False):
            raise ConfigError(
                "as_published=True cannot be exported: it makes results depend on the batch or on the number "
                "of patches; leave it out"
            )
        self.surgery = isinstance(scorer, SurgeryScorer)
        if self.surgery and scorer.windows.crop is not None:
            raise ConfigError(
                "feature surgery weighs words by the class token of the whole image, and windows would each "
                "have their own: export this method with crop=None (--opts crop=None)"
            )
        if self.surgery and scorer.encoder.tower.num_prefix == 0:
            raise ConfigError("feature surgery needs a class token, and this tower has none: use a CLIP ViT")
        self.scorer = scorer

    @property
    def output_names(self) -> tuple[str, ...]:
        """What `forward` returns, in order."""
        return ("cosine", "features", "objectness") if self.has_objectness else ("cosine", "features")

    @property
    def has_objectness(self) -> bool:
        """Whether the method says where anything is at all (CLIP-DINOiser)."""
        return hasattr(self.scorer, "relations")

    def forward(self, image: Float[Tensor, "B 3 H W"], text: Float[Tensor, "Q D"]) -> tuple[Tensor, ...]:
        """Cosines `(B, Q, h, w)`, unit features `(B, D, h, w)`, where there is any objectness `(B, 1, h, w)`.

        Args:
            image: RGB in [0, 1]; what fills no patch at right and bottom is left out.
            text: encoded words, unit rows.
        """
        found = self.scorer.features(image)
        features = F.normalize(found.grid.float(), dim=1)
        if self.surgery:
            token = F.normalize(found.prefix[:, 0].float(), dim=-1)
            scores = feature_surgery(features.flatten(2).mT, token, text)
            cosine = scores.mT.unflatten(-1, features.shape[-2:])
        else:
            cosine = torch.einsum("bdhw,qd->bqhw", features, text)
        outputs = (cosine, features)
        return outputs if found.objectness is None else (*outputs, found.objectness.float())
