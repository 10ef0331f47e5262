"""Randomness as a function of seed and place: a resumed run sees what an uninterrupted one sees.

No generator's state has to be stored: the order of a dataset follows from (seed, epoch), the augmentation of
a draw from (seed, number of the draw). Neither depends on the number of workers or on where a run stopped,
and `n` processes with batches of `b` see together what one sees with batches of `n * b`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import Dataset, Sampler

from ovseg.mm.registry import DATA_SAMPLERS, DATASETS, LOOPS


def seed_of(*place: int) -> int:
    """A well mixed 32-bit seed of some numbers from 0."""
    return int(np.random.SeedSequence(place).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Python's, numpy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # mmcv's transforms ask the global generator
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generators seeded, and as they were afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


class Draw(int):
    """The index of a sample, and the seed of what is random about it this time."""

    seed: int

    def __new__(cls, index: int, seed: int) -> Draw:
        """An int that also pickles its seed, for workers."""
        draw = super().__new__(cls, index)
        draw.seed = seed
        return draw

    def __reduce__(self) -> tuple[type[Draw], tuple[int, int]]:
        return Draw, (int(self), self.seed)


@lru_cache(maxsize=2)
def _order(size: int, seed: int) -> list[int]:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()


@DATA_SAMPLERS.register_module()
class DrawSampler(Sampler):
    """Draws without replacement, epoch after epoch; each draw carries its seed.

    Args:
        dataset: its length counts.
        shuffle: a new order for every epoch.
        seed: of everything; None makes one up, the same for all processes.
        endless: goes on for ever, for loops that count iterations. Else an epoch, filled up from its
            beginning until all processes have equally many.
    """

    def __init__(
        self, dataset: Any, shuffle: bool = True, seed: int | None = None, endless: bool = True
    ) -> None:
        self.rank, self.world_size = get_dist_info()
        self.dataset, self.shuffle, self.endless = dataset, shuffle, endless
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0
        self._first = 0

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.world_size)

    def __iter__(self) -> Iterator[Draw]:
        first, self._first = self._first, 0
        numbers = count(first) if self.endless else range(first, len(self))
        begin = 0 if self.endless else self.epoch * len(self)
        return (self._draw((begin + number) * self.world_size + self.rank) for number in numbers)

    def _draw(self, number: int) -> Draw:
        size = len(self.dataset)
        per_epoch = size if self.endless else len(self) * self.world_size
        epoch, place = divmod(number, per_epoch)
        index = _order(size, seed_of(self.seed, 0, epoch))[place % size] if self.shuffle else place % size
        return Draw(index, seed_of(self.seed, 1, number))

    def skip(self, num_samples: int) -> None:
        """The next iteration begins after so many draws of this process."""
        self._first = num_samples

    def set_epoch(self, epoch: int) -> None:
        """The epoch that comes next."""
        self.epoch = epoch


@DATASETS.register_module()
class SeededDataset(Dataset):
    """A dataset whose pipelines draw the same random numbers for the same draw.

    Args:
        dataset: the config of the dataset that is asked.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: int) -> Any:
        with seeded(draw.seed if isinstance(draw, Draw) else seed_of(int(draw))):
            return self.dataset[int(draw)]


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """Epochs that can be resumed in their middle; mmengine's own begin the epoch anew."""

    def run_epoch(self) -> None:
        """One epoch, or the rest of it."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        done = self._iter - self._epoch * len(self.dataloader)
        if done and hasattr(self.dataloader.sampler, "skip"):
            self.dataloader.sampler.skip(done * self.dataloader.batch_size)
        for index, batch in enumerate(self.dataloader, start=done):
            self.run_iter(index, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
