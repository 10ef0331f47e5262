"""What the table of weights says of one trained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ovseg.encoders.positions import PositionMode

#: "clip" and "siglip" have words, "bundled" is the CLIP of the package; "dino" and "sam" say which patches
#: belong together; "found" says where any object is; "dinoiser" are CLIP-DINOiser's two convolutions.
Kind = Literal["clip", "siglip", "bundled", "dino", "sam", "found", "dinoiser"]
RGB = tuple[float, float, float]

CLIP_MEAN: RGB = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: RGB = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)
HALF: RGB = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class WeightsFile:
    """A file of a repository.

    Attributes:
        filename: its path in the repository.
        sha256: of this file, lower-case hex; None where unknown.
    """

    filename: str
    sha256: str | None = None


SAFETENSORS = WeightsFile("open_clip_model.safetensors")
PICKLE = WeightsFile("open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class WeightsEntry:
    """One trained model.

    Attributes:
        name: how ovseg calls it.
        architecture: model config of open_clip (CLIP) or timm (DINO), "vit_b", "vit_l", "vit_h" for SAM.
        tag: open_clip's tag for the weights; empty where it has none.
        repo: Hugging Face repository; empty for files in the package, on no hub, or named by the user.
        licence: of the weights, an SPDX identifier where there is one.
        licence_source: who says so.
        files: in order of preference; the first that exists is used.
        revision: commit of the repository that was looked at; None follows its main branch.
        quick_gelu: trained with OpenAI's approximation of GELU (cannot be seen from the file).
        mean, std: RGB statistics for values in [0, 1].
        kind: "siglip" needs a Hugging Face tokenizer, and the transformers package to read it.
        positions: how its authors resample position embeddings (DINO).
        origin: address of the authors' own file. What torch.hub fetched from there is found, too.
        trunk: the ViT that a part was trained on, by its name in the table.
    """

    name: str
    architecture: str
    tag: str
    repo: str
    licence: str
    licence_source: str = "model card"
    files: tuple[WeightsFile, ...] = (SAFETENSORS, PICKLE)
    revision: str | None = None
    quick_gelu: bool = False
    mean: RGB = CLIP_MEAN
    std: RGB = CLIP_STD
    kind: Kind = "clip"
    positions: PositionMode = "offset"
    origin: str = ""
    trunk: str = ""

    @property
    def url(self) -> str:
        """The repository's page."""
        return f"https://huggingface.co/{self.repo}" if self.repo else ""
