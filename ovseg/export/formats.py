"""A traced image side as a file of each format, and such files run again."""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovseg.errors import ConfigError, MissingDependencyError
from ovseg.export.described import NAME, Described
from ovseg.export.image_side import ImageSide

#: Formats, and how their files end.
FORMATS = {"onnx": ".onnx", "torchscript": ".pt", "torch-export": ".pt2"}
OPSET = 18
AXES = ("batch", "height", "width", "queries")

#: An exported file as a function of pixels `(B, 3, H, W)` and text `(Q, D)` to its outputs by name.
Run = Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]]


@contextmanager
def tracing() -> Iterator[None]:
    """No gradients, no fused attention that only torch knows, no warnings about what tracing is."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def examples(side: ImageSide, dim: int, size_hw: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Inputs to trace with, of no size that the tower was trained on."""
    tower = side.scorer.encoder.tower
    cells = [count for count in (7, 9, 10, 11) if count not in tower.trained_hw][:2]
    hw = size_hw or tuple(count * patch + 3 for count, patch in zip(cells, tower.patch_hw, strict=True))
    return torch.rand(2, 3, *hw), torch.nn.functional.normalize(torch.randn(3, dim), dim=1)


def trace(side: ImageSide, dim: int, size_hw: tuple[int, int] | None = None) -> torch.export.ExportedProgram:
    """The graph, for any batch, height, width and number of queries.

    Args:
        side: in eval mode, float32, on the CPU.
        dim: of the text vectors.
        size_hw: fixed height and width.

    Raises:
        ConfigError: torch cannot trace it; the message has torch's reason.
    """
    free = torch.export.Dim.DYNAMIC
    image = {0: free} if size_hw is not None else {0: free, 2: free, 3: free}
    with tracing():
        try:
            program = torch.export.export(
                side, examples(side, dim, size_hw), dynamic_shapes=(image, {0: free}), strict=False
            )
            return program.run_decompositions({torch.ops.aten.cdist.default: _distances})
        except Exception as error:  # torch.export has no one class for what it cannot do
            raise ConfigError(
                f"this method with these networks cannot be exported: {_first(error)}"
            ) from error


def _distances(a: Tensor, b: Tensor, p: float = 2.0, mode: int | None = None) -> Tensor:
    """Euclidean distances by one product, in float64: in float32 near points would lose their digits."""
    del p, mode
    a, b = a.double(), b.double()
    squared = a.square().sum(-1)[..., None] + b.square().sum(-1)[..., None, :] - 2 * a @ b.mT
    return squared.clamp(min=0).sqrt().float()


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def check_onnx() -> None:
    """Raises MissingDependencyError unless the packages that write and run ONNX files are there."""
    missing = [
        name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise MissingDependencyError(f"the format onnx needs {', '.join(missing)}: pip install 'ovseg[onnx]'")


def write(
    side: ImageSide, path: Path, format: str, described: Described, size_hw: tuple[int, int] | None = None
) -> None:
    """The image side as a file.

    Args:
        side: see `trace`.
        path: of the file.
        format: of `FORMATS`.
        described: goes into the file.
        size_hw: fixed height and width; a TorchScript takes any size all the same.

    Raises:
        ConfigError: torch or the format cannot say what the method does.
        MissingDependencyError: packages for ONNX are missing.
    """
    if format == "torchscript":
        with tracing():
            traced: Any = torch.jit.trace(
                side, examples(side, described.dim, size_hw), check_trace=False, strict=False
            )
            torch.jit.save(traced, str(path), _extra_files={NAME: described.to_json()})
        return
    if format == "onnx":
        check_onnx()
    program = trace(side, described.dim, size_hw)
    if format == "torch-export":
        with tracing():
            torch.export.save(program, path, extra_files={NAME: described.to_json()})
        return
    with tracing():
        try:
            onnx: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=["image", "text"],
                output_names=list(side.output_names),
                verbose=False,
            )
        except Exception as error:
            raise ConfigError(f"ONNX has no operator for a part of this method: {_cause(error)}") from error
        _name_axes(onnx.model.graph)
        onnx.model.metadata_props.update(described.to_metadata())
        onnx.save(str(path))


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return _first(error) if isinstance(error, Exception) else type(error).__name__


def _name_axes(graph: Any) -> None:
    """`batch`, `height`, `width` and `queries` instead of torch's numbered symbols."""
    import onnx_ir

    image, text = (each.shape for each in graph.inputs)
    free = zip((image[0], image[2], image[3], text[0]), AXES, strict=True)
    names = {str(axis.value): name for axis, name in free if isinstance(axis, onnx_ir.SymbolicDim)}

    def named(axis: Any) -> Any:
        if not isinstance(axis, onnx_ir.SymbolicDim) or axis.value is None:
            return axis
        return re.sub(r"\bs\d+\b", lambda found: names.get(found[0], found[0]), axis.value)

    values = [*graph.inputs, *graph.outputs, *(out for node in graph for out in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = onnx_ir.Shape([named(axis) for axis in value.shape])


def runner(path: Path, format: str, names: tuple[str, ...]) -> Run:
    """A written file as a function, for comparison.

    Args:
        path: of the file.
        format: of `FORMATS`.
        names: of the outputs, in order.
    """
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda image, text: dict(
            zip(names, session.run(list(names), {"image": image, "text": text}), strict=True)
        )
    module: Any
    with tracing():
        module = torch.jit.load(path) if format == "torchscript" else torch.export.load(path).module()

    def run(image: np.ndarray, text: np.ndarray) -> Mapping[str, np.ndarray]:
        with tracing():
            outputs = module(torch.from_numpy(image), torch.from_numpy(text))
        return {name: each.numpy() for name, each in zip(names, outputs, strict=True)}

    return run
