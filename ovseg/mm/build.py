"""From a config's dicts to the core's objects.

mmengine does not build nested dicts by itself; what is nested in a method is built here, in sight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from ovseg.devices import resolve_device
from ovseg.errors import ConfigError, OvsegError, unknown_name
from ovseg.inferencer import Inferencer
from ovseg.methods import METHODS
from ovseg.mm.registry import CORE_PARTS, MODELS
from ovseg.scorer import Scorer
from ovseg.text.vocabulary import Vocabulary

#: Parts of a method that a config writes as dicts with a `type`.
PARTS = ("correlation", "windows", "positions")


def plain(value: Any) -> Any:
    """A config's value as ordinary dicts, lists and tuples."""
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(each) for each in value)
    return value


def build_part(config: Any, what: str) -> Any:
    """An object from a dict with a `type`; anything else is handed back.

    Raises:
        ConfigError: no such type, or it does not take these arguments.
    """
    if not isinstance(config, Mapping):
        return config
    options = plain(config)
    if "type" not in options:
        raise ConfigError(f"{what} must be a dict with a `type`, got {options}")
    maker = _find(options.pop("type"), what)
    return _call(maker, options, what)


def build_method(method: str | Mapping[str, Any]) -> tuple[str | Callable[..., Scorer], dict[str, Any]]:
    """What a config calls `method`, as `Inferencer` takes it: a published name or a maker, and options.

    Args:
        method: `dict(type="sclip", temperature=65.0)`, `dict(type="Scorer", correlation=dict(...))`, the
            name of a function or class of your own in `ovseg.mm.registry.MODELS`, or just a name.
    """
    options = plain(dict(type=method) if isinstance(method, str) else method)
    if "type" not in options:
        raise ConfigError(f"method must be a dict with a `type`, such as dict(type='sclip'), got {options}")
    name = options.pop("type")
    if name in METHODS:
        return name, options
    maker = _find(name, "method")

    def build(encoder: Any, **given: Any) -> Scorer:
        for key in PARTS:
            if key in given:
                given[key] = build_part(given[key], f"method.{key}")
        return _call(maker, {"encoder": encoder} | given, f"method '{name}'")

    build.__name__ = name if isinstance(name, str) else name.__name__
    return build, options


def build_inferencer(
    method: str | Mapping[str, Any],
    *,
    encoder: str | None = None,
    weights: str | None = None,
    head: Mapping[str, Any] | None = None,
    device: str = "auto",
    dtype: str = "float32",
    **others: Any,
) -> Inferencer:
    """The handle of the core, from the parts of a config's `model`.

    Args:
        method: see `build_method`; it may name the method's further networks (`guide="dino_vitb8"`) and
            refinements.
        encoder, weights, device, dtype: see `ovseg.Inferencer`.
        others: of `ovseg.Inferencer`, instead of what the method says: guide, sam, refine, compile ...
        head: options of `SegmentationHead`; with another `type`, a head of your own.
    """
    built, options = build_method(method)
    if isinstance(options.get("refine"), list | tuple):
        options["refine"] = [build_part(each, "method.refine") for each in options["refine"]]
    reading = plain(head or {})
    own_head = reading.get("type", "SegmentationHead") != "SegmentationHead"
    reading_options = {} if own_head else {key: reading[key] for key in reading if key != "type"}
    clashing = (options.keys() | reading_options.keys()) & {"encoder", "weights", "device", "dtype", "method"}
    if clashing:
        raise ConfigError(f"'{min(clashing)}' belongs to the model, not into its method or head")
    try:
        inferencer = Inferencer(
            built,
            encoder=encoder,
            weights=weights,
            device=device,
            dtype=dtype,
            **reading_options,
            **(options | others),
        )
    except TypeError as error:
        raise ConfigError(
            f"the model's method {plain(method)} or head {reading} cannot be built: {error}"
        ) from error
    if own_head:
        inferencer.head = build_part(reading, "head")
    return inferencer


def build_vocabulary(config: Any) -> Vocabulary:
    """Classes from whatever a config says: what `Vocabulary.parse` takes, or a dict with a `type`.

    Args:
        config: `"voc21"`, a list, a file, or `dict(type="SceneClasses", split="test")`, the name of a
            registered function and its options.
    """
    spec = plain(config)
    made_by_type = isinstance(spec, dict) and isinstance(spec.get("type"), str)
    return Vocabulary.parse(build_part(spec, "vocabulary") if made_by_type else spec)


def load_config(path: str | Path | Config, options: Mapping[str, Any] | None = None) -> Config:
    """An OpenMMLab config file.

    Args:
        path: the file, or a config already loaded (a copy is made).
        options: `{"model.method.temperature": 50.0}`, which come last.

    Raises:
        ConfigError: no such file, or it cannot be read.
    """
    if isinstance(path, Config):
        config = Config(plain(path._cfg_dict), filename=path.filename)
    else:
        if not Path(path).is_file():
            raise ConfigError(f"no such config: {path}")
        try:
            config = Config.fromfile(path)
        except OvsegError:
            raise
        except Exception as error:
            raise ConfigError(f"config {path} cannot be read: {type(error).__name__}: {error}") from error
    if options:
        config.merge_from_dict(dict(options))
    return config


