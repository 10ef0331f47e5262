"""Training of CLIP-DINOiser's two convolutions: no labels, only what DINO and FOUND say of unlabelled images.

Two independent losses, both binary cross-entropies, added one to one:

1. of all pairs of patches: the learned cosine, cut at 0 and read as a *logit*, against "DINO's values have a
   cosine of at least `threshold`";
2. of all patches: the objectness logit against "FOUND says object".

Source: Wysoczanska et al., arXiv 2312.12359, section 3.4; `train.py` of github.com/wysoczanska/clip_dinoiser
at a954aae6. There: 1,000 images of ImageNet, crops of 448 px, batches of 16, 6,300 steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import MultiStepLR

from ovseg.correlation.pooling import cosine_correlation
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.dino import DinoEncoder
from ovseg.encoders.found import FoundEncoder
from ovseg.encoders.positions import PositionRule
from ovseg.methods.clip_dinoiser import DinoiserConvolutions, inner_features
from ovseg.methods.clip_dinoiser_teacher import objectness_on
from ovseg.windows import whole_patches

POSITIONS = PositionRule("size")


@dataclass(frozen=True)
class Lesson:
    """What the frozen networks make of some images: the convolutions' input, and their targets.

    Attributes:
        inner: normalised FFN inputs of the tapped block.
        alike: which pairs of patches belong together.
        objects: which patches are of an object.
    """

    inner: Float[Tensor, "B C h w"]
    alike: Bool[Tensor, "B N N"]
    objects: Bool[Tensor, "B 1 h w"]


def lesson_of(
    inner: Float[Tensor, "B C h w"],
    guide: Float[Tensor, "B D y x"],
    objectness: Float[Tensor, "B 1 Y X"],
    *,
    threshold: float,
) -> Lesson:
    """Targets on the tower's grid, from what the helpers gave on theirs.

    Args:
        inner: the convolutions' input.
        guide: features that are correlated, resized if their grid is another.
        objectness: logits.
        threshold: least cosine of patches that belong together (gamma in the paper), above 0.
    """
    hw = (inner.shape[-2], inner.shape[-1])
    if guide.shape[-2:] != hw:
        guide = F.interpolate(guide.float(), size=hw, mode="bilinear", align_corners=False)
    return Lesson(inner, cosine_correlation(guide) >= threshold, objectness_on(objectness, hw) > 0)


@torch.no_grad()
def prepare_lesson(
    image: Float[Tensor, "B 3 H W"],
    encoder: ClipEncoder,
    guide: DinoEncoder,
    saliency: FoundEncoder,
    *,
    tap: int = -3,
    threshold: float = 0.2,
    positions: PositionRule = POSITIONS,
) -> Lesson:
    """Asks the frozen networks.

    Args:
        image: RGB in [0, 1]; sides multiples of the tower's patch.
        encoder: the CLIP whose convolutions are trained.
        guide: its features are correlated: `guide.with_kind("v")` for the published recipe.
        saliency: says where any object is.
        tap: the block whose normalised FFN input feeds the convolutions.
        threshold: see `lesson_of`.
        positions: how the tower's position embeddings are resampled.
    """
    inner = inner_features(encoder.open(image, positions=positions, ffn_taps=[tap]), tap)
    grid = guide(whole_patches(image, guide.patch_hw)).grid
    return lesson_of(inner, grid, saliency(image), threshold=threshold)


def dinoiser_losses(
    convolutions: DinoiserConvolutions, lesson: Lesson
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The loss of the correlations and that of the objectness, to be added."""
    correlation, objectness = convolutions(lesson.inner)
    pairs = F.binary_cross_entropy_with_logits(correlation.relu(), lesson.alike.to(correlation.dtype))
    patches = F.binary_cross_entropy_with_logits(objectness, lesson.objects.to(objectness.dtype))
    return pairs, patches


def dinoiser_optimizer(convolutions: DinoiserConvolutions) -> tuple[AdamW, MultiStepLR]:
    """The published optimiser and schedule: 5e-5 and 1e-2, a tenth after 5,000 steps."""
    groups = [
        {"params": list(convolutions.obj_proj.parameters()), "lr": 5e-5},
        {"params": list(convolutions.bkg_decoder.parameters()), "lr": 1e-2},
    ]
    optimizer = AdamW(groups)
    return optimizer, MultiStepLR(optimizer, milestones=[5000], gamma=0.1)
