"""One method at its VOC settings against its floor: bare forwards of the same encoders on the same inputs.

Weights are random, architectures those that the methods were published with, so nothing is downloaded. Run by
`tools/benchmark.py`, each case in a process of its own:

    python benchmarks/methods.py '{"method": "proxyclip", "device": "cpu", "dtype": "float32", "repeats": 1}'
"""

from __future__ import annotations

import ctypes
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

from ovseg.devices import DTYPES
from ovseg.encoders.bundled_sam import build_sam
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.dino import DinoEncoder
from ovseg.encoders.found import FoundEncoder
from ovseg.encoders.sam import SamEncoder
from ovseg.encoders.weights import find_part
from ovseg.heads import SegmentationHead
from ovseg.methods import CONTROLS, PUBLISHED_PARTS, build_method, parts_of
from ovseg.methods.clip_dinoiser import DinoiserConvolutions
from ovseg.mm.build import load_config, model_of, plain, vocabulary_of
from ovseg.parts import build_refinements, refinement_names
from ovseg.scorer import Scorer
from ovseg.structures import TextBank
from ovseg.windows import whole_patches

ROOT = Path(__file__).resolve().parents[1]
_SAM_HEAD = dict(num_multimask_outputs=3, iou_head_depth=3)


@dataclass(frozen=True)
class Case:
    """What to measure.

    Attributes:
        method: its name.
        size_hw: of the image.
        refine: as for `Inferencer`; CorrCLIP's own vote is "own".
        tiny: small networks, for tests.
    """

    method: str
    size_hw: tuple[int, int] = (375, 500)
    device: str = "cpu"
    dtype: str = "float32"
    refine: str = "none"
    repeats: int = 3
    threads: int | None = None
    compile: bool = False
    tiny: bool = False


def clip_tower(image_hw: tuple[int, int], *, tiny: bool) -> VisionTransformer:
    """CLIP's ViT-B/16 with random weights, made for images of a size."""
    size = dict(width=64, layers=4, heads=4) if tiny else dict(width=768, layers=12, heads=12)
    return VisionTransformer(
        image_size=image_hw,
        patch_size=16,
        mlp_ratio=4.0,
        output_dim=32 if tiny else 512,
        act_layer=QuickGELU,
        **size,
    )


def vit(name: str, image_hw: tuple[int, int] | None, *, tiny: bool) -> nn.Module:
    """A ViT of timm, by its name in ovseg's table, with random weights; None: for its own image size."""
    options: dict[str, Any] = dict(embed_dim=48, depth=2, num_heads=3) if tiny else {}
    if image_hw is not None:
        options["img_size"] = image_hw
    return timm.create_model(find_part(name, "dino").architecture, num_classes=0, **options)


def sam_model(*, tiny: bool) -> nn.Module:
    """SAM ViT-B with random weights."""
    if not tiny:
        from segment_anything import sam_model_registry

        return sam_model_registry["vit_b"](checkpoint=None)
    config = {
        "image_encoder": dict(
            img_size=64, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2.0, out_chans=16,
            use_rel_pos=True, window_size=4, global_attn_indexes=(1,),
        ),
        "prompt_encoder": dict(mask_in_chans=4),
        "mask_decoder": dict(
            **_SAM_HEAD, iou_head_hidden_dim=16, transformer=dict(depth=2, num_heads=2, mlp_dim=32)
        ),
    }  # fmt: skip
    return build_sam(config)


def build_parts(case: Case) -> dict[str, nn.Module]:
    """What a method takes beside CLIP; CorrCLIP is given its regions, and so needs no SAM."""
    published = PUBLISHED_PARTS.get(case.method, {})
    makers: dict[str, Callable[[], nn.Module]] = {
        "guide": lambda: DinoEncoder(vit(published["guide"], None, tiny=case.tiny)),
        "sam": lambda: SamEncoder(sam_model(tiny=case.tiny)),
        "saliency": lambda: FoundEncoder(DinoEncoder(vit(saliency_trunk(case.method), None, tiny=case.tiny))),
        "convolutions": lambda: DinoiserConvolutions(64, 16) if case.tiny else DinoiserConvolutions(),
    }
    wanted = [part for part in parts_of(case.method) if (case.method, part) != ("corrclip", "sam")]
    if "sam" in case.refine and "sam" not in wanted:
        wanted.append("sam")
    return {part: makers[part]() for part in wanted}


