"""From a method's name to an `AnomalyInferencer` with weights."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ovseg.anomaly_detectors import MemoryDetector, WordDetector
from ovseg.anomaly_inferencer import AnomalyInferencer, Good
from ovseg.anomaly_results import AnomalyThreshold
from ovseg.anomaly_structures import StateBank
from ovseg.devices import resolve_device, resolve_dtype
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.clip_loading import default_encoder, load_clip
from ovseg.encoders.weights import BUNDLED
from ovseg.errors import ConfigError, unknown_name
from ovseg.heads.anomaly import AnomalyHead
from ovseg.heads.memory_bank import MemoryBankHead
from ovseg.methods.anomalyclip import AnomalyCLIP, ObjectPrompts
from ovseg.methods.anovl import AnoVL
from ovseg.methods.winclip import WinCLIP
from ovseg.parts import Part, load_parts
from ovseg.text.encoder import TextEncoder
from ovseg.text.states import STATE_PROMPTS, StatePrompts, state_bank
from ovseg.windows import WindowPlan

MEMORY = "patch-memory"
#: Methods that compare with words: the class, the published side of the image, its state prompts.
WORD_METHODS: dict[str, tuple[Callable[..., nn.Module], int, str | None]] = {
    "winclip": (WinCLIP, 240, "winclip"),
    "anovl": (AnoVL, 240, "anovl"),
    "anomalyclip": (AnomalyCLIP, 518, None),
}
ANOMALY_METHODS = (*WORD_METHODS, MEMORY)
#: What AnomalyDINO looks with, and how it smooths.
PUBLISHED_GUIDE, MEMORY_SIGMA_PX = "dinov2_vits14", 4.0
#: Sides for the bundled models instead, which have seen small pictures only; chosen on validation scenes.
BUNDLED_SIDES: dict[str, dict[str, Any]] = {
    "winclip": {"size": 160},
    "anovl": {"size": 224},
    "anomalyclip": {"size": 224},
    MEMORY: {"short_side": 224},
}


def given_threshold(threshold: AnomalyThreshold | str | Path | float | None) -> AnomalyThreshold | None:
    """A threshold as users name it: a file that `AnomalyThreshold.save` wrote, or a number.

    Raises:
        ConfigError: neither.
    """
    if threshold is None or isinstance(threshold, AnomalyThreshold):
        return threshold
    try:
        value = float(threshold)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return AnomalyThreshold.load(Path(threshold))  # type: ignore[arg-type]
    span = (0.0, max(1.0, 2 * value))
    return AnomalyThreshold(value, value, span, span, how="given")


def options_of(method: str) -> dict[str, Any]:
    """A method's options and their published defaults.

    Raises:
        ConfigError: no such method.
    """
    if method not in ANOMALY_METHODS:
        raise unknown_name("anomaly method", method, ANOMALY_METHODS)
    around: dict[str, Any] = {"crop": None, "stride": None, "max_batch": 32}
    if method == MEMORY:
        maker: Callable[..., Any] = MemoryBankHead
    else:
        maker, size, _ = WORD_METHODS[method]
        around |= {"size": size, "short_side": None}
    own = inspect.signature(maker).parameters.values()
    options = {p.name: p.default for p in own if p.kind is inspect.Parameter.KEYWORD_ONLY}
    if method == MEMORY:
        del options["windows"]  # made of crop and stride
    return options | around


def build_anomaly_inferencer(
    method: str = "winclip",
    *,
    encoder: str | None = None,
    weights: str | Path | None = None,
    guide: Part | None = None,
    prompts: str | Path | StatePrompts | Mapping[str, Any] | ObjectPrompts | None = None,
    good: Good | None = None,
    classes: Any = "object",
    shots: int | None = None,
    threshold: AnomalyThreshold | str | Path | float | None = None,
    quantile: float = 0.95,
    pixel_quantile: float = 0.995,
    sigma_px: float | None = None,
    device: str = "auto",
    dtype: str = "float32",
    **options: Any,
) -> AnomalyInferencer:
    """An anomaly method with weights, ready for images.

    Args:
        method: of `ANOMALY_METHODS`: "winclip", "anovl", "anomalyclip" (words), "patch-memory" (good images
            and a guide).
        encoder, weights: see `ovseg.Inferencer`; "patch-memory" has no use for them.
        guide: for "patch-memory": a name of `ovseg.encoders.weights`, or a module; None takes DINOv2 ViT-S/14
            as published, or the bundled guide where `encoder` is "bundled" or would be.
        prompts: for words: a name of `STATE_PROMPTS`, your own as `StatePrompts` or a mapping with its
            fields, or any of these by the name of the thing, with "*" for all others; for "anomalyclip" a
            file of learned prompts, which it cannot do without unless it is given one of the others.
        good, classes, shots, quantile, pixel_quantile: see `AnomalyInferencer.learn`.
        threshold: a file of `AnomalyThreshold.save` or a number for images and pixels alike; None takes one
            from the good images, where there are two or more.
        sigma_px: of a Gaussian on the full-size map; None is the method's own.
        device, dtype: see `ovseg.Inferencer`.
        options: see `options_of`; with the bundled models images are smaller (`BUNDLED_SIDES`). `crop` and
            `stride` cut large images into windows, so that maps are at native resolution; `windows` of
            WinCLIP are its own, in patches.

    Raises:
        ConfigError: unknown method or option, or something that the method has no use for.
        CheckpointError: weights are missing or unusable.
    """
    small = BUNDLED in ((encoder or default_encoder()), guide) and guide in (None, BUNDLED)
    given = known_options(method, (BUNDLED_SIDES.get(method, {}) if small else {}) | options)
    if weights is not None and encoder is None:
        raise ConfigError(f"weights '{weights}' need an encoder: name the model that they are of")
    judge = given_threshold(threshold)
    target = resolve_device(device)
    torch_dtype = resolve_dtype(dtype, target)
    crop, stride, max_batch = (given.pop(name) for name in ("crop", "stride", "max_batch"))
    windows = None if crop is None else WindowPlan(crop, stride or max(crop // 2, 1), max_batch=max_batch)
    about: dict[str, Any] = {
        "method": method,
        "options": {name: _plain(value) for name, value in given.items()},
        "crop": crop,
        "stride": windows and windows.stride,
        "dtype": dtype,
    }
    detector: MemoryDetector | WordDetector
    words: Callable[[str], StateBank] | None = None
    notice = None
    if method == MEMORY:
        if prompts is not None:
            raise ConfigError(f"'{MEMORY}' compares with good images and has no use for prompts")
        part = guide or (BUNDLED if (encoder or default_encoder()) == BUNDLED else PUBLISHED_GUIDE)
        network: Any = load_parts({"guide": part})["guide"]
        detector = MemoryDetector(MemoryBankHead(network, windows=windows, **given))
        name = part if isinstance(part, str) else type(part).__name__
        about["parts"] = {"guide": {"name": name, "weights_sha256": getattr(network, "weights_sha256", "")}}
    else:
        if guide is not None:
            raise ConfigError(f"anomaly method '{method}' asks no guide; '{MEMORY}' does")
        maker, _, published = WORD_METHODS[method]
        said = prompts_by_name(method, published if prompts is None else prompts)
        loaded = load_clip(encoder or default_encoder(), weights=None if weights is None else Path(weights))
        network = ClipEncoder.of(loaded)
        size, short_side = given.pop("size"), given.pop("short_side")
        built = maker(network, **given)
        detector = WordDetector(built, size=size, windows=windows, short_side=short_side).eval()
        text = TextEncoder.of(loaded).to(target)
        words = partial(_encoded, text, said)
        notice = loaded.notice
        about |= {
            "encoder": loaded.name,
            "weights_sha256": loaded.weights_sha256,
            "prompts": {name: _plain(each) for name, each in said.items()},
        }
    network.cast(torch_dtype)
    detector.to(target)
    sigma = (MEMORY_SIGMA_PX if method == MEMORY else 0.0) if sigma_px is None else sigma_px
    inferencer = AnomalyInferencer(
        detector,
        words=words,
        head=AnomalyHead(threshold=judge, sigma_px=sigma),
        about=about,
        notice=notice,
        device=target,
    )
    if good is not None:
        inferencer.learn(
            good,
            classes,
            shots=shots,
            threshold=judge is None,
            quantile=quantile,
            pixel_quantile=pixel_quantile,
        )
    return inferencer


def known_options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A method's options, those given instead of their defaults.

    Raises:
        ConfigError: no such method or option; the message lists them and the nearest match.
    """
    known = options_of(method)
    for name in options:
        if name not in known:
            raise unknown_name(f"option of anomaly method '{method}'", name, known)
    return known | dict(options)


