"""Batches for the bundled CLIP: scenes, what covers each patch, and the texts that are true of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ovseg.scenes import Scene, SceneSet, SceneSettings
from ovseg.scenes.atlas import load_concepts
from ovseg.scenes.captions import write_caption
from ovseg.scenes.jit import kernel
from ovseg.scenes.vocabulary import DEFECTS

# Wordings beside the 80 ImageNet templates (open_clip's zero_shot_metadata): those of tools and papers.
EXTRA_TEMPLATES = (
    *("{}", "{}.", "a {}", "the {}", "{} in the scene", "a {} in the scene.", "there is a {}."),
    *("itap of a {}.", "a photo of a {}.", "a photo of the {}", "a picture of {}.", "this is a {}."),
    *("a photo of a small {}.", "a photo of a large {}.", "some {}.", "a scene with {}."),
)
# State words after WinCLIP (Jeong et al., CVPR 2023, table 8 of its supplement) and AnoVL.
FLAWLESS = (
    *("flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect"),
    *("{} without damage", "intact {}", "undamaged {}", "normal {}", "good {}"),
)
DAMAGED = (
    *("damaged {}", "{} with flaw", "{} with defect", "{} with damage", "broken {}", "defective {}"),
    *("abnormal {}", "{} with a defect", "{} with a flaw", "imperfect {}"),
)


@dataclass(frozen=True)
class Batch:
    """One training batch, without texts.

    Attributes:
        images: (B, 3, H, W) uint8.
        share: (B, R, N) float32, how much of a patch each region covers; sums to 1 over regions.
        damage: (B, N) float32, how much of a patch is damaged.
        region_names: per image, the class name of each region (objects, then backgrounds).
        region_defects: per image, the defect of each region or None.
        num_objects: per image, how many of the regions are objects.
    """

    images: Tensor
    share: Tensor
    damage: Tensor
    region_names: list[tuple[str, ...]]
    region_defects: list[tuple[str | None, ...]]
    num_objects: list[int]

    def captions(self, rng: np.random.Generator) -> list[str]:
        """One sentence an image, objects in a new order."""
        sentences = []
        for names, defects, count in zip(
            self.region_names, self.region_defects, self.num_objects, strict=True
        ):
            order = rng.permutation(count)
            sentences.append(
                write_caption(
                    tuple(names[k] for k in order),
                    tuple(defects[k] for k in order),
                    names[count:],
                    int(rng.integers(4)),
                )
            )
        return sentences


@kernel
def patch_shares(regions, defects, patch, count):
    """Share of each patch that each region covers, and that is damaged.

    Args:
        regions: (H, W) int32 in [0, count).
        defects: (H, W) bool.
        patch: patch side in px; H and W are multiples of it.
        count: number of regions.

    Returns:
        (count, h * w) and (h * w,) float32.
    """
    height, width = regions.shape
    columns = width // patch
    share = np.zeros((count, height // patch * columns), np.float32)
    damage = np.zeros(share.shape[1], np.float32)
    unit = np.float32(1.0 / (patch * patch))
    for y in range(height):
        for x in range(width):
            place = y // patch * columns + x // patch
            share[regions[y, x], place] += unit
            if defects[y, x]:
                damage[place] += unit
    return share, damage


def scene_regions(scene: Scene, classes: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(H, W) int32 region numbers of a scene, objects first, then its backgrounds; and all their names."""
    count = len(scene.names)
    regions = scene.instances - 1
    ground = scene.instances == 0
    for place, name in enumerate(scene.backgrounds):
        regions[ground & (scene.labels == classes.index(name))] = count + place
    return regions, scene.names + scene.backgrounds


class SceneBatches(Dataset):
    """Batches of training scenes by number: batch k of equal arguments is always the same."""

    def __init__(
        self, *, seed: int, batch: int, sizes_hw: list[tuple[int, int]], patch: int, settings: SceneSettings
    ) -> None:
        self.scenes = SceneSet("train", seed, length=1, settings=settings)
        self.batch, self.sizes_hw, self.patch = batch, sizes_hw, patch

    def __getitem__(self, number: int) -> Batch:
        size_hw = self.sizes_hw[number % len(self.sizes_hw)]
        rows = []
        for index in range(number * self.batch, (number + 1) * self.batch):
            scene = self.scenes.render(index, size_hw)
            regions, names = scene_regions(scene, self.scenes.classes)
            share, damage = patch_shares(regions, scene.defects, self.patch, len(names))
            rows.append((scene, share, damage, names))
        most = max(share.shape[0] for _, share, _, _ in rows)
        shares = np.zeros((self.batch, most, rows[0][1].shape[1]), np.float32)
        for place, (_, share, _, _) in enumerate(rows):
            shares[place, : share.shape[0]] = share
        images = np.stack([scene.image for scene, *_ in rows])
        return Batch(
            images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
            share=torch.from_numpy(shares),
            damage=torch.from_numpy(np.stack([damage for _, _, damage, _ in rows])),
            region_names=[names for *_, names in rows],
            region_defects=[s.instance_defects + (None,) * len(s.backgrounds) for s, *_ in rows],
            num_objects=[len(s.names) for s, *_ in rows],
        )


def stream(batches: SceneBatches, first: int, last: int, workers: int) -> Iterator[Batch]:
    """Batches first..last-1, prepared in `workers` processes (0: in this one)."""
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first, last),
        num_workers=workers,
        prefetch_factor=3 if workers else None,
    )
    return iter(loader)


@cache
def synonyms() -> dict[str, tuple[str, ...]]:
    """Class name -> other words for it."""
    return {c.name: c.synonyms for c in load_concepts() if c.synonyms}


def phrase(name: str, rng: np.random.Generator) -> str:
    """A prompt for a class: a template of the kind that inference uses, sometimes with a synonym."""
    if name in synonyms() and rng.random() < 0.15:
        others = synonyms()[name]
        name = others[rng.integers(len(others))]
    if rng.random() < 0.5:
        return OPENAI_IMAGENET_TEMPLATES[rng.integers(len(OPENAI_IMAGENET_TEMPLATES))](name)
    return EXTRA_TEMPLATES[rng.integers(len(EXTRA_TEMPLATES))].format(name)


def state_phrases(name: str, defect: str | None, rng: np.random.Generator) -> tuple[str, str]:
    """A "damaged" and a "flawless" prompt for one object, the first true if `defect` is not None.

    Half of the damaged ones name a kind of damage: the true one, or any for an intact object.
    """
    noun = "object" if rng.random() < 0.15 else name
    good = FLAWLESS[rng.integers(len(FLAWLESS))].format(noun)
    if rng.random() < 0.5:
        bad = DAMAGED[rng.integers(len(DAMAGED))].format(noun)
    else:
        kinds = tuple(DEFECTS)
        bad = DEFECTS[defect or kinds[rng.integers(len(kinds))]].format(noun)
    if rng.random() < 0.5:
        template = EXTRA_TEMPLATES[rng.integers(len(EXTRA_TEMPLATES))]
        good, bad = template.format(good), template.format(bad)
    return bad, good
