"""One spot of an image: what each class scores there, and what else in the image is alike to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from ovseg.answers import Task
from ovseg.demo.engine import Engine, Model, Picture
from ovseg.demo.settings import Settings
from ovseg.errors import ShapeError
from ovseg.outputs.heat_maps import heat_colors
from ovseg.resampling import Resampling
from ovseg.scorer import Scorer
from ovseg.structures import DenseFeatures
from ovseg.windows import whole_patches


@dataclass(frozen=True)
class Spot:
    """What a method thinks of one pixel.

    Attributes:
        names: classes, the likeliest first.
        probabilities: of each, before refinement.
        cosines: of each with the pixel, the best of its words.
        alike: by title, `(H, W)`: how alike every pixel of the shown picture is to this one.
    """

    names: tuple[str, ...]
    probabilities: tuple[float, ...]
    cosines: tuple[float, ...]
    alike: dict[str, Float[np.ndarray, "H W"]]


@torch.no_grad()
def explain(
    engine: Engine, picture: Picture, settings: Settings, task: Task, spot_xy: tuple[int, int]
) -> Spot:
    """A pixel of the shown picture, explained.

    Args:
        engine: with the picture's features.
        picture: of `Engine.read`.
        settings: words, method and encoder.
        task: says which words compete: a background for detect and count, states for anomaly.
        spot_xy: pixel of `picture.shown`.

    Raises:
        ShapeError: it lies outside.
    """
    x, y = spot_xy
    height, width = picture.shown_hw
    if not (0 <= x < width and 0 <= y < height):
        raise ShapeError(f"the spot ({x}, {y}) is outside of the picture of {width}x{height} (WxH)")
    model = engine.model(settings.method, settings.encoder)
    features, _, _ = engine.encoded(picture, settings.method, settings.encoder)
    whole = features.resampling.then((height, width))
    here = Resampling(whole.rows[y : y + 1], whole.cols[x : x + 1])
    words = engine.words(model, settings, task)
    bank = {"segment": words.asked, "anomaly": words.states}.get(task, words.closed) or words.asked
    score_map = model.scorer.score(replace(features, resampling=here), bank)
    [(_, _, probability)] = list(score_map.tiles(0, (1, 1)))
    cosine = score_map.per_class(here.apply(score_map.cosine[0]))
    order = probability.flatten().argsort(descending=True).tolist()
    alike = {"features alike to the spot": _features_alike(features, here, whole)}
    row = _affinity_row(engine, model, picture, (settings.method, settings.encoder), spot_xy)
    if row is not None:
        alike["affinity of its patch"] = row
    return Spot(
        tuple(bank.names[k] for k in order),
        tuple(probability.flatten()[order].tolist()),
        tuple(cosine.flatten()[order].tolist()),
        alike,
    )


def _features_alike(features: DenseFeatures, here: Resampling, whole: Resampling) -> np.ndarray:
    """Cosine of a pixel's feature with all others."""
    vector = F.normalize(here.apply(features.grid[0])[:, 0, 0], dim=0)
    cosine = torch.einsum("dhw,d->hw", features.grid[0], vector)
    return whole.apply(cosine).cpu().numpy()


def _affinity_row(
    engine: Engine, model: Model, picture: Picture, name: tuple[str, str], spot_xy: tuple[int, int]
) -> np.ndarray | None:
    """The row of the correlation's affinity on the whole image as one window; None where there is no such."""
    scorer = model.inferencer.scorer
    if scorer.correlation is None or type(scorer).features is not Scorer.features:
        return None
    kept = engine.extras.get(("affinity", *name, picture.key), lambda: _affinity(scorer, model, picture))
    if kept is None:
        return None
    matrix, (rows, columns) = kept
    (height, width), (x, y) = picture.shown_hw, spot_xy
    cell = min(y * rows // height, rows - 1) * columns + min(x * columns // width, columns - 1)
    row = matrix[cell].float().reshape(1, 1, rows, columns)
    return F.interpolate(row, size=(height, width), mode="bilinear", align_corners=False)[0, 0].numpy()


def _affinity(scorer: Scorer, model: Model, picture: Picture) -> tuple[Tensor, tuple[int, int]] | None:
    """Patch by patch, mean over heads, on the CPU."""
    with model.turn:
        image = scorer.prepare([picture.pixels]).image
        block = scorer.encoder.open(whole_patches(image, scorer.encoder.patch_hw), positions=scorer.positions)
        guide = None if scorer.guide is None else scorer.guide(whole_patches(image, scorer.guide.patch_hw))
        assert scorer.correlation is not None
        affinity = scorer.correlation(block, guide)
    if affinity is None:
        return None
    first = affinity.num_prefix
    return affinity.weights[0, :, first:, first:].mean(dim=0).half().cpu(), affinity.hw


def heat_picture(
    shown: UInt8[np.ndarray, "H W 3"], heat: Float[np.ndarray, "H W"], spot_xy: tuple[int, int]
) -> Image.Image:
    """The picture under a heat map, with a ring around the spot."""
    low, high = np.percentile(heat, 5), float(heat.max())
    share = np.clip((heat - low) / max(high - low, 1e-12), 0, 1)
    alpha = Image.fromarray((215 * np.clip(0.25 + share, 0, 1)).astype(np.uint8))
    grey = Image.fromarray(shown).convert("L").convert("RGB")
    picture = Image.composite(Image.fromarray(heat_colors(share)), grey, alpha)
    draw, (x, y) = ImageDraw.Draw(picture), spot_xy
    reach = max(6, min(shown.shape[:2]) // 45)
    for extra, color in ((2, (16, 18, 22)), (0, (255, 255, 255))):
        box = (x - reach - extra / 2, y - reach - extra / 2, x + reach + extra / 2, y + reach + extra / 2)
        draw.ellipse(box, outline=color, width=2 + extra)
    return picture
