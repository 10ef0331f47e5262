"""What every learnable model shares under mmengine: something small is trained, the rest is frozen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmseg.structures import SegDataSample
from torch import Tensor, nn

import ovseg
from ovseg.encoders.checkpoints import load_checkpoint, sha256_of
from ovseg.errors import CheckpointError, ConfigError
from ovseg.mm.core_model import CoreModel
from ovseg.mm.segmentor import pack

#: The key of a checkpoint's `meta` under which ovseg says what it holds.
META = "ovseg"
_IDENTITY = ("method", "encoder", "weights_sha256")


class TrainableModel(CoreModel):
    """A model of which a part is trained.

    A subclass builds its parts in `__init__`, ends it with `self.freeze()`, and gives

    - `encoder`: an attribute with `name` and `weights_sha256`, the tower that what is trained belongs to;
    - `trained()`: dotted names of the submodules or parameters that are trained;
    - `loss(inputs, data_samples)`: a dict of losses (those with "loss" in their name are added up);
    - `predictor()`: what `tools/infer.py` asks, with the protocol of `ovseg.Inferencer`;
    - `task`, `pack` and what else `CoreModel` asks, where the answer is not a segmentation.

    Everything else is frozen: in eval mode whatever `train()` says, and without gradients. State dicts hold
    only what is trained.

    Attributes:
        provenance: name and hash of the checkpoint that was loaded, for manifests (`parts` of `describe()` of
            what `predictor()` gives).
        vocabulary: the classes of `predict`, or None.
        templates: prompt templates of `predict`.

    Args:
        data_preprocessor: by default mmengine's plain one, which moves data and changes nothing.
        init_cfg: of mmengine's `BaseModule`; refused by `tools/train.py`, since it unpickles files.
    """

    encoder: Any
    sample_type = SegDataSample

    def __init__(
        self,
        data_preprocessor: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.provenance = {"name": "untrained", "weights_sha256": ""}

    def trained(self) -> Sequence[str]:
        """Dotted names of the submodules or parameters that are trained."""
        raise NotImplementedError

    def loss(self, inputs: Any, data_samples: Sequence[Any] | None) -> dict[str, Tensor]:
        """Losses of a batch, as the pipeline packed it."""
        raise NotImplementedError

    def predictor(self) -> Any:
        """What answers questions about images, with the protocol of `ovseg.Inferencer`."""
        raise NotImplementedError

    def results(self, images: Sequence[np.ndarray], samples: Sequence[Any]) -> list[Any]:
        """The core's result for each image.

        Raises:
            ConfigError: there is no vocabulary.
        """
        if self.vocabulary is None:
            raise ConfigError(f"{type(self).__name__} has no vocabulary to predict: set model.vocabulary")
        return super().results(images, samples)

    def pack(self, sample: Any, result: Any) -> Any:
        """The sample with `pred_sem_seg` and `confidence`."""
        return pack(sample, result)

    def forward(
        self, inputs: Any, data_samples: Sequence[Any] | None = None, mode: str = "tensor"
    ) -> dict[str, Tensor] | list[Any]:
        """What mmengine calls.

        Args:
            inputs: images as the pipeline packed them.
            data_samples: one per image.
            mode: "loss" or "predict".

        Raises:
            ConfigError: another mode.
        """
        if mode == "loss":
            return self.loss(inputs, data_samples)
        if mode == "predict":
            with torch.no_grad():
                return self.predict(inputs, data_samples)
        raise ConfigError(f"mode must be 'loss' or 'predict', got '{mode}'")

    def freeze(self) -> None:
        """Takes the gradients from all that is not trained, and gives them to what is.

        Raises:
            ConfigError: `trained()` names what is not there.
        """
        self.requires_grad_(False)
        for _, part in self._trained_parts():
            part.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> TrainableModel:
        """Training mode, for what is trained only."""
        super().train(False)
        self.training = mode
        for _, part in self._trained_parts():
            if isinstance(part, nn.Module):
                part.train(mode)
        return self

    def _trained_parts(self) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
        for name in self.trained():
            owner, _, last = name.rpartition(".")
            try:
                part = getattr(self.get_submodule(owner), last)
            except AttributeError:
                part = None
            if not isinstance(part, nn.Module | nn.Parameter):
                raise ConfigError(f"{type(self).__name__}.trained() names '{name}', which it does not have")
            yield name, part

    def is_trained(self, name: str) -> bool:
        """Whether a name of the state dict belongs to what is trained."""
        return any(name == part or name.startswith(f"{part}.") for part in self.trained())

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Tensor]:
        """Only what is trained."""
        state = super().state_dict(*args, **options)
        prefix = options.get("prefix", args[1] if len(args) > 1 else "")
        for name in list(state):
            if name.startswith(prefix) and not self.is_trained(name.removeprefix(prefix)):
                del state[name]
        return state

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """The counterpart: what is frozen is neither asked nor touched."""
        found = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = [name for name in found.missing_keys if self.is_trained(name)]
        if strict and (missing or found.unexpected_keys):
            raise CheckpointError(
                f"the state dict does not fit {type(self).__name__}: missing {missing[:4]}, "
                f"unexpected {list(found.unexpected_keys)[:4]}; trained are {', '.join(self.trained())}"
            )
        return type(found)(missing, found.unexpected_keys)

    def describe(self) -> dict[str, Any]:
        """What a checkpoint says of itself, JSON-ready."""
        return {
            "method": type(self).__name__,
            "encoder": self.encoder.name,
            "weights_sha256": self.encoder.weights_sha256,
            "trained": list(self.trained()),
            "version": ovseg.__version__,
        }

    def load_trained(self, checkpoint: str | Path | Mapping[str, Any], source: str = "") -> TrainableModel:
        """Takes in what another run trained.

        Args:
            checkpoint: a file that `tools/train.py` wrote, or its content. Read without running its pickle.
            source: what messages call it; by default the file's name.

        Raises:
            CheckpointError: no such file, unsafe, of another encoder or method, or of other sizes.
        """
        if not isinstance(checkpoint, Mapping):
            path = Path(checkpoint)
            source = source or str(checkpoint)
            checkpoint = load_checkpoint(path)
            self.provenance = {"name": path.name, "weights_sha256": sha256_of(path)}
        says, wants = dict(checkpoint.get("meta", {}).get(META, {})), self.describe()
        if not says or "state_dict" not in checkpoint:
            raise CheckpointError(
                f"{source} was not written by tools/train.py: expected a checkpoint with 'state_dict' and "
                f"meta['{META}'], it has {', '.join(map(str, list(checkpoint)[:4]))}"
            )
        for key in _IDENTITY:
            if says.get(key) != wants[key]:
                raise CheckpointError(
                    f"{source} does not belong to this model: its {key} is '{says.get(key)}', this model's "
                    f"is '{wants[key]}'. It was trained as {says.get('method')} on {says.get('encoder')}: "
                    f"use the config and the encoder that it was trained with"
                )
        try:
            self.load_state_dict(checkpoint["state_dict"])
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from None
        except RuntimeError as error:
            raise CheckpointError(f"{source} does not fit the model: {error}") from error
        return self


def rgb_batch(inputs: Sequence[Tensor] | Tensor) -> Tensor:
    """Images as pipelines pack them, `(3, H, W)` uint8 BGR of one size, as `(B, 3, H, W)` RGB in [0, 1].

    Raises:
        ConfigError: not bytes, or of several sizes.
    """
    sizes = {tuple(each.shape) for each in inputs}
    if len(sizes) != 1 or any(each.dtype != torch.uint8 for each in inputs):
        kinds = sorted({str(each.dtype) for each in inputs})
        raise ConfigError(
            f"expected images of one size as bytes (3, H, W), got {kinds} {sorted(sizes)}: crop them to one "
            f"size in the pipeline (dict(type='mmseg.RandomCrop', crop_size=...)), and do not normalise"
        )
    return torch.stack(list(inputs)).flip(1).float() / 255