def is_trainable(config: Config) -> bool:
    """Whether the config's model has a predictor of its own, as all have that `tools/train.py` trains."""
    return str((config.get("model") or {}).get("type", "")).removeprefix("ovseg.") not in ("", "OvSegmentor")


def model_of(config: Config) -> dict[str, Any]:
    """The config's `model`: an OvSegmentor, or one that is trained.

    Raises:
        ConfigError: it has none, or an OvSegmentor without a method.
    """
    model = plain(config.get("model") or {})
    if not is_trainable(config) and "method" not in model:
        raise ConfigError(
            f"config {config.filename or ''} has no model of type OvSegmentor with a method: expected "
            f"model = dict(type='OvSegmentor', method=dict(type='sclip'), vocabulary=..., ...)"
        )
    return model


def predictor_from_config(
    path: str | Path | Config,
    *,
    checkpoint: str | Path | None,
    device: str = "auto",
    **changes: Any,
) -> Any:
    """What a model answers with, in the place of an `Inferencer`: one that is trained, or an OvDetector.

    Args:
        path: the config that it was trained with.
        checkpoint: what `tools/train.py` wrote; None takes the model as the config builds it, untrained.
        device: see `ovseg.Inferencer`.
        changes: of the config's `model`: encoder, dtype ...

    Raises:
        ConfigError: the config's model answers nothing, takes no such change, or has no use for a
            checkpoint.
        CheckpointError: the checkpoint is unsafe or belongs to another model.
    """
    from ovseg.mm.trainable import TrainableModel  # which needs this module

    config = load_config(path)
    try:
        model = _call(MODELS.build, {"cfg": ConfigDict(model_of(config) | changes)}, "model")
    except KeyError as error:
        raise ConfigError(
            f"config {config.filename or ''} has no model of type OvSegmentor or another of ovseg's: {error}"
        ) from error
    if not hasattr(model, "predictor"):
        raise ConfigError(
            f"config {config.filename or ''}: its model is no TrainableModel, but {type(model)}"
        )
    if checkpoint is not None:
        if not isinstance(model, TrainableModel):
            raise ConfigError(
                f"config {config.filename or ''}: nothing of its model is trained, leave the checkpoint out"
            )
        model.load_trained(checkpoint)
    return model.to(resolve_device(device)).eval().predictor()


def inferencer_from_config(
    path: str | Path | Config,
    *,
    classes: Any = None,
    encoder: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
    checkpoint: str | Path | None = None,
    **others: Any,
) -> Any:
    """An `Inferencer` with the method, head and encoder of an OpenMMLab config.

    Args:
        path: the config.
        classes: encoded right away with the config's templates, so that mistakes show early; None waits.
        encoder: instead of the config's.
        weights: a local file; with an `encoder` of its own, the config's weights are not used. Of a config
            that is trained, the same as `checkpoint`.
        device, dtype, others: see `ovseg.Inferencer`.
        checkpoint: of a config that is trained: what `tools/train.py` wrote; then the model's `predictor()`
            is handed back.

    Raises:
        ConfigError: the config cannot be read or says nothing that could be built.
    """
    config = load_config(path)
    model = model_of(config)
    if is_trainable(config):
        given = {"encoder": encoder, "dtype": None if dtype == "float32" else dtype, **others}
        changes = {key: value for key, value in given.items() if value is not None}
        found = predictor_from_config(config, checkpoint=checkpoint or weights, device=device, **changes)
        if classes is not None:
            found.bank(classes, templates_of(config))
        return found
    weights = weights or (None if checkpoint is None else str(checkpoint))
    inferencer = build_inferencer(
        model["method"],
        encoder=encoder or model.get("encoder"),
        weights=weights or (None if encoder else model.get("weights")),
        head=model.get("head"),
        device=device,
        dtype=dtype,
        **others,
    )
    if classes is not None:
        inferencer.bank(classes, templates_of(path))
    return inferencer


def templates_of(path: str | Path | Config) -> Any:
    """The prompt templates that a config asks for."""
    return model_of(load_config(path)).get("templates", "imagenet80")


def vocabulary_of(path: str | Path | Config) -> Vocabulary | None:
    """The classes that a config names, or None; of a trained counter the thing that it counts."""
    model = model_of(load_config(path))
    found = model.get("vocabulary", model.get("singular"))
    return None if found is None else build_vocabulary(found)


@MODELS.register_module(name="SceneClasses")
def scene_classes(split: str = "test") -> tuple[str, ...]:
    """The evaluation classes of the procedural scenes."""
    from ovseg.scenes import SceneSet  # loads numba

    return SceneSet(split).classes


def _find(name: Any, what: str) -> Callable[..., Any]:
    if not isinstance(name, str):
        return name
    try:
        found = MODELS.get(name)
    except RuntimeError:
        found = None
    if found is None:
        raise unknown_name(f"{what} type", name, {*CORE_PARTS, *MODELS.module_dict})
    return found


def _call(maker: Callable[..., Any], options: dict[str, Any], what: str) -> Any:
    try:
        return maker(**options)
    except TypeError as error:
        raise ConfigError(f"{what} cannot be built: {error}") from error
