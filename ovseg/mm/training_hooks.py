"""What watches a training: seeds of iterations, and a loss that is no number any more."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ovseg.errors import OvsegError
from ovseg.mm.draws import seed_everything, seed_of
from ovseg.mm.registry import HOOKS

#: Images that a message names.
SHOWN = 8


class LossError(OvsegError, ArithmeticError):
    """A loss is NaN or infinite."""


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seeds what the model draws (dropout, crops) by iteration, so that a resumed run draws the same."""

    priority = "VERY_HIGH"

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Each process its own."""
        seed_everything(seed_of(runner.seed, 2, runner.iter, runner.rank))


@HOOKS.register_module()
class ValidateFirstHook(Hook):
    """Validates before the first step: what training gains is the difference to that."""

    priority = "VERY_LOW"

    def before_train(self, runner: Runner) -> None:
        """A resumed run has done so before."""
        if runner.iter == 0 and runner.val_loop is not None:
            runner.val_loop.run()


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops at a loss that is NaN or infinite, before a checkpoint is written from it."""

    priority = "VERY_HIGH"

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Looks at the losses of the batch.

        Raises:
            LossError: naming the iteration, the losses and the images.
        """
        values = {name: float(torch.as_tensor(value).detach()) for name, value in (outputs or {}).items()}
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if not bad:
            return
        found = ", ".join(f"{name} is {value}" for name, value in bad.items())
        images = list(image_names(data_batch))
        names = ", ".join(images[:SHOWN]) + (
            f" and {len(images) - SHOWN} more" if len(images) > SHOWN else ""
        )
        last = runner.message_hub.runtime_info.get("last_ckpt")
        advice = "lower the learning rate, clip gradients (optim_wrapper.clip_grad=dict(max_norm=1.0))"
        raise LossError(
            f"iteration {runner.iter + 1}: {found}. Images of the batch: {names or 'unknown'}. Nothing was "
            f"saved of it; the last checkpoint is {last or 'not written yet'}. Look at those images and "
            f"labels, {advice} or train without --amp, then go on with --resume"
        )


def image_names(batch: Any) -> Iterable[str]:
    """Paths of a batch's images, as far as its data samples know them."""
    samples = batch.get("data_samples") if isinstance(batch, Mapping) else None
    for sample in samples or ():
        meta = getattr(sample, "metainfo", sample if isinstance(sample, Mapping) else {})
        yield str(meta.get("img_path", meta.get("img_id", "unnamed")))