def saliency_trunk(method: str) -> str:
    """The ViT that a method's saliency stands on."""
    return find_part(PUBLISHED_PARTS[method]["saliency"], "found").trunk


def build_scorer(case: Case, parts: dict[str, nn.Module], options: dict[str, Any]) -> Scorer:
    """The method around random networks."""
    encoder = ClipEncoder(clip_tower((224, 224), tiny=case.tiny))
    takes = {part: parts.get(part) for part in parts_of(case.method)}
    scorer = build_method(case.method, encoder, **takes, **options)
    if (steps := refinement_names(None if case.refine == "own" else case.refine)) is not None:
        scorer.refine = nn.ModuleList(build_refinements(steps, parts))
    networks: list[Any] = [encoder, *parts.values()]
    for module in networks:
        module.cast(DTYPES[case.dtype])
        if case.compile and hasattr(module, "compile_blocks"):
            module.compile_blocks()
    return scorer.eval().requires_grad_(False).to(case.device)


def window_batches(scorer: Scorer, image: np.ndarray) -> Sequence[Tensor]:
    """The windows that a method gives its encoders, as it batches them."""
    pixels = scorer.prepare([image]).image
    fit = getattr(scorer, "fit", None)  # Trident's own resize
    pixels = pixels if fit is None else fit(pixels)
    hw = (pixels.shape[-2], pixels.shape[-1])
    windows = scorer.windows.windows(hw, scorer.encoder.patch_hw)
    return windows.cut(pixels, scorer.encoder.mean).split(scorer.windows.max_batch)


def floor_calls(
    case: Case, scorer: Scorer, image: np.ndarray
) -> list[tuple[Callable[[Tensor], Any], Tensor]]:
    """The forwards of open_clip, timm and segment_anything themselves, one after the other."""
    published = PUBLISHED_PARTS.get(case.method, {})
    batches = window_batches(scorer, image)
    dtype = DTYPES[case.dtype]
    calls: list[tuple[Callable[[Tensor], Any], Tensor]] = []

    def add(build: Callable[[tuple[int, int]], nn.Module], patch_hw: tuple[int, int], call: str) -> None:
        fitted = [whole_patches(batch, patch_hw) for batch in batches]
        network = build((fitted[0].shape[-2], fitted[0].shape[-1]))
        network = network.eval().requires_grad_(False).to(case.device, dtype)
        calls.extend((getattr(network, call), each.to(dtype)) for each in fitted)

    add(partial(clip_tower, tiny=case.tiny), scorer.encoder.patch_hw, "forward")
    parts = parts_of(case.method)
    trunks = [published["guide"]] if "guide" in parts else []
    if "saliency" in parts:
        trunks.append(saliency_trunk(case.method))
    for name in trunks:
        patch_hw = DinoEncoder(vit(name, None, tiny=case.tiny)).patch_hw
        add(partial(vit, name, tiny=case.tiny), patch_hw, "forward_features")
    if "sam" in parts and case.method != "corrclip":
        sam: Any = sam_model(tiny=case.tiny)
        encoder = sam.image_encoder.eval().requires_grad_(False).to(case.device, dtype)
        side = encoder.img_size
        calls.append((encoder.forward, torch.rand(1, 3, side, side, device=case.device, dtype=dtype)))
    return calls


def random_bank(model: dict[str, Any], config: Any, dim: int) -> TextBank:
    """The config's words with random embeddings."""
    vocabulary = vocabulary_of(config)
    assert vocabulary is not None, "configs of datasets have a vocabulary"
    embeddings = F.normalize(torch.randn(len(vocabulary.queries), dim), dim=1)
    classes = torch.tensor([query.class_index for query in vocabulary.queries])
    return TextBank(embeddings, classes, vocabulary.names, vocabulary.background)


