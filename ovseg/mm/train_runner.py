"""mmengine's Runner with checkpoints that are small, written whole or not at all, and run no code."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

import ovseg
from ovseg.encoders.checkpoints import load_checkpoint
from ovseg.errors import CheckpointError
from ovseg.mm.registry import RUNNERS
from ovseg.mm.trainable import META, TrainableModel

#: Values of the message hub that a curve's smoothing window can reach back to.
HISTORY = 200


@RUNNERS.register_module()
class TrainRunner(Runner):
    """A checkpoint holds `state_dict` (what was trained), `optimizer`, `param_schedulers`, `message_hub` and
    `meta`: plain values and tensors only. `meta["ovseg"]` says whose weights they are.
    """

    @property
    def bare_model(self) -> nn.Module:
        """The model, also where it is wrapped for several processes."""
        return self.model.module if is_model_wrapper(self.model) else self.model

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """As mmengine does it; and on CPUs, where its wrapper asks for a GPU's number."""
        if not self.distributed or torch.cuda.is_available() or model_wrapper_cfg is not None:
            return super().wrap_model(model_wrapper_cfg, model)
        unused = self.cfg.get("find_unused_parameters", False)
        return MMDistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=unused)

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """Called by CheckpointHook in every process; the first one writes."""
        if self.rank != 0:
            return
        model = self.bare_model
        counts = {"epoch": self.epoch + by_epoch, "iter": self.iter + (not by_epoch)}
        checkpoint: dict[str, Any] = {
            "meta": counts
            | (meta or {})
            | {
                "seed": self.seed,
                "experiment_name": self.experiment_name,
                "config_file": None if self.cfg.filename is None else Path(self.cfg.filename).name,
                META: model.describe()
                if isinstance(model, TrainableModel)
                else {"version": ovseg.__version__},
            },
            "state_dict": model.state_dict(),
            "message_hub": _plain_hub(self.message_hub.state_dict()),
        }
        if save_optimizer:
            checkpoint["optimizer"] = self.optim_wrapper.state_dict()
        if save_param_scheduler and self.param_schedulers is not None:
            checkpoint["param_schedulers"] = [each.state_dict() for each in self.param_schedulers]
        self.call_hook("before_save_checkpoint", checkpoint=checkpoint)
        write_whole(checkpoint, Path(out_dir) / filename)

    def load_checkpoint(
        self, filename: str, map_location: str | Callable = "cpu", strict: bool = True, **_: Any
    ) -> dict[str, Any]:
        """Weights into the model; `resume` reads the rest from what is handed back.

        Raises:
            CheckpointError: no such file, unsafe, or of another model.
        """
        checkpoint = load_checkpoint(Path(filename))
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        model = self.bare_model
        if isinstance(model, TrainableModel):
            model.load_trained(checkpoint, source=filename)
        else:
            try:
                model.load_state_dict(checkpoint.get("state_dict", checkpoint), strict=strict)
            except RuntimeError as error:
                raise CheckpointError(f"{filename} does not fit the model: {error}") from error
        if "message_hub" in checkpoint:
            checkpoint["message_hub"] = _hub(checkpoint["message_hub"])
            dataset = self.train_dataloader.dataset
            checkpoint["meta"]["dataset_meta"] = getattr(
                dataset, "metainfo", None
            )  # not stored: may hold code
        self._has_loaded = True
        self.logger.info(f"loaded {filename}")
        return checkpoint


def write_whole(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Writes a checkpoint so that a run that is killed leaves either all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        torch.save(dict(checkpoint), file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _plain_hub(hub: Mapping[str, Any]) -> dict[str, Any]:
    scalars = {}
    for name, buffer in hub["log_scalars"].items():
        values, counts = buffer.data
        scalars[name] = [torch.as_tensor(np.asarray(each[-HISTORY:], float)) for each in (values, counts)]
    info = {key: value for key, value in hub["runtime_info"].items() if _is_plain(value)}
    return {"log_scalars": scalars, "runtime_info": info, "resumed_keys": dict(hub["resumed_keys"])}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(each) for each in value)
    return value is None or type(value) in (bool, int, float, str)


def _hub(plain: Mapping[str, Any]) -> dict[str, Any]:
    scalars: dict[str, HistoryBuffer] = {}
    for name, (values, counts) in plain["log_scalars"].items():
        assert isinstance(values, Tensor)
        scalars[name] = HistoryBuffer(values.numpy(), counts.numpy())
    return {**plain, "log_scalars": scalars}
