"""mmsegmentation's own open-vocabulary models (SAN, CAT-Seg) behind ovseg's tools and vocabulary."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import mmseg
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from torch import Tensor, nn

import ovseg
from ovseg.answers import Answers, check_tasks
from ovseg.encoders.checkpoints import load_state_dict, sha256_of
from ovseg.errors import CheckpointError, ConfigError
from ovseg.images import read_image
from ovseg.mm import catseg
from ovseg.mm.build import build_vocabulary, plain
from ovseg.mm.foreign_models import register_models
from ovseg.mm.registry import MODELS
from ovseg.mm.trainable import TrainableModel
from ovseg.results import Segmentation, void_label
from ovseg.text.vocabulary import Vocabulary

PREFIX = "mmseg::"
#: No initialisation gives a parameter that large.
UNSET = 100.0
#: Steps of a test pipeline that read files; images come as arrays here.
READERS = ("LoadImageFromFile", "LoadAnnotations", "LoadImageFromNDArray")


class _Weights:
    """What manifests call the model's weights."""

    name, weights_sha256 = "random", ""


@MODELS.register_module()
class MMSegModel(TrainableModel):
    """A segmentor of mmseg whose classes are texts.

    Its architecture, its sizes and its test pipeline are those of mmseg's own config. Nothing is downloaded
    and nothing unpickled: `pretrained` and `init_cfg` are taken out, and the weights are a checkpoint of the
    whole model. Train it with mmseg's own tools.

    Args:
        segmentor: mmseg's config: "mmseg::san/san-vit-b16_coco-stuff164k-640x640.py" is one of those in the
            package; else a file, which may be relative to `project`.
        vocabulary: the classes, see `ovseg.mm.build.build_vocabulary`.
        project: for CAT-Seg, its folder, see `ovseg.mm.catseg`.
        probability: how a pixel's best class becomes a confidence: "softmax" of the logits (CAT-Seg), or the
            "value" itself, cut to 1 (SAN: a sum over masks of their probabilities).
        head: `dict(threshold=0.3)`: less sure pixels become background, or void where there is none.
        options: of the segmentor, merged over its config (`dict(test_cfg=dict(mode="whole"))`).
        clip_shape: for CAT-Seg, see `ovseg.mm.catseg.build_backbone`.
        trainable: of `TrainableModel`.
    """

    encoder: Any

    def __init__(
        self,
        *,
        segmentor: str,
        vocabulary: Any = None,
        project: str | None = None,
        probability: Literal["softmax", "value"] = "softmax",
        head: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        clip_shape: Sequence[int] | None = None,
        templates: Any = None,
        **trainable: Any,
    ) -> None:
        super().__init__(**trainable)
        if templates is not None:
            raise ConfigError("a model of mmseg has prompt templates of its own: leave templates out")
        reading = {key: value for key, value in plain(head or {}).items() if value}
        threshold = reading.pop("threshold", 0.0)
        if reading or not 0 <= threshold <= 1:
            raise ConfigError(
                f"head of a model of mmseg: a threshold from 0 to 1 and nothing else, got {plain(head)}"
            )
        self.vocabulary = None if vocabulary is None else build_vocabulary(vocabulary)
        self.probability, self.threshold, self.config_name = probability, threshold, segmentor
        self.encoder = _Weights()
        config = read_config(segmentor, project)
        config.merge_from_dict({"model": plain(options or {})})
        with DefaultScope.overwrite_default_scope("mmseg"):
            self.segmentor: Any = build_segmentor(config.model, project, clip_shape)
            steps = [each for each in test_pipeline(config) if each["type"].split(".")[-1] not in READERS]
            self.pipeline = Compose(steps)
        self._words: tuple[str, ...] = ()
        self.freeze()

    def trained(self) -> Sequence[str]:
        """The whole model is in its checkpoint."""
        return ("segmentor",)

    def loss(self, inputs: Any, data_samples: Any = None) -> dict[str, Tensor]:
        """There is none here."""
        raise ConfigError(
            f"{self.config_name} is trained by mmsegmentation's own tools (tools/train.py of its checkout); "
            f"its checkpoints run here"
        )

    def load_trained(self, checkpoint: str | Path | Mapping[str, Any], source: str = "") -> MMSegModel:
        """A checkpoint of mmseg's, read without running its pickle.

        Raises:
            CheckpointError: unsafe, damaged, or of another model.
        """
        state = dict(checkpoint) if isinstance(checkpoint, Mapping) else load_state_dict(Path(checkpoint))
        found = self.segmentor.load_state_dict(state, strict=False)
        lost = [name for name in found.missing_keys if not name.endswith("num_batches_tracked")]
        if lost:
            raise CheckpointError(
                f"{source or checkpoint} is no checkpoint of {self.config_name}: {len(lost)} of its "
                f"parameters are missing, such as {', '.join(lost[:3])}"
            )
        self._words = ()  # texts are encoded anew
        if hasattr(self.segmentor, "text_encoder"):
            self.segmentor.text_encoder.cache = {}
        if not isinstance(checkpoint, Mapping):
            path = Path(checkpoint)
            self.encoder.name, self.encoder.weights_sha256 = path.name, sha256_of(path)
            self.provenance = {"name": path.name, "weights_sha256": self.encoder.weights_sha256}
        return self

    def predictor(self) -> MMSegPredictor:
        """The task "segment", with the protocol of `ovseg.Inferencer`."""
        return MMSegPredictor(self)

    def look_for(self, words: Sequence[str]) -> None:
        """The classes of the next images; encoded where they are other than the last."""
        if tuple(words) == self._words:
            return
        segmentor = self.segmentor
        if hasattr(segmentor, "text_encoder"):
            segmentor.text_encoder.dataset_name = None
            segmentor.text_encoder.vocabulary = list(words)
        else:
            catseg.set_words(segmentor.backbone, words)
        segmentor.num_classes = segmentor.out_channels = len(words)
        segmentor.decode_head.num_classes = segmentor.decode_head.out_channels = len(words)
        segmentor.decode_head.threshold = 0.5  # asked for a single class, where argmax has no choice
        self._words = tuple(words)

    @torch.no_grad()
    def segment(self, image: np.ndarray, vocabulary: Vocabulary) -> Segmentation:
        """One image, RGB."""
        words, class_of_word = texts_of(vocabulary)
        before = {"img": np.ascontiguousarray(image[..., ::-1]), "img_path": "", "reduce_zero_label": False}
        before |= {"img_shape": image.shape[:2], "ori_shape": image.shape[:2], "seg_fields": []}
        packed = self.pipeline(before)
        batch = {"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # their text tower remarks on its mask in every block
            self.look_for(words)
            (sample,) = self.segmentor.test_step(batch)
        scores = sample.seg_logits.data.float()
        scores = scores.softmax(dim=0) if self.probability == "softmax" else scores.clamp(0, 1)
        index = class_of_word.to(scores.device)[:, None, None].expand_as(scores)
        scores = scores.new_zeros(len(vocabulary), *scores.shape[1:]).scatter_reduce(0, index, scores, "amax")
        confidence, labels = (each.cpu().numpy() for each in scores.max(dim=0))
        void = void_label(len(vocabulary))
        fallback = min(vocabulary.background) if vocabulary.background else void
        return Segmentation(
            labels=np.where(confidence < self.threshold, fallback, labels).astype(
                np.uint8 if void == 255 else np.uint16
            ),
            names=vocabulary.names,
            confidence=confidence,
            background=vocabulary.background,
            colors=vocabulary.colors,
            void=void,
        )


class MMSegPredictor:
    """What `tools/infer.py` asks a model of mmseg."""

    def __init__(self, model: MMSegModel) -> None:
        self.model = model
        random = not model.encoder.weights_sha256
        self.notice = "no checkpoint was loaded: the weights are random" if random else None

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.model.parameters()).device

    def describe(self) -> dict[str, Any]:
        """All that changes results, JSON-ready."""
        model = self.model
        return {
            "method": model.config_name,
            "encoder": model.encoder.name,
            "weights_sha256": model.encoder.weights_sha256,
            "parts": {},
            "threshold": model.threshold,
            "versions": {"ovseg": ovseg.__version__, "torch": torch.__version__, "mmseg": mmseg.__version__},
        }

    def bank(self, classes: Any, templates: Any = None) -> tuple[Vocabulary, None]:
        """Words, parsed and encoded; templates are the model's own."""
        vocabulary = Vocabulary.parse(classes)
        self.model.look_for(texts_of(vocabulary)[0])
        return vocabulary, None

    def __call__(self, images: Iterable[Any], classes: Any, **options: Any) -> Iterator[Segmentation]:
        """A class for every pixel. See `answers`."""
        found = self.answers(images, classes, **options)
        return (each.segmentation for each in found if each.segmentation is not None)

    def answers(
        self,
        images: Iterable[Any],
        classes: Any,
        *,
        tasks: str | Iterable[str] = ("segment",),
        batch_size: int | None = None,
        templates: Any = None,
        regions: Iterable[Any] | None = None,
    ) -> Iterator[Answers]:
        """Results, lazily and in order; images are taken one by one.

        Raises:
            ConfigError: another task than "segment".
        """
        named = check_tasks(tasks)
        if named != ("segment",):
            raise ConfigError(
                f"{self.model.config_name} of mmseg answers the task segment, not {', '.join(named)}"
            )
        vocabulary, _ = self.bank(classes)
        return self._answers(images, vocabulary)

    def _answers(self, images: Iterable[Any], vocabulary: Vocabulary) -> Iterator[Answers]:
        for image in images:
            found = self.model.segment(read_image(image), vocabulary)
            yield Answers(found.image_hw, vocabulary.names, segmentation=found)