def build_pass(case: Case, image: np.ndarray) -> tuple[Scorer, Callable[[], Any]]:
    """The scorer, and a whole pass: image in, labels out."""
    name = "proxyclip" if case.method in CONTROLS else case.method  # a control has windows like its rival
    (path,) = (ROOT / "configs" / name).glob(f"{name}_vitb16*_voc21.py")
    config = load_config(path, {"model.method.type": case.method})
    model = model_of(config)
    options = {key: value for key, value in plain(model["method"]).items() if key != "type"}
    scorer = build_scorer(case, build_parts(case), options)
    head = SegmentationHead(
        **{key: value for key, value in plain(model.get("head", {})).items() if key != "type"}
    )
    bank = random_bank(model, config, 32 if case.tiny else 512).to(case.device)
    regions = [grid_regions(case.size_hw)] if case.method == "corrclip" else []

    @torch.no_grad()
    def whole_pass() -> Any:
        return head(scorer(scorer.prepare([image], regions), bank, case.size_hw))

    return scorer, whole_pass


def grid_regions(hw: tuple[int, int], rows: int = 5, columns: int = 8) -> np.ndarray:
    """Regions for a method that takes some: about as many as SAM finds."""
    ys, xs = (np.arange(side) * count // side for side, count in zip(hw, (rows, columns), strict=True))
    return (ys[:, None] * columns + xs + 1).astype(np.int32)


class Meter:
    """Seconds and peak memory of calls, on a CPU or a GPU."""

    def __init__(self, device: str) -> None:
        self.cuda = torch.device(device).type == "cuda"

    def seconds(self, call: Callable[[], Any]) -> float:
        """Of one call."""
        begin = time.perf_counter()
        call()
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    def extra_mb(self, call: Callable[[], Any]) -> float:
        """How far memory rises above what is held before the call, in MB (2^20 bytes)."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            call()
            return (torch.cuda.max_memory_allocated() - held) / 2**20
        try:  # give back what loading left free, and forget its peak
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        except (OSError, AttributeError):
            pass  # then the peak may be loading's, and the figure is too high
        held = _status_mb("VmRSS")
        call()
        return _status_mb("VmHWM") - held


def _status_mb(field: str) -> float:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(case: Case) -> dict[str, float]:
    """Median seconds of a pass and of its floor, their ratio, and the extra peak memory of a pass.

    Passes and floors take turns, and the ratio is the median of the ratios of neighbours, so that a busy
    machine slows both. Memory is that of the first pass, before the floor's networks exist.
    """
    if case.threads:
        torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    image = np.random.default_rng(0).integers(0, 256, (*case.size_hw, 3)).astype(np.uint8)
    scorer, whole_pass = build_pass(case, image)
    meter = Meter(case.device)
    extra_mb = meter.extra_mb(whole_pass)
    calls = floor_calls(case, scorer, image)

    @torch.no_grad()
    def floor() -> None:
        for forward, pixels in calls:
            forward(pixels)

    meter.seconds(floor)  # warm up
    meter.seconds(whole_pass)
    pairs = [(meter.seconds(whole_pass), meter.seconds(floor)) for _ in range(case.repeats)]
    return {
        "seconds": statistics.median(ours for ours, _ in pairs),
        "floor_seconds": statistics.median(bare for _, bare in pairs),
        "ratio": statistics.median(ours / bare for ours, bare in pairs),
        "extra_mb": extra_mb,
        "windows": float(sum(map(len, window_batches(scorer, image)))),
    }


def measure_bare(case: Case) -> dict[str, float]:
    """One forward of ViT-B/16 on eight images of 224 x 224, in float32 and in the case's dtype."""
    if case.threads:
        torch.set_num_threads(case.threads)
    meter, times = Meter(case.device), {}
    for dtype in (torch.float32, DTYPES[case.dtype]):
        tower = clip_tower((224, 224), tiny=case.tiny).eval().requires_grad_(False).to(case.device, dtype)
        pixels = torch.rand(8, 3, 224, 224, device=case.device, dtype=dtype)
        meter.seconds(lambda: tower(pixels))  # noqa: B023  # called at once
        times[dtype] = statistics.median(
            meter.seconds(lambda: tower(pixels))  # noqa: B023
            for _ in range(case.repeats)
        )
    full, other = times[torch.float32], times[DTYPES[case.dtype]]
    return {"float32_seconds": full, "seconds": other, "speedup": full / other}


def main(words: Sequence[str]) -> None:
    """Measures the case given as JSON and prints the figures as JSON."""
    case = Case(**json.loads(words[0]))
    case = replace(case, size_hw=(case.size_hw[0], case.size_hw[1]))
    print(json.dumps(measure_bare(case) if case.method == "bare" else measure(case)))


if __name__ == "__main__":
    main(sys.argv[1:])