def state_prompts(method: str, prompts: Any) -> StatePrompts | ObjectPrompts:
    """Prompts as users name them; see `build_anomaly_inferencer`.

    Raises:
        ConfigError: none where there must be some, an unknown name, or learned ones with another method.
        CheckpointError: a file that holds no learned prompts.
        VocabularyError: unusable states or templates.
    """
    if prompts is None:
        raise ConfigError(
            f"'{method}' compares with learned prompts: give their checkpoint (prompts=FILE), or a set of "
            f"state prompts ({', '.join(STATE_PROMPTS)})"
        )
    if isinstance(prompts, StatePrompts):
        return prompts
    if isinstance(prompts, Mapping):
        fields = {"normal", "abnormal", "templates"}
        if set(prompts) != fields:
            raise ConfigError(
                f"state prompts are a mapping of {', '.join(sorted(fields))}, got {list(prompts)}"
            )
        return StatePrompts(**{name: tuple(prompts[name]) for name in sorted(fields)})
    if isinstance(prompts, str) and prompts in STATE_PROMPTS:
        return STATE_PROMPTS[prompts]
    if method != "anomalyclip":
        raise unknown_name("set of state prompts", str(prompts), STATE_PROMPTS)
    if isinstance(prompts, ObjectPrompts):
        return prompts
    if not Path(prompts).is_file():
        raise ConfigError(
            f"no learned prompts at '{prompts}': give the checkpoint's path, or one of "
            f"{', '.join(STATE_PROMPTS)}"
        )
    return ObjectPrompts.from_file(Path(prompts)).eval().requires_grad_(False)


def prompts_by_name(method: str, prompts: Any) -> dict[str, StatePrompts | ObjectPrompts]:
    """Prompts by the name of the thing; "*" is for all others. See `state_prompts`."""
    if not isinstance(prompts, Mapping) or "normal" in prompts:
        return {"*": state_prompts(method, prompts)}
    if "*" not in prompts:
        raise ConfigError(f'prompts by name need "*" for all other things, got {", ".join(prompts)}')
    return {name: state_prompts(method, each) for name, each in prompts.items()}


@torch.no_grad()
def _encoded(text: TextEncoder, said: Mapping[str, StatePrompts | ObjectPrompts], name: str) -> StateBank:
    prompts = said.get(name, said["*"])
    if isinstance(prompts, ObjectPrompts):
        return prompts(text)  # the same for any name
    return state_bank(text, name, prompts)


def _plain(value: Any) -> Any:
    """As JSON can say it."""
    if isinstance(value, nn.Module):
        state = b"".join(
            each.detach().cpu().float().numpy().tobytes() for each in value.state_dict().values()
        )
        return {"type": type(value).__name__, "sha256": hashlib.sha256(state).hexdigest()}
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(each) for name, each in asdict(value).items()}
    return list(value) if isinstance(value, tuple) else value
