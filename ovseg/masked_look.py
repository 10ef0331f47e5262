"""A mask-adapted CLIP as what names regions: its look at each one's masked crop."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from ovseg.detection_results import Detections
from ovseg.encoders.mask_prompt import MaskPromptedClip
from ovseg.heads.visual_prompts import masked_crops


class MaskedLook:
    """`(image, regions) -> (N, D)`, unit length: the `crops` of `ovseg.region_route.RegionRoute`.

    Args:
        model: CLIP for masked crops.
        prompted: with the mask prompts; False shows the tower what is painted over, too.
        at_once: crops that the tower takes at a time.
    """

    def __init__(self, model: MaskPromptedClip, *, prompted: bool = True, at_once: int = 64) -> None:
        self.model, self.prompted, self.at_once = model, prompted, at_once

    @torch.no_grad()
    def __call__(self, image: UInt8[np.ndarray, "H W 3"], regions: Detections) -> Float[Tensor, "N D"]:
        """What CLIP makes of each region.

        Args:
            image: RGB.
            regions: with masks; without, their boxes count.
        """
        model = self.model
        device = model.prompts.device
        seen = [torch.zeros(0, model.embed_dim, device=device)]
        crops = masked_crops(image, regions, side=model.crop_hw[0])
        while batch := list(islice(crops, self.at_once)):
            pixels = torch.from_numpy(np.stack([picture for picture, _ in batch])).to(device)
            masks = torch.from_numpy(np.stack([where for _, where in batch])).to(device)
            embedded = model(pixels.permute(0, 3, 1, 2).float() / 255, masks if self.prompted else None)
            seen.append(F.normalize(embedded.float(), dim=1))
        return torch.cat(seen)
