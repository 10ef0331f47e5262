"""int8 weights: a quarter of the file, a little of the accuracy."""

from __future__ import annotations

import logging
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from ovseg.export.described import Described


def quantize_int8(source: Path, target: Path, described: Described) -> Described:
    """Dynamic quantisation of all products with weights; activations are quantised as they come.

    Convolutions (the patch embedding) stay as they are, for there onnxruntime's int8 is slower than float32,
    and so do position embeddings.

    Args:
        source: a float32 ONNX file.
        target: the file to write.
        described: of the source.

    Returns:
        What the target says of itself.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logger, level = logging.getLogger(), logging.getLogger().level
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)  # it recommends what has been done
        try:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(source, prepared, skip_symbolic_shape=True, skip_onnx_shape=True)
            quantize_dynamic(
                prepared,
                target,
                op_types_to_quantize=["MatMul", "Gemm"],
                nodes_to_exclude=_stacks(onnx.load(prepared)),
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
        finally:
            logger.setLevel(level)
    described = replace(described, quantized="int8")
    model = onnx.load(target)
    onnx.helper.set_model_props(model, described.to_metadata())
    onnx.save(model, target)
    return described


def _stacks(model: Any) -> list[str]:
    """Products with a constant that is no matrix: a grid of position embeddings, which is resampled."""
    other = {each.name for each in model.graph.initializer if len(each.dims) != 2}
    return [node.name for node in model.graph.node if node.op_type == "MatMul" and other & set(node.input)]
