"""The region route of detection: proposals first, words for them afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from ovseg.answers import Answers, Task, check_tasks
from ovseg.detection_results import Detections
from ovseg.encoders.weights import BUNDLED
from ovseg.errors import ConfigError
from ovseg.heads.regions import RegionHead, phrase_heat, refer
from ovseg.heads.visual_prompts import blur_reverse_masks, masked_crops
from ovseg.images import read_image
from ovseg.inferencer import Inferencer
from ovseg.parts import LOADERS, Part
from ovseg.proposals import ProposalFile, sam_proposals
from ovseg.regions import SAM_OPTIONS
from ovseg.score_map import ScoreMap
from ovseg.structures import DenseFeatures
from ovseg.tasks import Words, with_attributes
from ovseg.windows import whole_patches

#: An image and where it lies -> its proposals. The path may be None.
Proposals = Callable[[np.ndarray, str | None], Detections]
#: An image and its regions -> what CLIP makes of a picture of each, unit length `(N, D)`.
Look = Callable[[np.ndarray, Detections], Tensor]
#: Pictures of regions that CLIP may look at beside the dense features.
CROPS = ("masked", "blurred")


class SamProposals:
    """SAM's automatic masks.

    Args:
        sam: a name ("sam_vitb", "bundled", "sam_vitb=FILE") or a `SamEncoder`.
        options: of segment_anything's `SamAutomaticMaskGenerator`, such as `points_per_side`. The bundled SAM
            has those of `SAM_OPTIONS` by default: it is never as sure as the generator's own filters ask.
    """

    def __init__(self, sam: Part, **options: Any) -> None:
        self.sam: Any = (LOADERS["sam"](sam) if isinstance(sam, str) else sam).eval().requires_grad_(False)
        small = getattr(self.sam, "name", "") == BUNDLED
        self.options = {**SAM_OPTIONS, **options} if small else options

    def __call__(self, image: UInt8[np.ndarray, "H W 3"], path: str | None = None) -> Detections:
        """The proposals of an image."""
        return sam_proposals(self.sam.automatic_masks(image, **self.options), image.shape[:2])


class FileProposals:
    """Proposals that anything else has written, in COCO's form (`ovseg.proposals.ProposalFile`)."""

    def __init__(self, path: str | Path) -> None:
        self.file = ProposalFile(path)

    def __call__(self, image: UInt8[np.ndarray, "H W 3"], path: str | None = None) -> Detections:
        """The proposals of an image, which is found by its name.

        Raises:
            ConfigError: the image has no path.
        """
        if path is None:
            raise ConfigError(
                f"proposals of {self.file.path} are found by the image's name, and it came without"
            )
        return self.file(path, image.shape[:2])


def build_proposals(spec: Any, *, bundled: bool = False) -> Proposals:
    """Where proposals come from.

    Args:
        spec: "sam" or `{"type": "sam", "sam": "sam_vitb", ...options}`; else a file, or `{"type": "file",
            "path": ...}`; or a function of your own.
        bundled: take the bundled SAM where none is named.

    Raises:
        ConfigError: none of these.
    """
    if callable(spec):
        return spec
    options = dict(spec) if isinstance(spec, Mapping) else {}
    if isinstance(spec, str | Path):
        options = {"type": "sam"} if spec == "sam" else {"type": "file", "path": spec}
    kind = options.pop("type", None)
    if kind == "sam":
        return SamProposals(options.pop("sam", "bundled" if bundled else "sam_vitb"), **options)
    if kind == "file" and options.keys() == {"path"}:
        return FileProposals(options["path"])
    raise ConfigError(
        f"proposals are 'sam', a file in COCO's form, dict(type='sam', sam='sam_vitb', points_per_side=32) "
        f"or dict(type='file', path=...), got {spec}"
    )


