"""Training of FOUND's decoder: no labels, only images, their keys, and the masks that it makes itself.

The loss has three parts, each a binary cross-entropy of the logits, averaged over patches:

1. always: against the decoder's own mask, drawn to the picture's colours by the bilateral solver;
2. at first: against the background seed, turned over and drawn to the colours too;
3. after that: against the decoder's own mask as it is, which makes it surer of itself.

Source: Simeoni et al., arXiv 2212.07834, section 3.3; github.com/valeoai/FOUND at 1ad22bac.
Deviations: a mask that covers more than half of the picture is kept after the solver; the code drops the
largest connected part, which is then the object. `as_published=True` does as the code does.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import StepLR

from ovseg.encoders.found import FoundEncoder, keys_of
from ovseg.structures import OpenBlock
from ovseg.training.bilateral import colour_mask

#: Steps that the background seed is used for, of 500 with batches of 50 crops of 224 px.
SEED_STEPS = 100
REFINED_WEIGHT, SEED_WEIGHT, SELF_WEIGHT = 1.5, 1.0, 4.0


def coloured_targets(
    masks: Bool[Tensor, "B h w"], image: Float[Tensor, "B 3 H W"], *, as_published: bool = False
) -> Bool[Tensor, "B h w"]:
    """Masks drawn to their pictures' colours, where the solver's answer still overlaps; else as they came.

    A patch counts as object where any of the pixels around its centre does.

    Args:
        masks: one per image, on a grid.
        image: RGB in [0, 1].
        as_published: see the module.
    """
    pixels = (image.detach().permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()
    targets = masks.clone()
    for index, picture in enumerate(pixels):
        coarse = masks[index].cpu().numpy().astype(np.float32)
        solved, trusted = colour_mask(coarse, picture, as_published=as_published)
        if trusted:
            full = torch.from_numpy(solved)[None, None].float()
            targets[index] = F.interpolate(full, masks.shape[-2:], mode="bilinear")[0, 0] > 0
    return targets


def found_loss(
    found: FoundEncoder,
    block: OpenBlock,
    image: Float[Tensor, "B 3 H W"],
    seed: Bool[Tensor, "B h w"] | None,
    *,
    as_published: bool = False,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The loss of a batch, and its terms.

    Args:
        found: its decoder is trained.
        block: `found.open(image)`.
        image: RGB in [0, 1], sides multiples of the patch.
        seed: background, `background_seed(block)` in the first `SEED_STEPS` steps; None after them.
        as_published: see the module.
    """
    logits = found.decode(block)[:, 0]

    def cross_entropy(target: Bool[Tensor, "B h w"]) -> Float[Tensor, ""]:
        return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))

    own = logits.detach() > 0
    terms = {"refined": cross_entropy(coloured_targets(own, image, as_published=as_published))}
    loss = REFINED_WEIGHT * terms["refined"]
    if seed is not None:
        terms["seed"] = cross_entropy(coloured_targets(~seed, image, as_published=as_published))
        loss = loss + SEED_WEIGHT * terms["seed"]
    else:
        terms["self"] = cross_entropy(own)
        loss = loss + SELF_WEIGHT * terms["self"]
    return loss, {name: value.item() for name, value in terms.items()}


def border_seed(
    block: OpenBlock, *, least_cosine: float = 0.3, least_share: float = 0.15
) -> Bool[Tensor, "B h w"]:
    """Patches that resemble the picture's border: a background to begin with that asks no class token.

    Not FOUND's: a stand-in for `background_seed` where the class token knows nothing (the bundled guide).

    Args:
        block: the last block of the ViT.
        least_cosine: of keys that resemble each other.
        least_share: of the border that a background patch resembles.
    """
    unit = F.normalize(keys_of(block).float().flatten(2), dim=1)
    inside = torch.zeros(block.hw, dtype=torch.bool, device=unit.device)
    inside[1:-1, 1:-1] = True
    alike = unit.mT @ unit[..., ~inside.flatten()] > least_cosine
    return (alike.float().mean(dim=-1) >= least_share).unflatten(-1, block.hw)


def found_optimizer(found: FoundEncoder) -> tuple[AdamW, StepLR]:
    """FOUND's optimiser and schedule: 5e-2, a twentieth less every 50 steps, of the decoder alone."""
    optimizer = AdamW(found.decoder.parameters(), lr=5e-2)
    return optimizer, StepLR(optimizer, step_size=50, gamma=0.95)