def texts_of(vocabulary: Vocabulary) -> tuple[list[str], Tensor]:
    """All names of all classes, and the class of each; descriptions are no names."""
    named = [(name, k) for k, each in enumerate(vocabulary.classes) for name in each.prompts or (each.name,)]
    return [name for name, _ in named], torch.tensor([k for _, k in named])


def read_config(spec: str, project: str | None = None) -> Config:
    """A config of mmseg.

    Args:
        spec: see `MMSegModel`.
        project: a folder that a file may be relative to.

    Raises:
        ConfigError: there is none.
    """
    if spec.startswith(PREFIX):
        path = Path(mmseg.__file__).parent / ".mim" / "configs" / spec.removeprefix(PREFIX)
    else:
        path = Path(spec)
        if project is not None and not path.is_file():
            path = Path(project).expanduser() / spec
    if not path.is_file():
        raise ConfigError(f"no config of mmseg at {path}: expected 'mmseg::FAMILY/NAME.py' or a file")
    return Config.fromfile(path, import_custom_modules=False)


def build_segmentor(config: ConfigDict, project: str | None, clip_shape: Sequence[int] | None) -> nn.Module:
    """The model of a config, with random weights."""
    from mmseg.registry import MODELS as THEIRS

    register_models("mmseg")
    model = ConfigDict(without_downloads(plain(config)))
    if model.get("backbone", {}).get("type") == "CLIPOVCATSeg":
        if project is None:
            raise ConfigError("CAT-Seg is no part of the mmsegmentation package: set model.project")
        catseg.import_project(project)
        shape = None if clip_shape is None else tuple(clip_shape)
        model.backbone = {"type": catseg.build_backbone, "config": plain(model.backbone), "clip_shape": shape}
    elif "text_encoder" in model:
        model.text_encoder.dataset_name, model.text_encoder.vocabulary = None, ["thing"]
    else:
        raise ConfigError(
            f"the classes of a {model.get('type')} are not texts: expected a MultimodalEncoderDecoder (SAN) "
            f"or a backbone CLIPOVCATSeg (CAT-Seg)"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of options of losses, which nobody asks here
        built = revert_sync_batchnorm(THEIRS.build(model))
    with torch.no_grad():
        for parameter in built.parameters():  # some are left as the memory was, for a checkpoint to fill
            if not bool((parameter.abs() < UNSET).all()):
                nn.init.normal_(parameter, std=0.02)
    return built


def without_downloads(config: Any) -> Any:
    """A config without what mmengine would fetch and unpickle."""
    if isinstance(config, Mapping):
        banned = ("pretrained", "init_cfg")
        return {key: without_downloads(value) for key, value in config.items() if key not in banned}
    if isinstance(config, list | tuple):
        return type(config)(without_downloads(each) for each in config)
    return config


def test_pipeline(config: Config) -> list[dict[str, Any]]:
    """How a config's test images are read."""
    dataset = config.get("test_dataloader", {}).get("dataset", {})
    while "pipeline" not in dataset and "dataset" in dataset:
        dataset = dataset["dataset"]
    if "pipeline" not in dataset:
        raise ConfigError(f"{config.filename} says no pipeline of its test images (test_dataloader)")
    return [dict(each) for each in dataset["pipeline"]]
