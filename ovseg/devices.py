"""Devices and precisions by name."""

from __future__ import annotations

import torch

from ovseg.errors import ConfigError

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: str = "auto") -> torch.device:
    """A device by name; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ConfigError: no such device here.
    """
    has_mps = torch.backends.mps.is_available()
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"unknown device '{device}': use auto, cpu, cuda, cuda:1 ... or mps") from None
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device '{device}' was asked for, and torch sees {torch.cuda.device_count()} CUDA devices: use "
            f"device 'cpu', or install a CUDA build of torch"
        )
    if resolved.type == "mps" and not has_mps:
        raise ConfigError("device 'mps' was asked for and is not available here: use device 'cpu'")
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """A dtype by name.

    Raises:
        ConfigError: unknown, or fp16 on a CPU.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype '{dtype}': use {', '.join(DTYPES)}")
    if dtype == "fp16" and device.type == "cpu":
        raise ConfigError(
            "dtype fp16 is refused on the CPU: it has no fast half-precision kernels, and some activations "
            "of CLIP overflow; use bf16 (fast where the processor has it) or float32"
        )
    return DTYPES[dtype]
