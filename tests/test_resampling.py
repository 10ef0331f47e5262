from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ovseg.errors import ShapeError
from ovseg.resampling import Resampling, bilinear_matrix


class TestResampling:
    @pytest.mark.parametrize(("cells", "pixels"), [(5, 33), (7, 7), (9, 4), (1, 6)])
    def test_matrix_is_torchs_interpolation(self, cells: int, pixels: int) -> None:
        values = torch.randn(1, 2, cells)
        theirs = F.interpolate(values, size=pixels, mode="linear", align_corners=False)
        torch.testing.assert_close(values @ bilinear_matrix(cells, pixels).T, theirs)

    def test_chain_is_two_interpolations(self) -> None:
        grid = torch.randn(3, 5, 7)
        ours = Resampling.bilinear((5, 7), (40, 61)).then((23, 90)).apply(grid)
        middle = F.interpolate(grid[None], size=(40, 61), mode="bilinear", align_corners=False)
        theirs = F.interpolate(middle, size=(23, 90), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("max_elements", [1, 100, 1000, 10**9])
    def test_tiles_make_up_the_whole(self, max_elements: int) -> None:
        grid, resampling = torch.randn(3, 5, 7), Resampling.bilinear((5, 7), (31, 45))
        whole, covered = torch.zeros(3, 31, 45), torch.zeros(31, 45)
        for ys, xs, piece in resampling.tiles(grid, max_elements):
            assert piece.numel() <= max(max_elements, 3)
            whole[:, ys, xs] = piece
            covered[ys, xs] += 1
        assert (covered == 1).all()
        torch.testing.assert_close(whole, resampling.apply(grid), atol=1e-5, rtol=1e-5)

    def test_no_cells_is_an_error(self) -> None:
        with pytest.raises(ShapeError, match="at least 1"):
            bilinear_matrix(0, 4)