class RegionRoute:
    """Words for proposals, by the dense features inside and perhaps by CLIP's look at each.

    It answers as an `Inferencer` does; all tasks but "detect" are the inferencer's own.

    Args:
        inferencer: a method with weights.
        proposals: of an image, see `build_proposals`.
        head: says which class a region is; by default `RegionHead()`.
        crops: "masked" (OVSeg) or "blurred" (FGVP) lets CLIP look at a picture of each region, too, which
            costs a pass of the image tower for each; a function looks instead; None does not.
        crop_px: side of those pictures.
        refer: the words are phrases ("the man on the left"), and each means the one region that it fits best
            (`ovseg.heads.regions.refer`); then the head and `crops` are not asked.
    """

    def __init__(
        self,
        inferencer: Inferencer,
        proposals: Proposals,
        *,
        head: RegionHead | None = None,
        crops: str | Look | None = None,
        crop_px: int = 224,
        refer: bool = False,
    ) -> None:
        if isinstance(crops, str) and crops not in CROPS:
            raise ConfigError(f"crops must be {' or '.join(CROPS)}, got '{crops}'")
        self.inferencer = inferencer
        self.proposals = proposals
        self.head = head or RegionHead()
        self.crops = crops
        self.crop_px = crop_px
        self.refer = refer
        self.bank = inferencer.bank
        self.notice = inferencer.notice

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.inferencer.device

    def describe(self) -> dict[str, Any]:
        """All that changes results, JSON-ready."""
        source = self.proposals
        head = {
            each: getattr(self.head, each) for each in ("threshold", "crop_weight", "nms_iou", "part_share")
        }
        crops = self.crops if isinstance(self.crops, str | None) else type(self.crops).__name__
        how = {"crops": crops, "crop_px": self.crop_px, "refer": self.refer}
        route = {"proposals": type(source).__name__} | how | head
        return self.inferencer.describe() | {"region_route": route | getattr(source, "options", {})}

    def answers(
        self,
        images: Iterable[Any],
        classes: Any,
        *,
        tasks: str | Iterable[str] = ("detect",),
        batch_size: int | None = None,
        templates: str | Sequence[str] = "imagenet80",
        regions: Iterable[Any] | None = None,
        paths: Iterable[str | None] | None = None,
    ) -> Iterator[Answers]:
        """Results, lazily and in order; background words compete where the vocabulary has none.

        Args:
            images, classes, tasks, templates, regions: see `Inferencer.answers`.
            batch_size: of no consequence, images are taken one by one.
            paths: where each image lies, for proposals by name; by default the images that are paths.
        """
        named = check_tasks(tasks)
        words = self.inferencer.words(classes, named, templates)
        return self._answers(
            iter(images),
            words,
            lambda features, rest: self.inferencer.ask(features, classes, rest, templates=templates),
            named,
            None if regions is None else iter(regions),
            None if paths is None else iter(paths),
        )

    def _answers(
        self,
        images: Iterator[Any],
        words: Words,
        ask: Callable[[DenseFeatures, Sequence[str]], list[Answers]],
        tasks: Sequence[Task],
        regions: Iterator[Any] | None,
        paths: Iterator[str | None] | None,
    ) -> Iterator[Answers]:
        rest = [task for task in tasks if task != "detect"]
        for given in images:
            image = read_image(given)
            path = next(paths, None) if paths else str(given) if isinstance(given, str | Path) else None
            features = self.inferencer.encode([image], [] if regions is None else [next(regions, None)])
            answer = ask(features, rest)[0] if rest else Answers(image.shape[:2], words.asked.names)
            if "detect" in tasks:
                answer = replace(answer, detections=self.detect(image, features, words, path))
            yield answer

    @torch.no_grad()
    def detect(
        self,
        image: UInt8[np.ndarray, "H W 3"],
        features: DenseFeatures,
        words: Words,
        path: str | None = None,
    ) -> Detections:
        """The proposals of an image that are one of the classes.

        Args:
            image: RGB.
            features: of it alone.
            words: see `Inferencer.words`.
            path: where it lies.
        """
        scorer = self.inferencer.scorer
        proposed = self.proposals(image, path)
        score_map = scorer.refined(scorer.score(features, words.closed or words.asked), features)
        if self.refer:
            return self._meant(score_map, proposed, words)
        crops = [self.look(image, proposed)] if self.crops and len(proposed) else None
        (found,) = self.head(score_map, [proposed], features=features, crops=crops)
        stuff = [k for k, thing in enumerate(words.things) if thing is False]
        named = replace(found.select(~np.isin(found.labels, stuff)), names=words.asked.names)
        return with_attributes(named, features, words)

    def _meant(self, score_map: ScoreMap, proposed: Detections, words: Words) -> Detections:
        """The region that each phrase means."""
        names = words.asked.names
        wanted = [k for k in range(len(names)) if k not in words.asked.background]
        found = [refer(phrase_heat(score_map, k), proposed, names[k]) for k in wanted if len(proposed)]
        if not found:
            return Detections.empty(names, proposed.image_hw, masks=proposed.masks is not None)
        return Detections(
            np.concatenate([each.boxes_xyxy for each in found]),
            np.array(wanted, np.int64),
            np.concatenate([each.scores for each in found]),
            names,
            proposed.image_hw,
            None if proposed.masks is None else tuple(mask for each in found for mask in each.masks or ()),
        )

    def look(
        self, image: UInt8[np.ndarray, "H W 3"], regions: Detections, *, at_once: int = 16
    ) -> Float[Tensor, "N D"]:
        """What CLIP makes of a picture of each region, unit length.

        Args:
            image: RGB.
            regions: of it, at least one.
            at_once: pictures that the image tower takes at a time.

        Raises:
            ConfigError: the tower has no class token.
        """
        if callable(self.crops):
            return self.crops(image, regions)
        encoder = self.inferencer.scorer.encoder
        if not encoder.tower.num_prefix:
            raise ConfigError(f"crops need an image tower with a class token, and {encoder.name} has none")
        if self.crops == "blurred":
            pictures = blur_reverse_masks(image, regions, side=self.crop_px)
        else:
            pictures = (picture for picture, _ in masked_crops(image, regions, side=self.crop_px))
        seen = []
        while batch := list(islice(pictures, at_once)):
            pixels = (
                torch.from_numpy(np.stack(batch)).to(encoder.mean.device).permute(0, 3, 1, 2).float() / 255
            )
            tokens = encoder(whole_patches(pixels, encoder.patch_hw)).prefix[:, 0]
            seen.append(F.normalize(tokens.float(), dim=1))
        return torch.cat(seen)
