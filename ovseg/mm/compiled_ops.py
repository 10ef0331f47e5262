"""A stand-in for mmcv's compiled operators, so that mmdet's models train and predict on a plain install.

mmcv compiles its operators for one torch at a time, and most installs have none: then `import mmdet.models`
fails. What detectors such as RetinaNet, Faster and Mask R-CNN, FCOS, ATSS or DETR really call, torchvision
has.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from ovseg.errors import MissingDependencyError

NAME = "mmcv._ext"


def install() -> bool:
    """Puts the stand-in where mmcv looks for its operators; nothing happens where mmcv has its own.

    Call it before the first import of mmdet (`import ovseg.mm.detection` does it): mmdet and mmcv look once,
    at import, whether there are operators.

    Returns:
        Whether the operators are the stand-in's.
    """
    if NAME not in sys.modules and importlib.util.find_spec(NAME) is None:
        sys.modules[NAME] = _StandIn(NAME)
    return isinstance(sys.modules.get(NAME), _StandIn)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that stay, the surest first; with `offset` 1, far edges are inclusive."""
    far = boxes.new_tensor([0, 0, offset, offset])
    return torchvision.ops.nms(boxes + far, scores, iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fills `output`; computed in float32, which coordinates need."""
    _check_average(pool_mode)
    size = aligned_height, aligned_width
    pooled = torchvision.ops.roi_align(
        input.float(), rois.float(), size, spatial_scale, sampling_ratio, aligned
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fills `grad_input`."""
    _check_average(pool_mode)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad_output.float(),
            rois.float(),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fills `output` `(N, C)`; a target of C is background. mmdet asks for it on GPUs only."""
    output.copy_(_focal_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fills `grad_input` with the slope of each element's loss."""
    with torch.enable_grad():
        logits = input.detach().requires_grad_()
        (slope,) = torch.autograd.grad(_focal_loss(logits, target, weight, gamma, alpha).sum(), logits)
    grad_input.copy_(slope)


def _focal_loss(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    classes = logits.shape[1]
    truth = F.one_hot(target, classes + 1)[:, :classes].to(logits)
    loss = torchvision.ops.sigmoid_focal_loss(logits, truth, alpha, gamma)
    if not weight.numel():
        return loss
    return loss * torch.cat([weight, weight.new_ones(1)])[target][:, None]


def _check_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise _absent("roi_align with pool_mode 'max'")


def _absent(name: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"{name} is one of mmcv's compiled operators, which this install of mmcv lacks, and ovseg's stand-in "
        f"has only {', '.join(OPERATORS)}: compile mmcv for this torch, or take a model that does without"
    )


#: What the stand-in can do; any other name is there, too, and raises when called.
OPERATORS: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (
        nms,
        roi_align_forward,
        roi_align_backward,
        sigmoid_focal_loss_forward,
        sigmoid_focal_loss_backward,
    )
}


class _StandIn(ModuleType):
    """Has every name, since mmcv checks for each when it is imported."""

    def __init__(self, name: str) -> None:
        super().__init__(name, doc=__doc__)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.__dict__.update(OPERATORS)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*args: Any, **kwargs: Any) -> Any:
            raise _absent(name)

        return absent
