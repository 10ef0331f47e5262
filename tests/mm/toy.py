"""A model of two layers on numbers in the place of images: what trains it is the real thing."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.structures import BaseDataElement
from torch import nn

from ovseg.mm.registry import DATASETS, MODELS, TRANSFORMS
from ovseg.mm.trainable import TrainableModel

CONFIG = Path(__file__).parent / "toy_config.py"


@DATASETS.register_module()
class ToyDataset(BaseDataset):
    METAINFO: ClassVar[dict[str, Any]] = {"classes": ("one", "two")}

    def __init__(self, length: int = 10, broken: int = -1, **kwargs: Any) -> None:
        self.length, self.broken = length, broken
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        rng = np.random.default_rng(0)
        return [
            {
                "value": rng.normal(size=6).astype(np.float32) * (np.nan if index == self.broken else 1),
                "img_path": f"photos/{index:03d}.jpg",
            }
            for index in range(self.length)
        ]


@TRANSFORMS.register_module()
class ToyPack(BaseTransform):
    """With an augmentation that asks the global generators, as mmcv's do."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        value = results["value"] + 0.3 * np.random.normal(size=6).astype(np.float32)  # noqa: NPY002
        value = value + 0.1 * torch.randn(6).numpy()
        sample = BaseDataElement(metainfo={"img_path": results["img_path"]})
        return {"inputs": torch.from_numpy(value), "data_samples": sample}


@MODELS.register_module()
class ToyModel(TrainableModel):
    def __init__(
        self, encoder: str = "toy_tower", hidden: int = 8, dropout: float = 0.3, **options: Any
    ) -> None:
        super().__init__(**options)
        generator = torch.Generator().manual_seed(5)
        self.tower = nn.Sequential(nn.Linear(6, hidden), nn.BatchNorm1d(hidden), nn.Dropout(0.5))
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden, 4))
        self.scale = nn.Parameter(torch.ones(1))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        self.encoder = SimpleNamespace(name=encoder, weights_sha256=f"hash of {encoder}")
        self.dtypes: set[torch.dtype] = set()
        self.freeze()

    def trained(self) -> tuple[str, ...]:
        return ("head", "scale")

    def loss(self, inputs: Any, data_samples: Any) -> dict[str, torch.Tensor]:
        time.sleep(float(os.environ.get("TOY_DELAY", "0")))
        found = self.head(self.tower(torch.stack(list(inputs)))) * self.scale
        self.dtypes.add(found.dtype)
        return {"loss_toy": (found.float() - 0.7).square().mean()}

    def predictor(self) -> Any:
        return SimpleNamespace(scale=self.scale.item(), **self.provenance)
