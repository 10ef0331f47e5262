"""Optimisers under mmengine: only what is trained, and mixed precision on any device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn

from ovseg.mm.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Losses in bfloat16 where torch's autocast deems it safe, on CPUs and GPUs.

    bfloat16 has float32's range, so that no loss is scaled; mmengine's `AmpOptimWrapper` (float16, with
    scaling) refuses a CPU.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Around the forward pass."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TrainedParameters(DefaultOptimWrapperConstructor):
    """Hands the optimiser what has gradients, each parameter once; frozen towers are passed by in silence.

    `paramwise_cfg` as in mmengine: `dict(custom_keys={"bkg_decoder": dict(lr_mult=200)})`.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg or {"custom_keys": {}})
        self._seen: set[int] = set()

    def add_params(self, params: list[dict], module: nn.Module, *args: Any, **options: Any) -> None:
        """A parameter group for each parameter."""
        if id(module) in self._seen or not any(each.requires_grad for each in module.parameters()):
            return
        self._seen.add(id(module))
        super().add_params(params, module, *args, **options)
