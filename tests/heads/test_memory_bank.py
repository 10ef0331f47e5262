"""Few-shot anomalies, with a guide whose feature is the mean colour of a patch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ovseg.anomaly_results import AnomalyThreshold
from ovseg.errors import CheckpointError, ConfigError, ShapeError
from ovseg.heads import patch_memory
from ovseg.heads.anomaly import AnomalyHead
from ovseg.heads.memory_bank import EIGHT_TURNS, MemoryBankHead, foreground_cells, turned
from ovseg.heads.patch_memory import PatchCollector, PatchMemory, farthest_first
from ovseg.structures import PatchFeatures
from ovseg.windows import WindowPlan


class Colours(nn.Module):
    """Mean colour of 4 x 4 pixels, and its complement."""

    mean: Tensor
    patch_hw = (4, 4)

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((3, 1, 1), 0.5))
        self.gain = nn.Parameter(torch.tensor([gain, 1.0, 1.0]).view(3, 1, 1))

    def forward(self, image: Tensor) -> PatchFeatures:
        assert image.shape[-2] % 4 == image.shape[-1] % 4 == 0
        colour = F.avg_pool2d(image, 4) * self.gain
        grid = torch.cat([colour, 1 - colour], dim=1)
        return PatchFeatures(grid, grid.new_zeros(len(grid), 0, 6), (image.shape[-2], image.shape[-1]))


def good(seed: int, hw: tuple[int, int] = (33, 50)) -> np.ndarray:
    """Green, a little noisy, lighter towards the right."""
    rng = np.random.default_rng(seed)
    image = np.full((*hw, 3), (60, 150, 60)) + np.linspace(0, 60, hw[1])[None, :, None]
    return (image + rng.normal(0, 8, image.shape)).clip(0, 255).astype(np.uint8)


def damaged(seed: int = 9) -> np.ndarray:
    image = good(seed)
    image[9:17, 30:39] = (200, 40, 60)
    return image


GOOD = [good(seed) for seed in range(3)]


@pytest.mark.parametrize(
    "options",
    [
        dict(short_side=None),
        dict(short_side=66),
        dict(short_side=None, windows=WindowPlan(16, 12)),
        dict(short_side=None, windows=WindowPlan(16, 12, fit="pad", max_batch=2), image_score="max"),
    ],
)
def test_finds_the_damage_at_native_resolution(options: dict) -> None:
    head = MemoryBankHead(Colours(), **options)
    memory = head.fit(GOOD)
    found = head([damaged(), good(11)], memory)
    assert found.map.shape == (2, 33, 50)
    y, x = divmod(int(found.map[0].argmax()), 50)
    assert 8 <= y < 18
    assert 29 <= x < 40
    held_out = [float(each.score[0]) for each in head.held_out(GOOD, memory)]
    assert found.score[0] > 5 * max(held_out)
    assert found.score[1] < 2 * max(held_out)


def test_threshold_from_the_good_images_tells_them_apart() -> None:
    head = MemoryBankHead(Colours(), short_side=None)
    memory = head.fit(GOOD)
    reader = AnomalyHead(sigma_px=1.0)
    threshold = AnomalyThreshold.from_good(r for each in head.held_out(GOOD, memory) for r in reader(each))
    result = reader(head([damaged()], memory))[0].judged(threshold)
    assert result.label
    assert result.mask[11:15, 32:37].all()
    assert result.mask[:, :20].mean() < 0.05


def test_an_image_in_memory_has_no_distance_unless_left_out() -> None:
    head = MemoryBankHead(Colours(), short_side=None)
    memory = head.fit([*GOOD, damaged()])
    assert float(head([damaged()], memory).map.max()) < 1e-5
    assert float(head([damaged()], memory, without=3).map.max()) > 0.05
    with pytest.raises(ConfigError, match="at least two"):
        next(head.held_out(GOOD[:1], head.fit(GOOD[:1])))


def test_each_image_alone_gives_the_same() -> None:
    head = MemoryBankHead(Colours(), short_side=None, windows=WindowPlan(16, 12), foreground_only=True)
    memory = head.fit(GOOD)
    together = head([damaged(), good(12)], memory)
    alone = head([good(12)], memory)
    torch.testing.assert_close(together.map[1:], alone.map, atol=1e-6, rtol=0)
    torch.testing.assert_close(together.score[1:], alone.score, atol=1e-6, rtol=0)


def test_distances_against_a_loop_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, patches = F.normalize(torch.randn(23, 7), dim=1), F.normalize(torch.randn(11, 7), dim=1)
    image_of = torch.arange(23) % 3
    memory = PatchMemory(vectors, image_of, {})
    monkeypatch.setattr(patch_memory, "ELEMENTS", 50)
    for without in (None, 1):
        kept = [v for v, image in zip(vectors, image_of.tolist(), strict=True) if image != without]
        expected = [min(float(1 - patch @ v) for v in kept) for patch in patches]
        np.testing.assert_allclose(memory.distances(patches, without=without), expected, atol=1e-6)
    with pytest.raises(ShapeError, match="6 channels, those in memory 7"):
        memory.distances(patches[:, :6])
    with pytest.raises(ShapeError, match="got 0 patches"):
        PatchMemory(vectors[:0], image_of[:0], {})


def test_flat_images_are_finite() -> None:
    head = MemoryBankHead(Colours(), short_side=None, foreground_only=True)
    flat = np.full((17, 25, 3), 128, np.uint8)
    found = head([flat], head.fit([flat]))
    assert found.map.shape == (1, 17, 25)
    assert float(found.map.abs().max()) < 1e-5


def test_files_are_for_the_same_guide_only(tmp_path: Path) -> None:
    path = tmp_path / "memory.safetensors"
    head = MemoryBankHead(Colours(), short_side=None)
    memory = head.fit(GOOD)
    memory.save(path)
    again = PatchMemory.load(path, head.settings)
    assert again.about == memory.about
    assert again.about["images"] == 3
    assert torch.equal(again.image_of, memory.image_of)
    torch.testing.assert_close(head([damaged()], again).map, head([damaged()], memory).map, atol=2e-3, rtol=0)
    with pytest.raises(CheckpointError, match="weights_sha256"):
        PatchMemory.load(path, MemoryBankHead(Colours(gain=1.1), short_side=None).settings)
    with pytest.raises(CheckpointError, match="short_side None, here it is 448"):
        PatchMemory.load(path, MemoryBankHead(Colours()).settings)
    path.write_bytes(path.read_bytes()[:-2] + b"xx")
    with pytest.raises(CheckpointError, match="checksum"):
        PatchMemory.load(path, head.settings)
    save_file({"vectors": memory.vectors}, path)
    with pytest.raises(CheckpointError, match="another kind"):
        PatchMemory.load(path, head.settings)
    with pytest.raises(CheckpointError, match="no usable memory"):
        PatchMemory.load(tmp_path / "absent.safetensors", head.settings)


@pytest.mark.parametrize("thinning", ["random", "greedy"])
def test_the_limit_holds_and_the_seed_decides(thinning: str) -> None:
    head = MemoryBankHead(Colours(), short_side=None, limit=40, thinning=thinning)
    memory, again = head.fit(GOOD), head.fit(GOOD)
    assert len(memory.vectors) == 40
    assert torch.equal(memory.vectors, again.vectors)
    assert len(set(memory.image_of.tolist())) == 3
    found = head([damaged()], memory)
    assert float(found.map[0, 9:17, 30:39].mean()) > 3 * float(found.map[0, :, :25].mean())
    everything = {tuple(row) for row in MemoryBankHead(Colours(), short_side=None).fit(GOOD).vectors.tolist()}
    assert {tuple(row) for row in memory.vectors.tolist()} <= everything


def test_greedy_thinning_keeps_what_is_rare() -> None:
    torch.manual_seed(0)
    common = F.normalize(torch.tensor([1.0, 0, 0]) + 0.05 * torch.randn(300, 3), dim=1)
    rare = torch.tensor([[0.0, 1, 0], [0, 0, 1]])
    vectors = torch.cat([common[:150], rare, common[150:]])
    kept = farthest_first(vectors, 4, generator=torch.Generator().manual_seed(1))
    assert {150, 151} <= set(kept.tolist())
    assert len(set(farthest_first(vectors[:5], 9, generator=torch.Generator()).tolist())) == 5


def test_random_thinning_is_fair_to_the_whole_stream() -> None:
    collector = PatchCollector(2000)
    for image in range(20):
        collector.add(torch.ones(1000, 1), image)
    counts = torch.bincount(collector.memory({}).image_of, minlength=20)
    assert counts.sum() == 2000
    assert counts.min() > 60
    assert counts.max() < 140


def test_turns() -> None:
    image = good(1, (8, 12))
    assert np.array_equal(turned(image, 90.0), np.rot90(image))
    assert np.array_equal(turned(image, 0.0), image)
    assert turned(image, 45.0).shape == image.shape
    head = MemoryBankHead(Colours(), short_side=None, rotations=EIGHT_TURNS)
    assert len(head.fit(GOOD[:1]).vectors) == 8 * 12 * 8  # whole patches of 33 x 50, and of 50 x 33


def test_memory_of_turns_knows_a_turned_image() -> None:
    class Edges(Colours):
        def forward(self, image: Tensor) -> PatchFeatures:
            grid = F.pixel_unshuffle(image.mean(dim=1, keepdim=True), 4)
            return PatchFeatures(grid, grid.new_zeros(len(grid), 0, 16), (image.shape[-2], image.shape[-1]))

    stripes = np.zeros((32, 48, 3), np.uint8)
    stripes[::4] = 255
    plain, turning = (
        MemoryBankHead(Edges(), short_side=None, rotations=turns) for turns in ((0.0,), (0.0, 90.0))
    )
    test = turned(stripes, 90.0)
    assert float(plain([test], plain.fit([stripes])).score[0]) > 0.5
    assert float(turning([test], turning.fit([stripes])).score[0]) < 1e-5


def test_foreground_is_what_the_middle_shows() -> None:
    features = torch.zeros(4, 10, 14)
    features[0] = 1
    features[:, 3:7, 4:10] = torch.tensor([0.0, 1, 0.5, 0])[:, None, None]
    features += 0.01 * torch.randn(4, 10, 14)
    expected = torch.zeros(10, 14, dtype=torch.bool)
    expected[2:8, 3:11] = True
    assert torch.equal(foreground_cells(features), expected)
    assert foreground_cells(torch.ones(4, 10, 14)).all()


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match="at least 1 patch"):
        MemoryBankHead(Colours(), limit=0).fit(GOOD)
    with pytest.raises(ConfigError, match="at least one image"):
        MemoryBankHead(Colours()).fit([])
    with pytest.raises(ConfigError, match="at least one angle"):
        MemoryBankHead(Colours(), rotations=())
    with pytest.raises(ConfigError, match="short_side"):
        MemoryBankHead(Colours(), short_side=0)
    head = MemoryBankHead(Colours(), short_side=None)
    with pytest.raises(ShapeError, match="one size"):
        head([good(0), good(0, (40, 50))], head.fit(GOOD))
