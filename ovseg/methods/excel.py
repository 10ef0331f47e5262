"""ExCEL: CLIP Surgery's second path with calibrated attention, as dense features and as seeds for training.

In each of the last blocks the new path adds what the mean of query-query, key-key and value-value attention,
summed over heads, mixes: about as many times the attention as there are heads. Scores are those of feature
surgery. Enriched text (`ovseg.text.enrichment`) is a matter of the text bank. `seeds` goes on to masks for an
image whose classes are known: maps spread along CLIP's own attention, background where no class is, PAR.

Source: Yang et al., arXiv 2503.20826, section 3; github.com/zwyang6/ExCEL at 2cd7f510.
Deviations: the published code brings features to unit length over *tokens*, takes the least and the greatest
score of a map from the class token too, sums q-k attention over heads in dual blocks but averages it in plain
ones, and cuts the last row and column off the boxes around a map's peaks. All of that with
`as_published=True`; else channels, patches alone, averages and whole boxes. Position embeddings: see
`clip_surgery`. The code says six dual blocks and runs five, which is the default here. Images need not be
square. The learned adapter is not part of it: give its features to `features`, if there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ovseg.correlation.calibration import adapted_attention, calibrated_attention
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.positions import PositionRule
from ovseg.errors import ConfigError, VocabularyError
from ovseg.methods.clip_surgery import Mix, SurgeryScorer, Watch, feature_surgery
from ovseg.refine.affinity_cam import spread_cams
from ovseg.refine.par import PAR
from ovseg.structures import PatchFeatures, TextBank, mix_heads
from ovseg.windows import WindowPlan


class ExcelScorer(SurgeryScorer):
    """The second path with calibrated attention.

    Args:
        encoder: the image tower.
        dual_blocks: how many of the last blocks have the second path.
        as_published: what `seeds` does; see the module.
        options: of `Scorer`.
    """

    def __init__(self, encoder: ClipEncoder, *, dual_blocks: int, as_published: bool, **options) -> None:
        super().__init__(encoder, dual_blocks=dual_blocks, **options)
        self.as_published = as_published

    def features(
        self,
        image: Float[Tensor, "B 3 H W"],
        adapted: Float[Tensor, "B C h w"] | None = None,
        watch: Watch | None = None,
    ) -> PatchFeatures:
        """Patch tokens of the new path, class token of the original one.

        Args:
            image: RGB in [0, 1].
            adapted: features of a learned adapter on the tower's grid (learnable calibration).
            watch: see `two_paths`.
        """
        return self.dual(image, calibration(adapted), watch)


def calibration(adapted: Float[Tensor, "B C h w"] | None = None) -> Mix:
    """Calibrated attention as what the second path adds. See `calibrated_attention`."""
    extra = None if adapted is None else adapted_attention(adapted)

    def mix(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = calibrated_attention(query, key, value, extra)
        return mix_heads(weights, value)

    return mix


@dataclass(frozen=True)
class Seeds:
    """What is where in an image whose classes are known.

    Attributes:
        present: the classes, as indices of the vocabulary.
        cams: their maps in [0, 1] on the grid `(k, h, w)`, by feature surgery.
        spread: the maps, spread along attention.
        scores: at the image's size `(1 + k, H, W)`, background first, in [0, 1].
        labels: `(H, W)` indices of the vocabulary, refined by PAR.
    """

    present: tuple[int, ...]
    cams: Float[Tensor, "k h w"]
    spread: Float[Tensor, "k h w"]
    scores: Float[Tensor, "m H W"]
    labels: Int[Tensor, "H W"]


@torch.no_grad()
def seeds(
    scorer: ExcelScorer,
    image: UInt8[np.ndarray, "H W 3"],
    bank: TextBank,
    present: Sequence[int],
    *,
    attention_blocks: int = 6,
    par: PAR | None = None,
) -> Seeds:
    """Pseudo-labels of one image from its image-level labels, to train a segmenter on.

    Args:
        scorer: what `excel` builds; the whole image is one window.
        image: RGB.
        bank: the vocabulary with a background class, whose prompts name what else may be seen. Names of
            classes that are absent take part, too: surgery removes what all have in common.
        present: classes that the image shows, as indices of the vocabulary, without the background.
        attention_blocks: how many of the last blocks' attention spreads the maps.
        par: the last step; 20 steps by default.

    Raises:
        VocabularyError: no background class, or a class in `present` that is none of the foreground.
        ConfigError: the tower has no class token, or `attention_blocks` is below 1.
    """
    foreground = [k for k in range(len(bank.names)) if k not in bank.background]
    if not bank.background or not present or not set(present) <= set(foreground):
        raise VocabularyError(
            f"seeds need a vocabulary with a background class, and present classes out of its foreground "
            f"{foreground[:20]}; got background {sorted(bank.background)} and present {list(present)[:20]}"
        )
    if attention_blocks < 1 or scorer.encoder.tower.num_prefix == 0:
        raise ConfigError("seeds need a tower with a class token, and attention_blocks of at least 1")
    cams, attention = _surgery_cams(scorer, image, bank, attention_blocks)
    chosen = cams[list(present)]
    spread = spread_cams(chosen, attention, as_published=scorer.as_published)
    low, high = spread.amin(dim=(1, 2), keepdim=True), spread.amax(dim=(1, 2), keepdim=True)
    size_hw = (image.shape[0], image.shape[1])
    scores = (spread - low) / (high - low + 1e-7)
    scores = F.interpolate(scores[None], size=size_hw, mode="bilinear", align_corners=False)[0]
    scores = torch.cat([1 - scores.amax(dim=0, keepdim=True), scores])
    colours = torch.from_numpy(image).to(scores.device).permute(2, 0, 1).float() / 255
    best = (par or PAR()).spread(colours)(scores).argmax(dim=0)
    classes = torch.tensor([min(bank.background), *present], device=best.device)
    return Seeds(tuple(present), chosen, spread, scores, classes[best])


def _surgery_cams(
    scorer: ExcelScorer, image: UInt8[np.ndarray, "H W 3"], bank: TextBank, attention_blocks: int
) -> tuple[Float[Tensor, "K h w"], Float[Tensor, "L N N"]]:
    """Maps of all classes in [0, 1], and attention between patches in the last blocks."""
    prefix, depth = scorer.encoder.tower.num_prefix, len(scorer.encoder.tower.blocks)
    attention: list[Tensor] = []

    def watch(index: int, query: Tensor, key: Tensor) -> None:
        if index < depth - attention_blocks:
            return
        query, key = query[0].float(), key[0].float()
        summed = torch.zeros(query.shape[1], query.shape[1], device=query.device)
        for q, k in zip(query, key, strict=True):  # one head at a time
            summed += (q @ k.T * q.shape[-1] ** -0.5).softmax(dim=-1)
        as_sum = scorer.as_published and index >= depth - scorer.dual_blocks
        attention.append(summed[prefix:, prefix:] / (1 if as_sum else len(query)))

    pixels = scorer.prepare([image]).image
    whole = WindowPlan().windows((pixels.shape[-2], pixels.shape[-1]), scorer.encoder.patch_hw)
    found = scorer.features(whole.cut(pixels, scorer.encoder.mean), watch=watch)
    tokens = torch.cat([found.prefix[:, :1], found.grid.flatten(2).mT], dim=1).float()
    tokens = F.normalize(tokens, dim=1 if scorer.as_published else 2)
    text = bank.to(tokens.device, torch.float32)
    scores = feature_surgery(tokens, tokens[:, 0], text.embeddings)[0]
    counted = scores if scorer.as_published else scores[1:]
    low, high = counted.amin(dim=0), counted.amax(dim=0)
    cams = ((scores[1:] - low) / (high - low).clamp_min(1e-12)).T.unflatten(-1, found.grid.shape[-2:])
    queries = text.queries_of_class
    return torch.stack([cams[each].amax(dim=0) for each in queries]), torch.stack(attention)


def excel(
    encoder: ClipEncoder,
    *,
    short_side: int | None = 320,
    crop: int | None = None,
    stride: int | None = None,
    dual_blocks: int = 5,
    temperature: float = 100.0,
    par_steps: int = 0,
    as_published: bool = False,
) -> ExcelScorer:
    """ExCEL's static calibration as open-vocabulary segmentation.

    Args:
        encoder: the image tower.
        short_side: resize to this first (published: a square of 320); None keeps the image's size.
        crop: window side in pixels; None takes the whole image at once, as published.
        stride: step between windows.
        dual_blocks: how many of the last blocks have the second path.
        temperature: logit scale.
        par_steps: steps of PAR on all classes' scores (published for seeds: 20); 0 switches it off.
        as_published: see above.
    """
    return ExcelScorer(
        encoder,
        dual_blocks=dual_blocks,
        as_published=as_published,
        windows=WindowPlan(crop, stride),
        positions=PositionRule("bilinear", as_published),
        short_side=short_side,
        temperature=temperature,
        refine=[PAR(par_steps)] if par_steps else [],
    )
