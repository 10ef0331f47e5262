"""CLIP-EBC's training loss DACE: blocks into bins by cross-entropy, and the density by one of three losses.

Source: arXiv 2403.09281, section 3; github.com/Yiming-M/CLIP-EBC at b52a5944, losses/. "dmcount" is DM-Count,
Wang et al., "Distribution Matching for Crowd Counting", NeurIPS 2020, arXiv 2009.13077, equations 5 to 8.

Deviations, switched back by `as_published=True`: dots that share a pixel are all counted in their block (the
code counts them once there, and each in the total), and optimal transport is averaged over the batch like all
other terms (the code sums it, so that its weight grows with the batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovseg.errors import ShapeError, unknown_name
from ovseg.heads.count_bins import CountBins

CountLoss = Literal["mae", "mse", "dmcount"]

TRANSPORT_WEIGHT, VARIATION_WEIGHT = 0.1, 0.01
#: Sinkhorn: entropy in squared pixels, most steps, steps between checks, squared error to stop at.
REGULARISATION, STEPS, CHECK_EVERY, STOP_AT = 10.0, 100, 10, 1e-9
#: Keeps Sinkhorn's divisions finite. Where no dot is within reach of a block (about 30 px), this bounds its
#: potential, which would be the squared distance; the published weights were trained so.
TINY = 1e-16
EPS = 1e-8


def block_counts(
    points_xy: Sequence[Float[Tensor, "_ 2"]],
    size_hw: tuple[int, int],
    block_px: int,
    *,
    as_published: bool = False,
) -> Float[Tensor, "B 1 h w"]:
    """How many dots lie in each block.

    Args:
        points_xy: dots of each image in pixels, at most at its far edge.
        size_hw: of the images, multiples of `block_px`.
        block_px: side of a block.
        as_published: dots of one pixel count once.

    Raises:
        ShapeError: sides hold no whole blocks, or a dot lies outside.
    """
    if any(side % block_px for side in size_hw):
        raise ShapeError(f"images of {size_hw[0]}x{size_hw[1]} (HxW) hold no whole blocks of {block_px} px")
    limit = torch.tensor([size_hw[1], size_hw[0]])
    grids = []
    for points in points_xy:
        edge = limit.to(points.device)
        if ((points < 0) | (points > edge)).any():
            raise ShapeError(f"a dot lies outside of its image of {size_hw[0]}x{size_hw[1]} px (HxW)")
        pixels = torch.minimum(points.long(), edge - 1)
        if as_published:
            pixels = pixels.unique(dim=0)
        cols, rows = (pixels // block_px).unbind(dim=1)
        grid = points.new_zeros(size_hw[0] // block_px, size_hw[1] // block_px)
        grids.append(grid.index_put((rows, cols), grid.new_ones(()), accumulate=True))
    return torch.stack(grids)[:, None]


def dace_loss(
    logits: Float[Tensor, "B n h w"],
    density: Float[Tensor, "B 1 h w"],
    points_xy: Sequence[Float[Tensor, "_ 2"]],
    bins: CountBins,
    *,
    count_loss: CountLoss = "mae",
    weight: float = 1.0,
    as_published: bool = False,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The loss of a batch, and its detached terms: "ce" and those of the count loss.

    Cross-entropy, absolute and squared errors are summed over blocks and averaged over the batch.

    Args:
        logits, density: what the head said.
        points_xy: dots of each image, in its pixels; images without dots are fine.
        bins: of the head.
        count_loss: absolute or squared error of the density, or DM-Count.
        weight: of the count loss.
        as_published: see the module.

    Raises:
        ConfigError: an unknown count loss.
        ShapeError: dots and images differ in number, or a dot lies outside.
    """
    if len(points_xy) != len(density):
        raise ShapeError(f"{len(density)} images came with the dots of {len(points_xy)}: give some for each")
    size_hw = (density.shape[2] * bins.block_px, density.shape[3] * bins.block_px)
    target = block_counts(points_xy, size_hw, bins.block_px, as_published=as_published).to(density)
    ce = F.cross_entropy(logits, bins.index(target[:, 0]), reduction="none").sum(dim=(1, 2)).mean()
    if count_loss == "dmcount":
        counting, terms = dm_count_loss(density, target, points_xy, bins.block_px, as_published=as_published)
    elif count_loss in ("mae", "mse"):
        error = density - target
        error = error.abs() if count_loss == "mae" else error.square()
        counting = error.sum(dim=(1, 2, 3)).mean()
        terms = {count_loss: counting.detach()}
    else:
        raise unknown_name("count loss", count_loss, ("mae", "mse", "dmcount"))
    return ce + weight * counting, {"ce": ce.detach(), **terms}


