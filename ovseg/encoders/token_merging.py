"""Fewer tokens, block by block: alike tokens are merged, and dealt out again where a dense map is wanted.

Source: PiToMe, Tran et al., NeurIPS 2024 (arXiv 2405.16148), whose energy says how many others a token is
like; ToMe, Bolya et al., ICLR 2023 (arXiv 2210.09461), whose rule is the plain alternative. Settings and
variants of github.com/hchautran/PiToMe at 550b5dee. That code is CC BY-NC 4.0: nothing of it is here, only
formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ovseg.encoders.towers import Block
from ovseg.errors import ConfigError, unknown_name

#: Who goes where. "pitome": of the 2r tokens of highest energy every other goes to its nearest of the rest.
#: "pitome_bsm": all tokens are dealt into two by energy, and the r closest links merge. "tome": the same,
#: dealt by place. "text": Gaussian energy, the highest r go to the next r.
Rule = Literal["pitome", "pitome_bsm", "tome", "text"]
#: Rows of the similarity matrix that are held at once.
ROWS = 1024


@dataclass(frozen=True)
class Membership:
    """Which token each token has become.

    Attributes:
        owner: `(B, N)`, the place of every former token among the new ones.
        length: how many new ones there are.
    """

    owner: Int[Tensor, "B N"]
    length: int

    def sizes(self, sizes: Float[Tensor, "B N"]) -> Float[Tensor, "B M"]:
        """How many tokens each new one stands for."""
        return sizes.new_zeros(len(sizes), self.length).scatter_add(1, self.owner, sizes)

    def mean(self, tokens: Float[Tensor, "B N C"], sizes: Float[Tensor, "B N"]) -> Float[Tensor, "B M C"]:
        """New tokens, the mean of their members weighted by their sizes."""
        index = self.owner[..., None].expand_as(tokens)
        total = tokens.new_zeros(len(tokens), self.length, tokens.shape[-1])
        total = total.scatter_add(1, index, tokens * sizes[..., None].to(tokens.dtype))
        return total / self.sizes(sizes)[..., None].to(tokens.dtype)

    def spread(self, tokens: Float[Tensor, "B M C"]) -> Float[Tensor, "B N C"]:
        """Un-merged: every former token gets what its new one holds."""
        return tokens.gather(1, self.owner[..., None].expand(-1, -1, tokens.shape[-1]))

    def then(self, later: Membership) -> Membership:
        """Both steps as one."""
        return replace(later, owner=later.owner.gather(1, self.owner))


@dataclass(frozen=True)
class TokenMerging:
    """How an encoder merges.

    Attributes:
        keep: share of the patch tokens that each block leaves, 0.5 to 1 (rho in the paper).
        margin: cosines above `margin * (1 - block / depth)` count as alike; published are 0.9 for CLIP and
            0.75 for DeiT and MAE (mu).
        alpha: how little the unlike ones count.
        rule: see `Rule`.
        first: the first block that merges.
        proportional: a token counts in attention as often as it has members (ToMe's proportional attention;
            the published PiToMe blocks do not).

    Raises:
        ConfigError: no such rule, or a value out of its range.
    """

    keep: float = 0.9
    margin: float = 0.9
    alpha: float = 1.0
    rule: Rule = "pitome"
    first: int = 0
    proportional: bool = False

    def __post_init__(self) -> None:
        if not 0.5 <= self.keep <= 1:
            raise ConfigError(f"keep must be 0.5 to 1 (at most every token finds a partner), got {self.keep}")
        if not 0 <= self.margin < 1 or self.first < 0:
            raise ConfigError(
                f"margin must be 0 to below 1 and first 0 or more, got {self.margin}, {self.first}"
            )
        if self.rule not in get_args(Rule):
            raise unknown_name("rule", self.rule, get_args(Rule))

    def plan(self, metric: Float[Tensor, "B T d"], *, margin: float, num_prefix: int = 1) -> Membership:
        """Who is merged with whom; prefix tokens with nobody, and they stay first.

        Args:
            metric: what says how alike tokens are: keys, mean over heads.
            margin: of this block.
            num_prefix: class and register tokens.
        """
        unit = F.normalize(metric.float(), dim=-1)
        patches = unit[:, num_prefix:]
        number = patches.shape[1]
        merged = int(number - number * self.keep)
        if self.rule == "tome":
            total = unit.shape[1]
            merged = int(total - total * self.keep)  # counts the prefix, as published
            places = torch.arange(number, device=unit.device).expand(len(unit), -1)
            # by place in the whole sequence, prefix included: every other token is a goal
            even, odd = (places[:, (first + num_prefix) % 2 :: 2] for first in (0, 1))
            return _linked(patches, even, odd, min(merged, even.shape[1]), num_prefix, in_place=True)
        order = energy(patches, self._likeness(margin)).argsort(dim=1, descending=True, stable=True)
        if self.rule == "pitome_bsm":
            return _linked(patches, order[:, ::2], order[:, 1::2], merged, num_prefix)
        top, rest = order[:, : 2 * merged], order[:, 2 * merged :]
        leaving, goals = (
            (top[:, :merged], top[:, merged:]) if self.rule == "text" else (top[:, ::2], top[:, 1::2])
        )
        nearest = (_take(patches, leaving) @ _take(patches, goals).mT).argmax(dim=-1)
        return _membership(rest, goals, leaving, nearest, num_prefix)

    def _likeness(self, margin: float) -> Callable[[Tensor], Tensor]:
        if self.rule == "text":
            return lambda cosine: torch.exp(-0.5 * ((1 - cosine) / (1 - margin)) ** 2)
        return lambda cosine: F.elu(cosine - margin, alpha=self.alpha)


def energy(unit: Float[Tensor, "B n d"], likeness: Callable[[Tensor], Tensor]) -> Float[Tensor, "B n"]:
    """How many others each token is like, itself included: the mean of `likeness(cosine)` over all."""
    rows = [likeness(part @ unit.mT).mean(dim=-1) for part in unit.split(ROWS, dim=1)]
    return torch.cat(rows, dim=1)


def _take(tokens: Float[Tensor, "B n d"], places: Int[Tensor, "B m"]) -> Float[Tensor, "B m d"]:
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


def _linked(
    unit: Float[Tensor, "B n d"],
    sources: Int[Tensor, "B s"],
    goals: Int[Tensor, "B g"],
    merged: int,
    num_prefix: int,
    *,
    in_place: bool = False,
) -> Membership:
    """The `merged` sources that are closest to any goal join it; the others stay, the closest first."""
    closeness, nearest = (_take(unit, sources) @ _take(unit, goals).mT).max(dim=-1)
    order = closeness.argsort(dim=1, descending=True, stable=True)
    leaving, staying = order[:, :merged], order[:, merged:]
    if in_place:
        staying = staying.sort(dim=1).values
    return _membership(
        sources.gather(1, staying), goals, sources.gather(1, leaving), nearest.gather(1, leaving), num_prefix
    )


def _membership(
    staying: Int[Tensor, "B s"],
    goals: Int[Tensor, "B g"],
    leaving: Int[Tensor, "B r"],
    joins: Int[Tensor, "B r"],
    num_prefix: int,
) -> Membership:
    """New order: the prefix, those that stay, the goals. `joins` says which goal each that leaves joins."""
    batch, device = len(staying), staying.device
    prefix = torch.arange(num_prefix, device=device).expand(batch, -1)
    kept = torch.cat([prefix, staying + num_prefix, goals + num_prefix], dim=1)
    owner = torch.empty(batch, kept.shape[1] + leaving.shape[1], dtype=torch.long, device=device)
    owner.scatter_(1, kept, torch.arange(kept.shape[1], device=device).expand(batch, -1))
    owner.scatter_(1, leaving + num_prefix, joins + num_prefix + staying.shape[1])
    return Membership(owner, kept.shape[1])


class TokenStream:
    """Tokens on their way through the blocks of a tower, merged or not.

    Attributes:
        tokens: `(B, M, C)`, as they are now.
        sizes: `(B, M)`, how many of the first tokens each stands for.
        members: where those have gone; None until the first merge.

    Args:
        tokens: that enter the first block.
        merging: how; None leaves all tokens.
        depth: blocks of the tower.
        num_prefix: prefix tokens.
    """

    def __init__(
        self, tokens: Float[Tensor, "B N C"], merging: TokenMerging | None, *, depth: int, num_prefix: int
    ) -> None:
        self.tokens = tokens
        self.sizes = tokens.new_ones(tokens.shape[:2], dtype=torch.float32)
        self.members: Membership | None = None
        self.merging, self.depth, self.num_prefix = merging, depth, num_prefix

    def run(self, block: Block, index: int, *, ffn_input: bool = False) -> Tensor | None:
        """Block number `index`; tokens merge between its attention and its FFN.

        Args:
            block: the next one.
            index: from 0.
            ffn_input: hand out the normalised FFN input, un-merged.
        """
        merging = self.merging
        if merging is None or index < merging.first or merging.keep == 1:
            if not ffn_input and self.members is None:
                self.tokens = block(self.tokens)
                return None
            self._attend(block)
        else:
            keys = self._attend(block)
            margin = merging.margin * (1 - index / self.depth)
            self._merge(merging.plan(keys.mean(dim=1), margin=margin, num_prefix=self.num_prefix))
        normalised = self._spread(block.ffn_input(self.tokens)) if ffn_input else None
        self.tokens = block.feed_forward(self.tokens)
        return normalised

    @property
    def full(self) -> Float[Tensor, "B N C"]:
        """All tokens in their first order, un-merged."""
        return self._spread(self.tokens)

    def _attend(self, block: Block) -> Float[Tensor, "B G M d"]:
        q, k, v = block.split(self.tokens)
        proportional = self.merging is not None and self.merging.proportional and self.members is not None
        bias = self.sizes.log()[:, None, None].to(q.dtype) if proportional else None
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        self.tokens = self.tokens + block.project(mixed)
        return k

    def _merge(self, step: Membership) -> None:
        self.tokens = step.mean(self.tokens, self.sizes)
        self.sizes = step.sizes(self.sizes)
        self.members = step if self.members is None else self.members.then(step)

    def _spread(self, tokens: Tensor) -> Tensor:
        return tokens if self.members is None else self.members.spread(tokens)
