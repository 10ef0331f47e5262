"""The fast bilateral solver: a mask as smooth as its picture, and sharp where the picture's colours change.

Pixels of a picture are gathered in cells of position and colour. Among the cells, the mask `y` minimises

    smoothness * sum_ij W_ij (y_i - y_j)^2 + sum_i confidence_i (y_i - target_i)^2

with `W` a blur over neighbouring cells, scaled until its rows and columns sum to the cells' pixels.

Source: Barron and Poole, "The Fast Bilateral Solver", arXiv 1511.03296, with the settings of FOUND,
github.com/valeoai/FOUND at 1ad22bac. Needs scipy.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage, sparse
from scipy.sparse.linalg import cg

#: Full-range luma and chroma (BT.601, as in JPEG); the two chroma rows get 128 added.
_YUV_OF_RGB = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
#: Nearly sure of every pixel alike.
_CONFIDENCE = 0.999


class BilateralGrid:
    """The cells of a picture's pixels: five coordinates, x, y, luma and two of chroma.

    Args:
        image: RGB.
        spatial_px, luma, chroma: side of a cell along each kind of axis, in pixels and grey levels.

    Attributes:
        cell_of_pixel: `(H * W,)`.
        blur: sparse `(cells, cells)`: 2 per axis on the diagonal, 1 for each of the neighbours along an axis.
    """

    def __init__(
        self,
        image: UInt8[np.ndarray, "H W 3"],
        *,
        spatial_px: float = 16.0,
        luma: float = 16.0,
        chroma: float = 8.0,
    ) -> None:
        ys, xs = np.indices(image.shape[:2])
        yuv = image @ _YUV_OF_RGB.T + (0, 128, 128)
        scaled = np.dstack([xs / spatial_px, ys / spatial_px, yuv / (luma, chroma, chroma)])
        places = scaled.astype(np.int64).reshape(-1, 5)
        sizes = places.max(axis=0) + 2  # an empty last place, so that no axis runs over into the next
        strides = np.cumprod([1, *sizes[:-1]])
        codes, self.cell_of_pixel = np.unique(places @ strides, return_inverse=True)
        self.blur = 2 * len(strides) * sparse.identity(len(codes), format="csr")
        for stride in strides:
            after = np.searchsorted(codes, codes + stride).clip(max=len(codes) - 1)
            (cells,) = np.nonzero(codes[after] == codes + stride)
            link = sparse.csr_matrix((np.ones(len(cells)), (cells, after[cells])), shape=self.blur.shape)
            self.blur = self.blur + link + link.T

    def splat(self, values: Float[np.ndarray, " pixels"]) -> Float[np.ndarray, " cells"]:
        """The sum of each cell's pixels."""
        return np.bincount(self.cell_of_pixel, values, minlength=self.blur.shape[0])


def solve(
    grid: BilateralGrid,
    target: Float[np.ndarray, "H W"],
    *,
    smoothness: float = 256.0,
    rounds: int = 10,
    iterations: int = 25,
    tolerance: float = 1e-5,
) -> Float[np.ndarray, "H W"]:
    """The smoothed target, about within the target's range.

    Args:
        grid: of the picture.
        target: what to smooth.
        smoothness: lambda in the paper.
        rounds: of making the blur bistochastic.
        iterations: of conjugate gradients, at most.
        tolerance: relative residual at which they stop.
    """
    pixels = np.bincount(grid.cell_of_pixel).astype(float)
    scale = np.ones_like(pixels)
    for _ in range(rounds):
        scale = np.sqrt(scale * pixels / (grid.blur @ scale))
    mass = scale * (grid.blur @ scale)  # of the rows as they are after so many rounds
    scaling = sparse.diags(scale)
    weight = grid.splat(np.full(target.size, _CONFIDENCE))
    given = grid.splat(target.ravel().astype(float) * _CONFIDENCE)
    matrix = smoothness * (sparse.diags(mass) - scaling @ grid.blur @ scaling) + sparse.diags(weight)
    jacobi = sparse.diags(1 / np.maximum(matrix.diagonal(), 1e-5))
    cells, _ = cg(matrix, given, x0=given / weight, M=jacobi, maxiter=iterations, rtol=tolerance)
    return cells[grid.cell_of_pixel].reshape(target.shape)


def largest_label_dropped(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """What FOUND's code keeps: connected parts (4 neighbours) of the mask and its ground, but the largest.

    The largest is meant to be the ground; an object that covers more than the ground is lost, and the ground
    kept in its place.
    """
    labels, count = ndimage.label(mask)
    return labels != np.bincount(labels.ravel(), minlength=count + 1).argmax()


def colour_mask(
    mask: Float[np.ndarray, "h w"], image: UInt8[np.ndarray, "H W 3"], *, as_published: bool = False
) -> tuple[Bool[np.ndarray, "H W"], bool]:
    """A coarse mask at the size of its picture, its border drawn to the picture's colours.

    Args:
        mask: in [0, 1].
        image: RGB.
        as_published: see `largest_label_dropped`.

    Returns:
        The mask, holes filled; and whether it is to be trusted: an IoU above 0.5 with the mask that came.
    """
    coarse = cv2.resize(mask.astype(np.float32), image.shape[1::-1])
    solved = ndimage.binary_fill_holes(solve(BilateralGrid(image), coarse) > 0.5)
    if as_published:
        solved = largest_label_dropped(solved)
    overlap, union = (solved & (coarse > 0.5)).sum(), (solved | (coarse > 0.5)).sum()
    return solved, bool(2 * overlap > union)