def dm_count_loss(
    density: Float[Tensor, "B 1 h w"],
    target: Float[Tensor, "B 1 h w"],
    points_xy: Sequence[Float[Tensor, "_ 2"]],
    block_px: int,
    *,
    as_published: bool = False,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """`|count - n|` + 0.1 optimal transport + 0.01 n * total variation of the normalised densities.

    The transport's value is 0 by construction: it carries the gradient of the transport cost with respect to
    the density, the potential being held fixed.

    Args:
        density: predicted.
        target: dots by block.
        points_xy: dots of each image, in pixels.
        block_px: side of a block.
        as_published: see the module.
    """
    density = density.float()
    total = density.sum(dim=(1, 2, 3))
    dots = torch.tensor([float(len(points)) for points in points_xy], device=density.device)
    count = (total - dots).abs().mean()
    shape, wanted = (x / (n[:, None, None, None] + EPS) for x, n in ((density, total), (target, dots)))
    variation = ((shape - wanted).abs().sum(dim=(1, 2, 3)) * dots).mean()
    slopes = [
        transport_gradient(own[0].detach(), points, block_px)
        for own, points in zip(density, points_xy, strict=True)
    ]
    transport = (density[:, 0] * torch.stack(slopes)).sum(dim=(1, 2))
    ot = transport.sum() if as_published else transport.mean()
    loss = count + TRANSPORT_WEIGHT * ot + VARIATION_WEIGHT * variation
    return loss, {"count": count.detach(), "transport": ot.detach(), "variation": variation.detach()}


def transport_gradient(
    density: Float[Tensor, "h w"], points_xy: Float[Tensor, "n 2"], block_px: int
) -> Float[Tensor, "h w"]:
    """Gradient of the cost of transporting the normalised density onto the dots; 0 without dots.

    Costs are squared pixel distances between dots and block centres.
    """
    if not len(points_xy):
        return torch.zeros_like(density)
    ys, xs = ((torch.arange(side, device=density.device) + 0.5) * block_px for side in density.shape)
    x, y = points_xy.to(density).split(1, dim=1)
    cost = ((y - ys).square()[:, :, None] + (x - xs).square()[:, None, :]).flatten(1)
    total = density.sum()
    flat = density.flatten()
    potential = sinkhorn_potential(flat / (total + EPS), cost)
    slope = potential * total - (flat * potential).sum()
    return (slope / (total.square() + EPS)).view_as(density)


def sinkhorn_potential(mass: Float[Tensor, " m"], cost: Float[Tensor, "n m"]) -> Float[Tensor, " m"]:
    """The dual potential of `mass` in its entropic transport onto `n` equal dots."""
    kernel = (-cost / REGULARISATION).exp()
    dots = mass.new_full((len(cost),), 1 / len(cost))
    u, v = dots, torch.full_like(mass, 1 / len(mass))
    for step in range(1, STEPS + 1):
        before = u, v
        v = mass / (u @ kernel + TINY)
        u = dots / (kernel @ v + TINY)
        if not (u.isfinite().all() and v.isfinite().all()):
            u, v = before
            break
        if step % CHECK_EVERY == 0 and (mass - (u @ kernel) * v).square().sum() <= STOP_AT:
            break
    return REGULARISATION * (v + TINY).log()
