"""The figures of the bundled CLIP's model card, on every held-out split.

    python -m ovseg.training.clip_figures

prints them for the weights in the package, from whole images (no windows), one scale, and four prompt
templates; `tools/test.py` measures the methods as users run them.
"""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file

from ovseg.scenes import SceneSet, SceneSettings
from ovseg.training.clip_batches import DAMAGED, FLAWLESS
from ovseg.training.clip_evaluate import class_embeddings, evaluate
from ovseg.training.clip_pretrain import (
    build_model,
    bundled_config,
    bundled_tokenizer,
    normalise,
    open_image,
    open_text,
)

SPLITS = ("test", "pairs", "compositions", "unseen")


def auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties half.

    Args:
        scores: (N,) higher is more positive.
        truth: (N,) bool.
    """
    below = np.sort(scores[~truth])
    positive = scores[truth]
    wins = np.searchsorted(below, positive, "left") + np.searchsorted(below, positive, "right")
    return float(wins.mean() / 2 / len(below))


@torch.no_grad()
def anomaly_figures(
    model: CLIP, tokenizer: SimpleTokenizer, *, seed: int = 0, length: int = 200
) -> dict[str, float]:
    """Damaged or not, from the object's name and state words, on the split "anomaly".

    Returns:
        AUROC of images by the image embedding, by the highest patch, and of pixels' patches (a patch is
        damaged if 6 % of it is).
    """
    scenes = SceneSet("anomaly", seed, length=length, size_hw=(224, 288))
    whole, peak, truth, cells, cell_truth = [], [], [], [], []
    for scene in (scenes[k] for k in range(length)):
        if not scene.names:
            continue
        words = [[s.format(scene.names[0]) for s in states] for states in (DAMAGED, FLAWLESS)]
        rows = [F.normalize(open_text(model, tokenizer(texts)), dim=-1).mean(0) for texts in words]
        axis = F.normalize(torch.stack(rows), dim=-1)
        axis = axis[0] - axis[1]
        image, patches = open_image(model, normalise(torch.from_numpy(scene.image).permute(2, 0, 1)[None]))
        score = (F.normalize(patches, dim=-1) @ axis)[0].numpy()
        whole.append(float(F.normalize(image, dim=-1) @ axis))
        peak.append(float(score.max()))
        truth.append(bool(scene.defects.any()))
        height, width = scene.defects.shape
        share = scene.defects.reshape(height // 16, 16, width // 16, 16).mean((1, 3)).ravel()
        cells.append(score)
        cell_truth.append(share > 0.06)
    positive = np.array(truth)
    return {
        "image_embedding": round(auroc(np.array(whole), positive), 3),
        "highest_patch": round(auroc(np.array(peak), positive), 3),
        "patches": round(auroc(np.concatenate(cells), np.concatenate(cell_truth)), 3),
    }


@torch.no_grad()
def naming_figures(
    model: CLIP, tokenizer: SimpleTokenizer, *, shapes: float, length: int = 400
) -> dict[str, float]:
    """Top-1 and top-5 of single objects among every name of the training vocabulary, image embedding.

    Training's words but not its scenes: seed 999,983 is used by no stage.

    Args:
        model: open_clip's CLIP.
        tokenizer: its tokenizer.
        shapes: share of coloured shapes among the objects: 0 or 1.
        length: images.
    """
    settings = SceneSettings(objects=(1, 1), size=(0.45, 0.8), shapes=shapes, two_backgrounds=0.0)
    scenes = SceneSet("train", 999_983, length=length, size_hw=(224, 288), settings=settings)
    names = scenes.classes[: -len(scenes.background_classes)]
    bank = class_embeddings(model, tokenizer, names)
    ranks = []
    for scene in (scenes[k] for k in range(length)):
        if not scene.names:
            continue
        image, _ = open_image(model, normalise(torch.from_numpy(scene.image).permute(2, 0, 1)[None]))
        similarity = (image @ bank.T)[0]
        ranks.append(int((similarity > similarity[names.index(scene.names[0])]).sum()))
    return {
        "names": len(names),
        "top1": round(float(np.mean([rank < 1 for rank in ranks])), 3),
        "top5": round(float(np.mean([rank < 5 for rank in ranks])), 3),
    }


def main() -> None:
    """Print one JSON line a set of figures."""
    model = build_model(bundled_config(), 0)
    weights = load_file(str(files("ovseg") / "bundled" / "clip.safetensors"))
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    model.eval()
    tokenizer = bundled_tokenizer()
    for split in SPLITS:
        rows = [evaluate(model, tokenizer, split=split, seed=seed, length=64) for seed in range(3)]
        means = {key: round(float(np.mean([row[key] for row in rows])), 3) for key in rows[0]}
        print(json.dumps({"split": split, "scenes": "3 seeds x 64", **means}), flush=True)
    model.eval()
    print(json.dumps({"split": "anomaly", **anomaly_figures(model, tokenizer)}), flush=True)
    for shapes, kind in ((0.0, "objects"), (1.0, "coloured shapes")):
        print(json.dumps({"naming": kind, **naming_figures(model, tokenizer, shapes=shapes)}), flush=True)


if __name__ == "__main__":
    main()
