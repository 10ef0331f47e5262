"""Numbers as classes: bins of integers, what each stands for, and how it reads as a sentence.

Source: CLIP-EBC, arXiv 2403.09281; github.com/Yiming-M/CLIP-EBC at b52a5944, configs/reduction_*.json and
models/clip/utils.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ovseg.errors import ConfigError, unknown_name

#: Mean number of objects in the blocks of a training set that hold at least so many:
#: (block in pixels, least) -> data set -> mean.
OPEN_BIN_MEANS: dict[tuple[int, int], dict[str, float]] = {
    (8, 2): {"sha": 2.24479, "shb": 2.15171, "nwpu": 2.10737, "qnrf": 2.09296},
    (8, 4): {"sha": 4.29992, "shb": 4.41009, "nwpu": 4.21931, "qnrf": 4.21937},
    (16, 8): {"qnrf": 9.23349},
    (32, 19): {"qnrf": 23.01897},
}

# fmt: off
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
# fmt: on
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


@dataclass(frozen=True)
class CountBins:
    """Bins of the number of objects in a block.

    Attributes:
        bounds: least and most number of each, inclusive; the last is open (infinite).
        centres: what each stands for.
        block_px: side of a block.

    Raises:
        ConfigError: bins do not rise from 0, leave a gap, or lack a centre.
    """

    bounds: tuple[tuple[float, float], ...]
    centres: tuple[float, ...]
    block_px: int

    def __post_init__(self) -> None:
        if len(self.bounds) != len(self.centres) or not self.bounds:
            raise ConfigError(f"{len(self.bounds)} bins need as many centres, got {len(self.centres)}")
        wanted = 0.0
        for low, high in self.bounds:
            if low != wanted or high < low:
                raise ConfigError(
                    f"bins must follow each other from 0 without gap or overlap: after {wanted - 1:g} comes "
                    f"{wanted:g}, got [{low:g}, {high:g}]"
                )
            wanted = high + 1
        if not math.isinf(wanted):
            raise ConfigError(f"the last bin must be open (infinite), it ends at {wanted - 1:g}")
        if self.block_px < 1:
            raise ConfigError(f"a block has at least 1 pixel a side, got {self.block_px}")

    @classmethod
    def published(cls, dataset: str, *, block_px: int = 8, most: int = 4) -> CountBins:
        """One bin for each number below `most`, one for the rest, with the training set's mean.

        Args:
            dataset: "sha", "shb", "nwpu" or "qnrf".
            block_px: 8, 16 or 32.
            most: 2 or 4 with blocks of 8, 8 with 16, 19 with 32.

        Raises:
            ConfigError: no such setting was published.
        """
        if (block_px, most) not in OPEN_BIN_MEANS:
            known = ", ".join(f"{block} px up to {end}" for block, end in OPEN_BIN_MEANS)
            raise ConfigError(
                f"no published bins for blocks of {block_px} px up to {most}; there are: {known}"
            )
        means = OPEN_BIN_MEANS[block_px, most]
        if dataset not in means:
            raise unknown_name("data set of bins", dataset, means)
        return cls.single(most, means[dataset], block_px=block_px)

    @classmethod
    def single(cls, most: int, open_centre: float, *, block_px: int) -> CountBins:
        """One bin for each number below `most`, one for the rest, which stands for `open_centre`."""
        bounds = *((float(n), float(n)) for n in range(most)), (float(most), math.inf)
        return cls(bounds, (*map(float, range(most)), open_centre), block_px)

    def __len__(self) -> int:
        return len(self.bounds)

    def index(self, numbers: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """The bin of each number of objects."""
        lows = torch.tensor([low for low, _ in self.bounds[1:]], device=numbers.device)
        return torch.bucketize(numbers.contiguous(), lows, right=True)

    def prompts(
        self, *, singular: str = "person", plural: str = "people", digits: bool = False
    ) -> tuple[str, ...]:
        """A sentence for each bin.

        Args:
            singular, plural: what is counted.
            digits: numbers as digits instead of words.
        """

        def number(value: float) -> str:
            return str(int(value)) if digits else number_word(int(value))

        sentences = []
        for low, high in self.bounds:
            if math.isinf(high):
                sentences.append(f"There are more than {number(low)} {plural}.")
            elif low != high:
                sentences.append(f"There are between {number(low)} and {number(high)} {plural}.")
            elif low > 1:
                sentences.append(f"There are {number(low)} {plural}.")
            else:
                none = low == 0 and not digits
                sentences.append(f"There is {'no' if none else number(low)} {singular}.")
        return tuple(sentences)


def number_word(value: int) -> str:
    """An English number word from 0 to 99; above, digits."""
    if value < len(_ONES):
        return _ONES[value]
    if value > 99:
        return str(value)
    tens, ones = divmod(value, 10)
    return _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")
