"""AnoVL: CLIP Surgery's second path in all blocks, state prompts, and a small adapter fitted to each image.

A patch's score is the softmax of its plain cosines with "normal" and "abnormal" (temperature 1: scores lie
near 1/2). For the map, an adapter that starts at random, `y = x / 2 + T^T tanh(A x/|x| + b) / 2` with the
prompts T, is fitted to the image alone: its tokens shall be sure of their state and rather normal, those with
noise abnormal. The image's score is the class token's, averaged over 22 turned, shifted, mirrored and grey
copies.

Source: Deng et al., arXiv 2308.15939; github.com/hq-deng/AnoVL at 3a70bfda, vl_test.py, model.py, utils.py.
Deviations: the optimiser starts afresh for every image, as the adapter does (published: its moments live on,
so a map depends on the images before it). Start and noise are drawn from the same seed for every image. Grey
copies are made of colours, not of normalised pixels. Images need not be square: those turned by a right angle
keep their shape. The two crops and the other adapter of the published VisA script are not part of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ovseg.anomaly_structures import ABNORMAL, NORMAL, AnomalyScores, StateBank
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.positions import PositionRule
from ovseg.errors import ConfigError, ShapeError
from ovseg.methods.clip_surgery import two_paths, value_attention
from ovseg.structures import PatchFeatures
from ovseg.windows import whole_patches

#: Turns in parts of pi, and shifts in parts of half a side, of the published copies.
TURNS = (-1 / 4, -3 / 16, -1 / 8, -1 / 16, 1 / 16, 1 / 8, 3 / 16, 1 / 4)
SHIFTS = tuple((x * size, y * size) for size in (0.2, 0.1) for x in (1, -1) for y in (1, -1))
GREY = (0.299, 0.587, 0.114)


def warped(image: Float[Tensor, "B 3 H W"], angle: float, shift_xy: tuple[float, float]) -> Tensor:
    """The image turned by an angle in radians, shifted by parts of half a side, mirrored beyond borders."""
    height, width = image.shape[-2:]
    aspect = max(height - 1, 1) / max(width - 1, 1)  # a turn is one in pixels
    sin, cos = math.sin(angle), math.cos(angle)
    rows = [[cos, -sin * aspect, shift_xy[0]], [sin / aspect, cos, shift_xy[1]]]
    matrix = torch.tensor(rows, dtype=image.dtype, device=image.device).expand(len(image), 2, 3)
    grid = F.affine_grid(matrix, list(image.shape), align_corners=True)
    return F.grid_sample(image, grid, padding_mode="reflection", align_corners=True)


def copies(image: Float[Tensor, "B 3 H W"]) -> Iterator[Float[Tensor, "B 3 y x"]]:
    """The image and its 21 published variants, one at a time."""
    yield image
    for turn in TURNS:
        yield warped(image, turn * math.pi, (0.0, 0.0))
    for shift in SHIFTS:
        yield warped(image, 0.0, shift)
    yield image.flip(-1)
    yield torch.einsum("bchw,c->bhw", image, image.new_tensor(GREY))[:, None].expand_as(image)
    for quarter in (1, 2, 3):
        yield image.rot90(quarter, dims=(-2, -1))


@dataclass(frozen=True)
class TextAdapter:
    """`y = x / 2 + T^T tanh(A x/|x| + b) / 2`.

    Attributes:
        weight: A, a row per prompt `(M, D)`.
        bias: b `(M,)`.
        prompts: T `(M, D)`.
    """

    weight: Float[Tensor, "M D"]
    bias: Float[Tensor, " M"]
    prompts: Float[Tensor, "M D"]

    @classmethod
    def drawn(cls, prompts: Float[Tensor, "M D"], generator: torch.Generator) -> TextAdapter:
        """A and b uniform in `[-1/sqrt(D), 1/sqrt(D)]`, as torch starts a linear layer."""
        bound = prompts.shape[1] ** -0.5
        drawn = torch.empty(prompts.shape[0], prompts.shape[1] + 1).uniform_(
            -bound, bound, generator=generator
        )
        drawn = drawn.to(prompts)
        return cls(drawn[:, :-1], drawn[:, -1], prompts)

    def __call__(self, tokens: Float[Tensor, "*lead D"]) -> Float[Tensor, "*lead D"]:
        """The adapted tokens."""
        gates = F.linear(F.normalize(tokens, dim=-1), self.weight, self.bias).tanh()
        return (tokens + gates @ self.prompts) / 2

    def fitted(
        self,
        tokens: Float[Tensor, "N D"],
        bank: StateBank,
        noise: Float[Tensor, "steps N D"],
        *,
        temperature: float = 1.0,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
    ) -> tuple[TextAdapter, list[float]]:
        """The adapter after a step of AdamW for each row of noise, and the losses before each.

        The loss is the entropy of clean scores plus half of `-log p(abnormal | noisy) - log p(normal |
        clean)`, mean over patches.
        """
        losses = []
        tokens = tokens.detach()
        with torch.enable_grad():
            weight, bias = (each.detach().clone().requires_grad_() for each in (self.weight, self.bias))
            adapter = TextAdapter(weight, bias, self.prompts.detach())
            optimiser = torch.optim.AdamW([weight, bias], lr=learning_rate, weight_decay=weight_decay)
            for disturbance in noise:
                adapted = adapter(torch.stack([tokens, tokens + disturbance]))
                clean, noisy = bank.logits(adapted, temperature).log_softmax(dim=-1)
                entropy = -(clean.exp() * clean).sum(dim=-1).mean()
                loss = entropy - (noisy[:, ABNORMAL] + clean[:, NORMAL]).mean() / 2
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(loss.item())
        return TextAdapter(weight.detach(), bias.detach(), self.prompts), losses


class AnoVL(nn.Module):
    """AnoVL on any CLIP ViT with a class token.

    Args:
        encoder: the image tower (published: ViT-B/16-plus at 240 pixels, LAION-400M).
        dual_blocks: how many of the last blocks have the second path; all, where there are fewer.
        temperature: logit scale.
        steps: of fitting the adapter to each image; 0 takes tokens as they are.
        learning_rate, weight_decay: of AdamW.
        noise_std: of the noise on projected tokens.
        smooth_cells: side of the mean filter on the grid, odd; 1 switches it off.
        with_copies: average the image's score over 22 copies, at 21 further passes.
        seed: of the adapter's start and the noise, the same for every image.
        positions: how position embeddings are resampled to other grids.

    Raises:
        ConfigError: the tower has no class token, or `smooth_cells` is even.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        *,
        dual_blocks: int = 12,
        temperature: float = 1.0,
        steps: int = 5,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        noise_std: float = 0.055,
        smooth_cells: int = 3,
        with_copies: bool = True,
        seed: int = 0,
        positions: PositionRule | None = None,
    ) -> None:
        super().__init__()
        if encoder.tower.num_prefix == 0:
            raise ConfigError(
                "AnoVL's image score is the class token's, and this tower has none: use a CLIP ViT"
            )
        if smooth_cells < 1 or smooth_cells % 2 == 0:
            raise ConfigError(f"smooth_cells must be odd, so that the mean has a middle, got {smooth_cells}")
        self.encoder = encoder
        self.dual_blocks = dual_blocks
        self.temperature = temperature
        self.steps = steps
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.noise_std = noise_std
        self.smooth_cells = smooth_cells
        self.with_copies = with_copies
        self.seed = seed
        self.positions = positions or PositionRule("bilinear")

    @torch.no_grad()
    def features(self, image: Float[Tensor, "B 3 H W"]) -> PatchFeatures:
        """Projected patch tokens of the second path, class token of the original one.

        Args:
            image: RGB in [0, 1]; what fills no patch at right and bottom is left out.
        """
        tower = self.encoder.tower
        pixels = whole_patches(image, self.encoder.patch_hw)
        tokens, hw = self.encoder.embed(pixels, self.positions)
        both = two_paths(tower, tokens, self.dual_blocks, value_attention).float()
        prefix, patches = both[:, : tower.num_prefix], both[:, tower.num_prefix :]
        return PatchFeatures(patches.mT.unflatten(-1, hw), prefix, (pixels.shape[-2], pixels.shape[-1]))

    @torch.no_grad()
    def image_score(self, image: Float[Tensor, "B 3 H W"], bank: StateBank) -> Float[Tensor, " B"]:
        """Probability of the abnormal state by the class token, mean over copies."""
        variants = copies(image) if self.with_copies else iter((image,))
        scores = []
        for variant in variants:
            features = self.encoder(whole_patches(variant, self.encoder.patch_hw), self.positions)
            scores.append(bank.probabilities(features.prefix[:, 0], self.temperature)[:, ABNORMAL])
        return torch.stack(scores).mean(dim=0)

    def draws(self, bank: StateBank, hw: tuple[int, int]) -> tuple[TextAdapter, Float[Tensor, "steps h w D"]]:
        """The adapter's start and the noise of each step, which any image gets."""
        generator = torch.Generator().manual_seed(self.seed)
        start = TextAdapter.drawn(bank.prompts.float(), generator)
        noise = torch.randn(self.steps, *hw, bank.prompts.shape[1], generator=generator) * self.noise_std
        return start, noise.to(bank.prompts.device)

    def patch_tokens(
        self,
        features: PatchFeatures,
        bank: StateBank,
        start: TextAdapter | None = None,
        noise: Float[Tensor, "steps h w D"] | None = None,
    ) -> Float[Tensor, "B h w D"]:
        """The patch tokens, adapted to each image for itself; as they are, where there are no steps.

        Args:
            features: what `features` gives.
            bank: of the same model, with its prompts.
            start: the adapter to start from; None draws it.
            noise: of each step; None draws it.

        Raises:
            ShapeError: the noise is of another grid.
        """
        tokens = features.grid.permute(0, 2, 3, 1)
        if self.steps == 0:
            return tokens
        bank = bank.to(tokens.device, torch.float32)
        hw = (tokens.shape[1], tokens.shape[2])
        drawn_start, drawn_noise = self.draws(bank, hw)
        start, noise = start or drawn_start, drawn_noise if noise is None else noise
        if noise.shape[1:] != tokens.shape[1:]:
            raise ShapeError(
                f"noise is {tuple(noise.shape[1:])}, patch tokens {tuple(tokens.shape[1:])} (h, w, D)"
            )
        adapted = []
        for own in tokens.flatten(1, 2):
            adapter, _ = start.fitted(
                own,
                bank,
                noise.flatten(1, 2),
                temperature=self.temperature,
                learning_rate=self.learning_rate,
                weight_decay=self.weight_decay,
            )
            adapted.append(adapter(own))
        return torch.stack(adapted).unflatten(1, hw)

    def anomaly_map(self, tokens: Float[Tensor, "B h w D"], bank: StateBank) -> Float[Tensor, "B h w"]:
        """Probability of the abnormal state, mean over each patch's neighbours; borders are repeated."""
        scores = bank.probabilities(tokens, self.temperature)[..., ABNORMAL]
        reach = self.smooth_cells // 2
        padded = F.pad(scores[:, None], (reach,) * 4, mode="replicate")
        return F.avg_pool2d(padded, self.smooth_cells, stride=1)[:, 0]

    def forward(self, image: Float[Tensor, "B 3 H W"], bank: StateBank) -> AnomalyScores:
        """Scores on the patch grid.

        Args:
            image: RGB in [0, 1].
            bank: `ovseg.text.states.state_bank(encoder, name, "anovl")`, or "anovl_texture".
        """
        tokens = self.patch_tokens(self.features(image), bank)
        return AnomalyScores(
            self.anomaly_map(tokens, bank), self.image_score(image, bank), align_corners=True
        )
