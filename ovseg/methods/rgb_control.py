"""RGB control: plain colour in the place of a learned guide. A control, not a method.

CLIP's values are mixed between cells of similar colour that lie close together, on a finer grid than CLIP's
own; otherwise all is as in `proxyclip`. What a learned guide adds is what it gains over this.

Source: none; nobody published it, and it is here to be beaten. Its defaults are the best that were found on
the split "val" of the scenes with the bundled model, so that it is no straw man.
"""

from __future__ import annotations

from typing import Literal

from ovseg.correlation.colour import ColourCorrelation, ColourGuide
from ovseg.encoders.clip import ClipEncoder
from ovseg.scorer import Scorer
from ovseg.windows import WindowPlan


def rgb_control(
    encoder: ClipEncoder,
    *,
    short_side: int | None = 336,
    crop: int | None = 336,
    stride: int | None = 112,
    temperature: float = 40.0,
    cell_px: int = 8,
    space: Literal["rgb", "oklab"] = "rgb",
    std_colour: float = 0.06,
    std_px: float | None = 24.0,
    texture: float = 0.0,
    max_batch: int = 32,
) -> Scorer:
    """The control over sliding windows.

    Args:
        encoder: the image tower.
        short_side: resize to this first; None keeps the image's size.
        crop: window side in pixels; None takes the whole image at once.
        stride: step between windows.
        temperature: logit scale.
        cell_px: side of a colour cell in pixels.
        space: of the colours, see `ColourGuide`.
        std_colour: how different colours may be.
        std_px: how far apart cells may be, in pixels; None: any distance.
        texture: weight of the spread of a cell's colours beside their mean.
        max_batch: windows at once.
    """
    return Scorer(
        encoder,
        ColourCorrelation(std_colour, std_px),
        residual=False,
        windows=WindowPlan(crop, stride, fit="pad", multiple=56, max_batch=max_batch),
        guide=ColourGuide(cell_px, space=space, texture=texture),
        short_side=short_side,
        temperature=temperature,
    )
