"""What happens around a test: a progress bar, and pictures of the results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from tqdm import tqdm

from ovseg.mm.core_model import to_rgb
from ovseg.mm.registry import HOOKS
from ovseg.mm.segmentor import unpack
from ovseg.outputs.visualize import overlay
from ovseg.results import void_label


def model_of_runner(runner: Runner) -> Any:
    """The model, also where it is wrapped for several processes."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """A progress bar with rate and time left, where stderr is a terminal; else nothing."""

    def before_test_epoch(self, runner: Runner) -> None:
        """Starts it."""
        dataset = runner.test_loop.dataloader.dataset
        quiet = not sys.stderr.isatty() or runner.rank != 0
        self.bar = tqdm(total=len(dataset), desc="test", unit="image", disable=quiet)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Moves it on by what all processes have done."""
        self.bar.update(len(outputs or ()) * runner.world_size)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        """Ends it."""
        self.bar.close()


@HOOKS.register_module()
class OverlayHook(Hook):
    """Writes every image tinted by its predicted classes, or as the model's own `draw` shows it.

    Args:
        folder: where `<image name>.png` goes.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Draws the batch."""
        model = model_of_runner(runner)
        for packed, sample in zip(data_batch["inputs"], outputs or (), strict=True):
            path = self.folder / f"{Path(sample.get('img_path', f'{batch_idx:06d}')).stem}.png"
            if hasattr(model, "draw"):  # results of another kind; names repeat from category to category
                picture = model.draw(packed, sample)
                path = self.folder / sample.get("category", "") / sample.get("defect", "") / path.name
            else:
                vocabulary = model.vocabulary
                picture = overlay(to_rgb(packed), unpack(sample, vocabulary, void_label(len(vocabulary))))
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
