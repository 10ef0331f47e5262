from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import random_image

from ovseg.answers import TASKS, check_tasks
from ovseg.errors import CacheError, ConfigError
from ovseg.feature_cache import FeatureCache, image_key, load_features
from ovseg.inferencer import Inferencer
from ovseg.methods import METHODS
from ovseg.recipe import Recipe
from ovseg.resampling import Resampling
from ovseg.structures import DenseFeatures

SMALL: dict[str, Any] = dict(encoder="tiny", device="cpu", short_side=64, crop=48, stride=16)
IMAGES = [random_image(70, 109), random_image(50, 60, 1), random_image(70, 109, 2)]

pytestmark = pytest.mark.usefixtures("tiny_weights")


def features(seed: int = 0) -> DenseFeatures:
    grid = torch.randn(1, 8, 4, 5, generator=torch.Generator().manual_seed(seed))
    return DenseFeatures(torch.nn.functional.normalize(grid, dim=1), Resampling.bilinear((4, 5), (32, 40)))


class TestAsking:
    @pytest.mark.parametrize("method", sorted(METHODS))
    def test_other_words_need_no_image_tower(
        self, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = Inferencer(method, **SMALL, feature_cache=tmp_path, refine="pamr")
        list(first.answers(IMAGES, "cat, dog"))
        expected = list(first.answers(IMAGES, "sofa, grass, sky", tasks=TASKS))

        def refuse(self: Recipe) -> None:
            raise AssertionError("an image tower was loaded")

        monkeypatch.setattr(Recipe, "scorer", refuse)
        again = Inferencer(method, **SMALL, feature_cache=tmp_path, refine="pamr")
        assert again.describe() == first.describe()
        for one, other in zip(expected, again.answers(IMAGES, "sofa, grass, sky", tasks=TASKS), strict=True):
            np.testing.assert_array_equal(one.segmentation.labels, other.segmentation.labels)
            np.testing.assert_array_equal(one.instances.segments, other.instances.segments)
            np.testing.assert_array_equal(one.detections.boxes_xyxy, other.detections.boxes_xyxy)
            assert one.counts.to_dict() == other.counts.to_dict()
            np.testing.assert_array_equal(one.anomaly.map, other.anomaly.map)

    def test_towers_are_loaded_for_an_image_that_is_not_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.undo()
        bundled = SMALL | {"encoder": "bundled", "guide": "bundled", "text_cache": tmp_path / "words"}
        list(Inferencer("proxyclip", **bundled, feature_cache=tmp_path)(IMAGES[:1], "cat, dog"))
        again = Inferencer("proxyclip", **bundled, feature_cache=tmp_path)
        weight = "visual.conv1.weight"
        assert again.recipe.clip.model.get_parameter(weight).is_meta
        list(again(IMAGES[:1], "cat, pizza"))
        assert again.recipe.clip.model.get_parameter(weight).is_meta
        [_, found] = again(IMAGES[:2], "cat, dog")
        assert not again.recipe.clip.model.get_parameter(weight).is_meta
        plain = next(Inferencer("proxyclip", **bundled)(IMAGES[1:2], "cat, dog"))
        assert (found.labels == plain.labels).mean() > 0.99
        assert len(list(tmp_path.glob("*.safetensors"))) == 2

    @pytest.mark.parametrize("refine", ["sam", "regions"])
    def test_refinement_by_sam_comes_from_the_cache_too(self, refine: str, tmp_path: Path) -> None:
        images = IMAGES[:1]
        first = next(Inferencer("sclip", **SMALL, feature_cache=tmp_path, refine=refine)(images, "cat, dog"))
        again = Inferencer("sclip", **SMALL, feature_cache=tmp_path, refine=refine)
        again.reader.refine[0].sam.embed = None  # SAM's image encoder
        np.testing.assert_array_equal(next(again(images, "cat, dog")).labels, first.labels)

    def test_regions_are_part_of_what_was_encoded(self, tmp_path: Path) -> None:
        halves = np.zeros((70, 109), np.int32)
        halves[:, 50:] = 1
        inferencer = Inferencer("corrclip", **SMALL, sam="none", feature_cache=tmp_path)
        results = [next(inferencer(IMAGES[:1], "a, b", regions=[each])) for each in (halves, 1 - halves)]
        assert len(list(tmp_path.glob("*.safetensors"))) == 2
        assert results[0].confidence.shape == results[1].confidence.shape

    def test_towers_run_once_for_all_tasks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        inferencer = Inferencer("sclip", **SMALL)
        calls = []
        encode = inferencer.scorer.encode
        monkeypatch.setattr(inferencer.scorer, "encode", lambda *given: calls.append(1) or encode(*given))
        [answer] = inferencer.answers(IMAGES[:1], "cat, dog", tasks=TASKS)
        assert calls == [1]
        assert None not in (answer.segmentation, answer.instances, answer.detections, answer.anomaly)
        assert answer.detections.names == ("cat", "dog") == answer.names


class TestFiles:
    def test_what_is_saved_comes_back_rounded_to_half(self, tmp_path: Path) -> None:
        cache = FeatureCache(tmp_path / "new", {"method": "m"})
        kept, again = cache.save("a" * 64, features()), cache.load("a" * 64)
        assert torch.equal(kept.grid, again.grid)
        torch.testing.assert_close(again.grid, features().grid, atol=1e-3, rtol=0)
        assert torch.equal(again.resampling.rows, features().resampling.rows)
        assert cache.load("b" * 64) is None
        assert not cache.refused

    def test_float32_is_exact(self, tmp_path: Path) -> None:
        cache = FeatureCache(tmp_path, {}, dtype="float32")
        assert torch.equal(cache.save("a" * 64, features()).grid, features().grid)

    def test_entries_of_other_settings_are_not_found(self, tmp_path: Path) -> None:
        FeatureCache(tmp_path, {"weights_sha256": "1"}).save("a" * 64, features())
        assert FeatureCache(tmp_path, {"weights_sha256": "2"}).load("a" * 64) is None

    def test_renamed_foreign_and_damaged_entries_are_refused(self, tmp_path: Path) -> None:
        old, new = (FeatureCache(tmp_path, {"weights_sha256": each}) for each in "12")
        old.save("a" * 64, features())
        old.path("a" * 64).rename(new.path("a" * 64))
        assert new.load("a" * 64) is None
        assert "weights_sha256" in new.refused[0]
        new.save("b" * 64, features()), new.path("b" * 64).rename(new.path("c" * 64))
        assert new.load("c" * 64) is None
        assert "another image" in new.refused[1]
        new.path("d" * 64).write_bytes(b"no features")
        assert new.load("d" * 64) is None
        assert "damaged" in new.refused[2]
        with pytest.raises(CacheError, match="another image"):
            load_features(new.path("c" * 64), "c" * 64, new.settings)

    def test_keys_see_pixels_shape_and_regions(self) -> None:
        image = random_image(20, 30)
        other = image.copy()
        other[3, 4, 1] ^= 1
        regions = np.zeros((20, 30), np.int32)
        keys = {
            image_key(image),
            image_key(other),
            image_key(image.reshape(30, 20, 3)),
            image_key(image, regions),
        }
        assert len(keys) == 4
        assert image_key(image) == image_key(image.copy())

    def test_wrong_arguments(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match="is a file"):
            FeatureCache(tmp_path / "file", {})
        with pytest.raises(ConfigError, match="float16 or float32"):
            FeatureCache(tmp_path, {}, dtype="int8")


def test_tasks_by_name() -> None:
    assert check_tasks("count, segment,count") == ("segment", "count")
    with pytest.raises(ConfigError, match="Did you mean 'detect'"):
        check_tasks("detekt")
    with pytest.raises(ConfigError, match="no task"):
        check_tasks("")
