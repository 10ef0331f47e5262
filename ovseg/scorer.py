"""Where the parts meet: image and words to a score map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from ovseg.correlation import Correlation
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.positions import PositionRule
from ovseg.errors import ShapeError
from ovseg.score_map import ScoreMap
from ovseg.structures import DenseFeatures, PatchFeatures, Pictures, TextBank
from ovseg.windows import WindowPlan, Windows, resize_image, resized_hw, whole_patches


class Scorer(nn.Module):
    """An encoder with a correlation in its last block, run over windows, compared with words.

    Args:
        encoder: the image tower.
        correlation: replaces the last block's attention; None leaves the tower as trained.
        residual: keep the last block's residual and FFN (CLIP, MaskCLIP, SCLIP) or drop both (ClearCLIP).
        windows: how images are cut; by default one window, the whole image.
        positions: how position embeddings are resampled to other grids.
        short_side: the image is resized to this short side first (long side at most 2048); None: not at all.
        temperature: logits are `temperature * cosine`.
        softmax_at: see `ScoreMap`.
        softmax_over: see `ScoreMap`.
        sure: see `ScoreMap`.
        guide: an encoder that the correlation asks which patches belong together (DINO, SAM).
        refine: steps `(score_map, features) -> score_map` that follow, such as PAMR.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        correlation: Correlation | None = None,
        *,
        residual: bool = True,
        windows: WindowPlan | None = None,
        positions: PositionRule | None = None,
        short_side: int | None = 336,
        temperature: float = 40.0,
        softmax_at: Literal["pixel", "patch"] = "pixel",
        softmax_over: Literal["query", "class"] = "query",
        sure: float = 0.99,
        guide: nn.Module | None = None,
        refine: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.correlation = correlation
        self.guide: Any = guide
        self.residual = residual
        self.windows = windows or WindowPlan()
        self.positions = positions or PositionRule()
        self.short_side = short_side
        self.temperature = temperature
        self.softmax_at: Literal["pixel", "patch"] = softmax_at
        self.softmax_over: Literal["query", "class"] = softmax_over
        self.sure = sure
        self.refine = nn.ModuleList(refine)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.encoder.mean.device

    def prepare(
        self,
        images: Sequence[UInt8[np.ndarray, "H W 3"]],
        regions: Sequence[Int[np.ndarray, "H W"]] = (),
    ) -> Pictures:
        """Images of one size, resized as the method wants, on the encoder's device.

        Args:
            images: RGB.
            regions: region ids of each image at its own size, for methods that take some.
        """
        sizes = {image.shape for image in images}
        if len(sizes) != 1:
            raise ShapeError(f"a batch needs images of one size, got {sorted(sizes)}: group them by size")
        resized = list(images)
        if self.short_side is not None:
            size_hw = resized_hw(images[0].shape[:2], self.short_side)
            resized = [resize_image(image, size_hw) for image in images]
        batch = torch.from_numpy(np.stack(resized)).to(self.device)
        return Pictures(batch.permute(0, 3, 1, 2).float() / 255, tuple(images), tuple(regions))

    def features(self, image: Float[Tensor, "B 3 H W"]) -> PatchFeatures:
        """Patch features of one window each, in the shared image-text space, not normalised."""
        if self.correlation is None:
            return self.encoder(whole_patches(image, self.encoder.patch_hw), self.positions)
        block = self.encoder.open(whole_patches(image, self.encoder.patch_hw), positions=self.positions)
        guide = None if self.guide is None else self.guide(whole_patches(image, self.guide.patch_hw))
        affinity = self.correlation(block, guide)
        hw, num_prefix = (
            (block.hw, block.num_prefix) if affinity is None else (affinity.hw, affinity.num_prefix)
        )
        return self.encoder.close(
            block.v if affinity is None else affinity.mix(block.values_on(hw, num_prefix)),
            hw=hw,
            num_prefix=num_prefix,
            image_hw=block.image_hw,
            residual=block.residual if self.residual else None,
        )

    @torch.no_grad()
    def encode(self, pictures: Pictures, output_hw: tuple[int, int] | None = None) -> DenseFeatures:
        """Everything that does not depend on the words.

        Args:
            pictures: images, already resized (`prepare` does it).
            output_hw: size of the picture that score maps lead to, by default that of the resized image.
        """
        image = pictures.image
        windows = self.windows.windows((image.shape[-2], image.shape[-1]), self.encoder.patch_hw)
        pieces = windows.cut(image, self.encoder.mean)
        parts = [self.features(part) for part in pieces.split(self.windows.max_batch)]
        return self.assemble(pictures, windows, parts, output_hw)

    @staticmethod
    def assemble(
        pictures: Pictures,
        windows: Windows,
        parts: Sequence[PatchFeatures],
        output_hw: tuple[int, int] | None = None,
    ) -> DenseFeatures:
        """The windows' features as one mosaic per image.

        Args:
            pictures: the images.
            windows: how they were cut.
            parts: features of all windows, images outermost, a few at a time.
            output_hw: see `encode`.
        """
        image_hw = (pictures.image.shape[-2], pictures.image.shape[-1])
        grids = torch.cat([part.grid for part in parts])
        cells_hw = (grids.shape[-2], grids.shape[-1])
        resampling = windows.resampling(image_hw, cells_hw, output_hw or image_hw).to(grids.device)
        objectness = [part.objectness for part in parts if part.objectness is not None]
        class_tokens = (
            torch.cat([part.prefix[:, :1] for part in parts]).float().unflatten(0, (len(pictures), -1))
        )
        return DenseFeatures(
            windows.join(F.normalize(grids.float(), dim=1)),
            resampling,
            image=F.normalize(class_tokens.mean(dim=(1, 2)), dim=-1) if class_tokens.numel() else None,
            objectness=windows.join(torch.cat(objectness).float()) if objectness else None,
            pictures=pictures,
        )

    def score(self, features: DenseFeatures, bank: TextBank) -> ScoreMap:
        """Features against words.

        Raises:
            ShapeError: text and image features are not of the same model.
        """
        bank = bank.to(features.grid.device, torch.float32)
        if bank.embeddings.shape[1] != features.grid.shape[1]:
            raise ShapeError(
                f"text has {bank.embeddings.shape[1]} dimensions and the image {features.grid.shape[1]}: "
                f"encode the words with the text tower of the same model"
            )
        return ScoreMap(
            features.cosine(bank.embeddings),
            bank,
            self.temperature,
            features.resampling,
            self.softmax_at,
            self.softmax_over,
            objectness=features.objectness,
            sure=self.sure,
        )

    def forward(
        self, pictures: Pictures, bank: TextBank, output_hw: tuple[int, int] | None = None
    ) -> ScoreMap:
        """Encode, score, refine."""
        features = self.encode(pictures, output_hw)
        return self.refined(self.score(features, bank), features)

    def refined(self, score_map: ScoreMap, features: DenseFeatures) -> ScoreMap:
        """The score map with what examples add (`TextBank.prototypes`), after all steps of `refine`."""
        bank = score_map.bank
        if bank.prototypes is not None:
            added = bank.prototypes.logits(features.grid, bank.names) / score_map.temperature
            score_map = replace(score_map, cosine=score_map.cosine + added[:, bank.class_of_query])
        for step in self.refine:
            score_map = step(score_map, features)
        return score_map
