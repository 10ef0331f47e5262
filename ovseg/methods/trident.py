"""Trident: window features spliced into one canvas, averaged within SAM's segments, sharpened by SAM's masks.

Windows go through CLIP with ProxyCLIP's attention as far as the last out-projection; there they are laid on
the grid of the whole image. The canvas is averaged with SAM's attention, restricted to similar tokens, on
SAM's own grid, and only then normalised and projected into the shared space. SAM sees the given image, once.

Source: Shi et al., arXiv 2411.09219, section 3; github.com/YuHengsss/Trident at a93b346d.
Deviations: the mean similarity and everything else is per image of a batch; images may be other than square.
An image whose sides are multiples of the patch is enlarged to the window like any other. `as_published=True`:
it is not, position embeddings stay unresampled when the count agrees, and `SamMasks` as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ovseg.correlation.proxy import ProxyCorrelation, shifted_softmax
from ovseg.correlation.segments import segment_pooling
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.positions import PositionRule
from ovseg.encoders.sam import SamImage
from ovseg.errors import ConfigError
from ovseg.refine.sam_masks import SamMasks
from ovseg.resampling import Resampling
from ovseg.scorer import Scorer
from ovseg.structures import DenseFeatures, Pictures, mix_heads
from ovseg.windows import WindowPlan, resize_image, whole_patches


def fitted_hw(
    image_hw: tuple[int, int], patch_hw: tuple[int, int], least: int, *, as_published: bool = False
) -> tuple[int, int]:
    """Sides that are multiples of the patch and at least `least`; the aspect changes a little.

    The long side goes to the next multiple, the short side along with it and then up to a multiple.

    Args:
        image_hw: the image.
        patch_hw: CLIP's patch.
        least: side of a window; 0 for any.
        as_published: leave an image alone whose sides are multiples already, however small.
    """
    if as_published and not any(side % patch for side, patch in zip(image_hw, patch_hw, strict=True)):
        return image_hw
    long = max(image_hw)
    stretched = _next_multiple(long, patch_hw[image_hw.index(long)])
    height, width = (
        max(_next_multiple(side * stretched // long, patch), _next_multiple(least, patch))
        for side, patch in zip(image_hw, patch_hw, strict=True)
    )
    return height, width


def _next_multiple(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def lay_out(
    windows: Float[Tensor, "B n C h w"],
    boxes_yxyx: Sequence[tuple[int, int, int, int]],
    image_hw: tuple[int, int],
    patch_hw: tuple[int, int],
) -> Float[Tensor, "B C y x"]:
    """The windows on the grid of the whole image, overlaps averaged.

    A cell is a patch, or a whole fraction of it where the windows are finer (a guide with smaller patches).

    Args:
        windows: features of n windows of each image.
        boxes_yxyx: their pixels, on borders of patches.
        image_hw: pixels of the image.
        patch_hw: pixels of a patch.
    """
    top, left, bottom, right = boxes_yxyx[0]
    patches = ((bottom - top) // patch_hw[0], (right - left) // patch_hw[1])
    finer = [max(round(own / count), 1) for own, count in zip(windows.shape[-2:], patches, strict=True)]

    def cells(*pixels_yx: int) -> tuple[int, ...]:
        return tuple(pixels_yx[axis] // patch_hw[axis] * finer[axis] for axis in (0, 1))

    images, _, channels = windows.shape[:3]
    fitted = F.interpolate(
        windows.flatten(0, 1), size=cells(bottom - top, right - left), mode="bilinear", align_corners=False
    ).unflatten(0, (images, -1))
    canvas = windows.new_zeros(images, channels, *cells(*image_hw))
    visits = canvas.new_zeros(canvas.shape[-2:])
    for index, (top, left, bottom, right) in enumerate(boxes_yxyx):
        (y0, x0), (y1, x1) = cells(top, left), cells(bottom, right)
        canvas[..., y0:y1, x0:x1] += fitted[:, index]
        visits[y0:y1, x0:x1] += 1
    return canvas / visits


class TridentScorer(Scorer):
    """Splice, average within segments, project.

    Args:
        encoder: the image tower.
        guide: DINO, for the attention within windows.
        sam: for the segments.
        shift, sharpness: of the proxy attention.
        cosine_factor, keep_negative: see `correlation.segments`.
        halves: SAM looks at the left and the right half one by one.
        as_published: see above.
        options: of `Scorer`.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        guide: nn.Module,
        sam: Any,
        *,
        shift: float,
        sharpness: float,
        cosine_factor: float,
        keep_negative: bool,
        halves: bool,
        as_published: bool,
        **options,
    ) -> None:
        super().__init__(encoder, ProxyCorrelation(shift, sharpness), residual=False, guide=guide, **options)
        for name, length in (("crop", self.windows.crop), ("stride", self.windows.stride)):
            if length is not None and any(length % patch for patch in encoder.patch_hw):
                raise ConfigError(
                    f"Trident lays windows on the grid of the whole image: {name} must be a multiple of the "
                    f"patch {encoder.patch_hw[0]}x{encoder.patch_hw[1]}, got {length}"
                )
        self.sam = sam
        self.shift = shift
        self.sharpness = sharpness
        self.cosine_factor = cosine_factor
        self.keep_negative = keep_negative
        self.halves = halves
        self.as_published = as_published

    @torch.no_grad()
    def encode(self, pictures: Pictures, output_hw: tuple[int, int] | None = None) -> DenseFeatures:
        """See `Scorer.encode`. The grid is SAM's, without its padding."""
        canvas = self.splice(self.fit(pictures.image))
        pooled, embedded = zip(
            *(self.average(each, image) for each, image in zip(canvas.split(1), pictures.full, strict=True)),
            strict=True,
        )
        grid = torch.cat(pooled)
        hw = (grid.shape[-2], grid.shape[-1])
        tokens = self.encoder.tower.finish(grid.flatten(2).mT.to(self.encoder.dtype))
        image_hw = (pictures.image.shape[-2], pictures.image.shape[-1])
        return DenseFeatures(
            F.normalize(tokens.float(), dim=-1).mT.unflatten(-1, hw),
            Resampling.bilinear(hw, output_hw or image_hw).to(grid.device),
            pictures=pictures,
            sam=None if self.halves else _joined(embedded),
        )

    def fit(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 h w"]:
        """Images resized to whole patches."""
        image_hw = (image.shape[-2], image.shape[-1])
        size_hw = fitted_hw(
            image_hw, self.encoder.patch_hw, self.windows.crop or 0, as_published=self.as_published
        )
        if size_hw == image_hw:
            return image
        return F.interpolate(image, size=size_hw, mode="bilinear", align_corners=False)

    def splice(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """All windows on one canvas, see `lay_out`.

        Args:
            image: sides are multiples of CLIP's patch.
        """
        plan, patch_hw = self.windows, self.encoder.patch_hw
        image_hw = (image.shape[-2], image.shape[-1])
        windows = plan.windows(image_hw, patch_hw)
        pieces = windows.cut(image, self.encoder.mean)
        guides = torch.cat(
            [
                self.guide(whole_patches(part, self.guide.patch_hw)).grid
                for part in pieces.split(plan.max_batch)
            ]
        )
        outputs = self.window_outputs(pieces, guides, len(image)).unflatten(0, (len(image), -1))
        return lay_out(outputs, windows.boxes_yxyx, image_hw, patch_hw)

    def window_outputs(
        self, pieces: Float[Tensor, "M 3 y x"], guides: Float[Tensor, "M G h w"], images: int
    ) -> Float[Tensor, "M C h w"]:
        """Windows after proxy attention and out-projection, on the guide's grid.

        Args:
            pieces: pixels of the windows, images outermost.
            guides: the guide's features of each.
            images: how many images they belong to; the mean similarity is over all windows of an image.
        """
        hw = (guides.shape[-2], guides.shape[-1])
        unit = F.normalize(guides.float().flatten(2), dim=1)
        means = unit.mean(dim=-1).square().sum(dim=-1)  # of all pairs of a window, without building them
        means = means.unflatten(0, (images, -1)).mean(dim=1, keepdim=True).expand(-1, len(unit) // images)
        outputs = []
        size = self.windows.max_batch
        for part, own, mean in zip(
            pieces.split(size), unit.split(size), means.flatten().split(size), strict=True
        ):
            block = self.encoder.open(part, positions=self.positions)
            above = own.mT @ own - self.shift * mean[:, None, None]
            attention = shifted_softmax(above, shift=0.0, sharpness=self.sharpness)
            mixed = mix_heads(attention, block.values_on(hw, 0))
            outputs.append(self.encoder.tower.blocks[-1].project(mixed).float())
        return torch.cat(outputs).mT.unflatten(-1, hw)

    def average(
        self, canvas: Float[Tensor, "1 C h w"], image: UInt8[np.ndarray, "H W 3"]
    ) -> tuple[Float[Tensor, "1 C y x"], SamImage]:
        """The canvas on SAM's grid, each cell the average of its segment; and what SAM saw."""
        height, width = (
            _next_multiple(side, patch)
            for side, patch in zip(image.shape[:2], self.encoder.patch_hw, strict=True)
        )
        image = resize_image(image, (height, width))
        views, parts = [image], [canvas]
        if self.halves:
            views = [image[:, : width // 2], image[:, -(width // 2) :]]
            parts = list(canvas.tensor_split(2, dim=-1))
        embedded = self.sam.embed(views, attention=True)
        valid_hw = self.sam.valid_hw(embedded)
        cells = torch.cat(
            [F.interpolate(part, size=valid_hw, mode="bilinear", align_corners=False) for part in parts]
        )
        assert embedded.attention is not None
        pooled = segment_pooling(
            cells,
            embedded.attention,
            cosine_factor=self.cosine_factor,
            keep_negative=self.keep_negative,
        )
        return torch.cat(pooled.split(1), dim=-1), embedded


def _joined(embedded: Sequence[SamImage]) -> SamImage:
    """Images of one size as one batch, without their attention, which has done its work."""
    first = embedded[0]
    return SamImage(torch.cat([each.embedding for each in embedded]), first.input_hw, first.image_hw)


def trident(
    encoder: ClipEncoder,
    guide: nn.Module,
    sam: Any,
    *,
    short_side: int | None = 336,
    crop: int | None = 336,
    stride: int | None = 224,
    temperature: float = 40.0,
    shift: float = 1.2,
    sharpness: float = 3.0,
    cosine_factor: float = 1.2,
    keep_negative: bool = True,
    halves: bool = False,
    sam_refinement: bool = True,
    coarse_threshold: float = 0.2,
    min_iou: float = 0.8,
    min_area_px: int = 225,
    max_batch: int = 16,
    as_published: bool = False,
) -> TridentScorer:
    """Trident over sliding windows.

    Args:
        encoder: the image tower.
        guide: DINO with patch 16.
        sam: any size.
        short_side: resize to this first; None keeps the image's size.
        crop: window side in pixels; None takes the whole image at once.
        stride: step between windows (112 for VOC20).
        temperature: logit scale.
        shift: how far above the mean a similarity must be (beta in the paper).
        sharpness: of the softmax (gamma in the paper).
        cosine_factor: how far above the mean SAM's similarity must be (0 for VOC20, 3 for Cityscapes).
        keep_negative: see `correlation.segments.cosine_thresholds` (off for ADE20K and Cityscapes).
        halves: SAM looks at the left and the right half one by one (Cityscapes).
        sam_refinement: ask SAM for a mask of each region (the published numbers do; the code leaves it out).
        coarse_threshold, min_iou, min_area_px: see `SamMasks`.
        max_batch: windows at once.
        as_published: see above.
    """
    masks = SamMasks(
        sam,
        coarse_threshold=coarse_threshold,
        min_iou=min_iou,
        min_area_px=min_area_px,
        as_published=as_published,
    )
    return TridentScorer(
        encoder,
        guide,
        sam,
        shift=shift,
        sharpness=sharpness,
        cosine_factor=cosine_factor,
        keep_negative=keep_negative,
        halves=halves,
        as_published=as_published,
        windows=WindowPlan(crop, stride, max_batch=max_batch),
        positions=PositionRule(as_published=as_published),
        short_side=short_side,
        temperature=temperature,
        refine=[masks] if sam_refinement else [],
    )
