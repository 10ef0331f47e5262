"""AnomalyCLIP: prompts about any "object" that were learned once, against CLIP Surgery's second path.

The two prompts are learned vectors before "object." and before "damaged object."; between text blocks, the
positions behind the start token are overwritten by learned tokens (deep prompts). Patch features are the
second path's after chosen blocks, normed and projected. The image feature is the class token of the original
path, projected *without* the final norm: the prompts were trained that way, so it is part of the method.

Source: Zhou et al., arXiv 2310.18961; github.com/zqhang/AnomalyCLIP at 45ed4dd3, prompt_ensemble.py,
AnomalyCLIP_lib/AnomalyCLIP.py, test.py. The loss is in `ovseg.training.anomaly_losses`.
Deviations: maps of several blocks are averaged, not summed, so as to stay in [0, 1]. Deep prompts keep their
precision (published: cut to float16 on the way, `as_published=True`). Position embeddings are resampled
without overwriting the parameter. Images need not be square.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from ovseg.anomaly_structures import ABNORMAL, AnomalyScores, StateBank
from ovseg.encoders.checkpoints import load_state_dict
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.positions import PositionRule
from ovseg.errors import CheckpointError, ConfigError, ShapeError
from ovseg.methods.clip_surgery import dual_streams, value_attention
from ovseg.text.embedded import check_text, encode_embedded
from ovseg.text.encoder import TextEncoder
from ovseg.text.tokens import tokenize
from ovseg.windows import whole_patches

#: What follows the learned vectors: normal, abnormal.
WORDS = ("object.", "damaged object.")


class ObjectPrompts(nn.Module):
    """The learned prompts; parameters are named as in the official checkpoints.

    Args:
        width: of the text tower.
        length: learned vectors before the words.
        deep_blocks: text blocks that get tokens of their own, from the second on.
        deep_length: tokens for each of them.
        as_published: cut deep tokens to float16.

    Raises:
        ConfigError: more deep tokens than learned vectors, so that words would be overwritten.
    """

    def __init__(
        self,
        width: int,
        *,
        length: int = 12,
        deep_blocks: int = 8,
        deep_length: int = 4,
        as_published: bool = False,
    ) -> None:
        super().__init__()
        if deep_length > length:
            raise ConfigError(
                f"{deep_length} deep tokens would overwrite words behind {length} learned vectors"
            )
        self.as_published = as_published
        self.ctx_pos = nn.Parameter(torch.randn(1, 1, length, width) * 0.02)
        self.ctx_neg = nn.Parameter(torch.randn(1, 1, length, width) * 0.02)
        self.compound_prompts_text = nn.ParameterList(
            [nn.Parameter(torch.randn(deep_length, width) * 0.02) for _ in range(deep_blocks)]
        )

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], *, as_published: bool = False) -> ObjectPrompts:
        """The prompts of an official checkpoint, whose embedded words and unused projections are left out.

        Raises:
            CheckpointError: it holds no such prompts.
        """
        state = {name.removeprefix("prompt_learner."): value for name, value in state.items()}
        deep = sorted(name for name in state if name.startswith("compound_prompts_text."))
        wanted = ("ctx_pos", "ctx_neg", *deep)
        if any(name not in state for name in wanted) or state["ctx_pos"].shape != state["ctx_neg"].shape:
            raise CheckpointError(
                f"no AnomalyCLIP prompts: expected ctx_pos and ctx_neg of one shape and "
                f"compound_prompts_text.*, got {', '.join(sorted(state)[:6]) or 'nothing'}"
            )
        length, width = state["ctx_pos"].shape[-2:]
        prompts = cls(
            width,
            length=length,
            deep_blocks=len(deep),
            deep_length=state[deep[0]].shape[0] if deep else 0,
            as_published=as_published,
        )
        prompts.load_state_dict({name: state[name].float() for name in wanted})
        return prompts

    @classmethod
    def from_file(cls, path: Path, *, as_published: bool = False) -> ObjectPrompts:
        """The same of a file, of which only tensors are read."""
        return cls.from_state(load_state_dict(path), as_published=as_published)

    @property
    def deep(self) -> list[Float[Tensor, "n C"]]:
        """Tokens for text blocks from the second on."""
        return [
            each.half().to(each.dtype) if self.as_published else each for each in self.compound_prompts_text
        ]

    def forward(self, encoder: TextEncoder) -> StateBank:
        """The prompts as a bank, in the text tower that they were trained for (OpenAI's ViT-L/14 at 336).

        Raises:
            CheckpointError, ShapeError: see `encode_embedded`.
        """
        text = check_text(encoder.text)
        tokens = tokenize(encoder.tokenizer, WORDS, encoder.context_length).long().to(encoder.device)
        learned = torch.cat([self.ctx_pos, self.ctx_neg])[:, 0].to(encoder.device)
        words = text.token_embedding(tokens)
        if words.shape[-1] != learned.shape[-1]:
            raise ShapeError(f"prompts are {learned.shape[-1]} wide, the text tower {words.shape[-1]}")
        ends = text.lengths(tokens) - 1 + learned.shape[1]
        prompts = torch.cat([words[:, :1], learned.to(words.dtype), words[:, 1:]], dim=1)
        rows = F.normalize(encode_embedded(text, prompts, ends, self.deep).float(), dim=-1)
        return StateBank(rows, rows)


@dataclass(frozen=True)
class BlockFeatures:
    """An image as AnomalyCLIP sees it, in the shared space, not normalised.

    Attributes:
        image: class token `(B, D)` of the original path, projected without the final norm.
        tokens: second path after L blocks `(L, B, N, D)`, normed and projected, prefix tokens first.
        num_prefix: prefix tokens among the N.
        hw: the patch grid.
    """

    image: Float[Tensor, "B D"]
    tokens: Float[Tensor, "L B N D"]
    num_prefix: int
    hw: tuple[int, int]


def smoothed(maps: Float[Tensor, "B H W"], std_px: float) -> Float[Tensor, "B H W"]:
    """Gaussian of each map, mirrored at borders, cut off at four standard deviations; 0 leaves them alone."""
    if std_px == 0:
        return maps
    filtered = gaussian_filter(maps.detach().cpu().numpy(), std_px, axes=(1, 2))
    return torch.from_numpy(filtered).to(maps.device)


class AnomalyCLIP(nn.Module):
    """AnomalyCLIP at inference.

    Args:
        encoder: the image tower (published: OpenAI ViT-L/14 at 336, on images of 518 x 518).
        dual_blocks: how many of the last blocks have the second path; all, where there are fewer.
        feature_blocks: blocks whose outputs give a map each, counted from 0, negative from the end. Published
            scripts take the last one, as earlier ones did by a slip; the paper names blocks 6, 12, 18 and 24.
        temperature: logit scale; published as a divisor of 0.07.
        smooth_std_px: of the Gaussian on the full-size map.
        positions: how position embeddings are resampled to other grids.

    Raises:
        ConfigError: no such block.
        CheckpointError: the tower has no class token, or none that is projected by a matrix.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        *,
        dual_blocks: int = 19,
        feature_blocks: Sequence[int] = (-1,),
        temperature: float = 1 / 0.07,
        smooth_std_px: float = 4.0,
        positions: PositionRule | None = None,
    ) -> None:
        super().__init__()
        depth = len(encoder.tower.blocks)
        if not feature_blocks or any(not -depth <= block < depth for block in feature_blocks):
            raise ConfigError(
                f"feature_blocks must name blocks of {-depth}..{depth - 1}, at least one, got "
                f"{tuple(feature_blocks)}"
            )
        if encoder.tower.num_prefix == 0 or not isinstance(
            getattr(encoder.visual, "proj", None), nn.Parameter
        ):
            raise CheckpointError(
                "AnomalyCLIP projects the class token by itself: use a CLIP ViT with `proj`"
            )
        self.encoder = encoder
        self.dual_blocks = dual_blocks
        self.feature_blocks = tuple(block % depth for block in feature_blocks)
        self.temperature = temperature
        self.smooth_std_px = smooth_std_px
        self.positions = positions or PositionRule("bilinear")

    @torch.no_grad()
    def features(self, image: Float[Tensor, "B 3 H W"]) -> BlockFeatures:
        """Everything that does not depend on the prompts.

        Args:
            image: RGB in [0, 1]; what fills no patch at right and bottom is left out.
        """
        tower = self.encoder.tower
        tokens, hw = self.encoder.embed(whole_patches(image, self.encoder.patch_hw), self.positions)
        found: dict[int, Tensor] = {}
        for index, (original, new) in enumerate(
            dual_streams(tower, tokens, self.dual_blocks, value_attention)
        ):
            tokens = original
            if index in self.feature_blocks:
                found[index] = tower.finish(new).float()
        visual: Any = self.encoder.visual
        projected = tokens[:, 0] @ visual.proj
        stacked = torch.stack([found[index] for index in self.feature_blocks])
        return BlockFeatures(projected.float(), stacked, tower.num_prefix, hw)

    def maps(self, features: BlockFeatures, bank: StateBank) -> Float[Tensor, "L B 2 h w"]:
        """Probabilities of the two states on the patch grid, a map per block; the loss reads them."""
        patches = features.tokens[:, :, features.num_prefix :]
        return bank.probabilities(patches, self.temperature).mT.unflatten(-1, features.hw)

    def score(self, features: BlockFeatures, bank: StateBank, size_hw: tuple[int, int]) -> AnomalyScores:
        """Scores with a map of `size_hw` pixels, bilinear and smoothed."""
        grid = self.maps(features, bank)[:, :, ABNORMAL].mean(dim=0)
        full = F.interpolate(grid[:, None], size_hw, mode="bilinear", align_corners=False)[:, 0]
        score = bank.probabilities(features.image, self.temperature)[:, ABNORMAL]
        return AnomalyScores(smoothed(full, self.smooth_std_px), score)

    def forward(self, image: Float[Tensor, "B 3 H W"], bank: StateBank) -> AnomalyScores:
        """Scores at the image's size.

        Args:
            image: RGB in [0, 1].
            bank: what `ObjectPrompts` gives; any other bank of two states does, too.
        """
        return self.score(self.features(image), bank, (image.shape[-2], image.shape[-1]))
