"""Images without annotations, for what learns from pictures alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset

from ovseg.errors import ConfigError
from ovseg.mm.registry import DATASETS, TRANSFORMS

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@DATASETS.register_module()
class UnlabelledImages(BaseDataset):
    """All images in a folder and in those below it, sorted by path.

    Args:
        data_root: the folder.
        data_prefix: `dict(img_path="train")`, a folder in it.
        drawn: keep only so many, drawn with replacement; None keeps all, once.
        draw_seed: of that draw.
        kwargs: see `BaseDataset`.
    """

    METAINFO: ClassVar[dict[str, Any]] = {"classes": (), "palette": []}

    def __init__(self, *, drawn: int | None = None, draw_seed: int = 0, **kwargs: Any) -> None:
        self.drawn, self.draw_seed = drawn, draw_seed
        super().__init__(**{"data_prefix": {"img_path": ""}, **kwargs})

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry per image.

        Raises:
            ConfigError: there is none.
        """
        folder = Path(self.data_prefix["img_path"] or ".")
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise ConfigError(f"no images in {folder} or below ({', '.join(SUFFIXES)})")
        if self.drawn is not None:
            places = np.random.default_rng(self.draw_seed).integers(len(found), size=self.drawn)
            found = [found[place] for place in places]
        return [{"img_path": str(path), "seg_fields": []} for path in found]


@TRANSFORMS.register_module()
class BrightnessJitter(BaseTransform):
    """Multiplies the image by a random factor.

    Args:
        amount: the factor is drawn from `1 - amount` to `1 + amount`.
    """

    def __init__(self, amount: float = 0.5) -> None:
        self.amount = amount

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Of `img`, bytes."""
        factor = np.random.uniform(1 - self.amount, 1 + self.amount)  # noqa: NPY002  # seeded by draw
        results["img"] = np.clip(np.rint(results["img"] * factor), 0, 255).astype(np.uint8)
        return results
