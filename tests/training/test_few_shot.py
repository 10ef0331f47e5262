"""Few-shot: examples on disk, patches inside of masks, Gaussian discriminant analysis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support import random_bank, random_image, tiny_encoder

from ovseg.errors import ConfigError, ImageError, VocabularyError
from ovseg.methods import build_method
from ovseg.text.vocabulary import Vocabulary
from ovseg.training.examples import UNKNOWN, find_examples
from ovseg.training.few_shot import DEFAULT_STRENGTH, Cells, cells_of, fit_prototypes, shares
from ovseg.training.gda import GaussianSums


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def mask(height: int = 20, width: int = 32) -> np.ndarray:
    found = np.zeros((height, width), np.uint8)
    found[:, width // 2 :] = 255
    return found


def folders(root: Path) -> Path:
    for name in ("dog", "red car"):
        for stem in ("a", "b"):
            save(root / name / f"{stem}.png", random_image(20, 32))
            save(root / name / f"{stem}_mask.png", mask())
    return root


def label_maps(root: Path) -> Path:
    save(root / "images" / "x.jpg", random_image(20, 32))
    labels = np.full((20, 32), 255, np.uint8)
    labels[:5], labels[5:9] = 1, 0
    save(root / "labels" / "x.png", labels)
    (root / "classes.txt").write_text("sky\ngrass\n")
    return root


def test_folder_for_each_class(tmp_path: Path) -> None:
    vocabulary, found = find_examples(folders(tmp_path))
    assert vocabulary.names == ("dog", "red car")
    assert [(each.image.stem, each.index) for each in found] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    image, labels = found[2].read()
    assert image.shape == (20, 32, 3)
    assert np.unique(labels[:, :16]).tolist() == [UNKNOWN]
    assert np.unique(labels[:, 16:]).tolist() == [1]
    _, other = find_examples(tmp_path, Vocabulary.parse("cat, Dog, red car"))
    assert [each.index for each in other] == [1, 1, 2, 2]


def test_label_maps(tmp_path: Path) -> None:
    vocabulary, (example,) = find_examples(label_maps(tmp_path))
    assert vocabulary.names == ("sky", "grass")
    _, labels = example.read()
    assert [int(labels[row, 0]) for row in (0, 5, 9)] == [1, 0, UNKNOWN]


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda root: (root / "dog" / "a_mask.png").unlink(), ConfigError, r"a\.png has no mask: expected"),
        (lambda root: save(root / "emu" / "a.txt.png", mask()), VocabularyError, r"'emu' is not a class"),
        (lambda root: (root / "dog" / "deep").mkdir(), None, ""),
        (lambda root: save(root / "dog" / "a_mask.png", mask(32, 20)), ImageError, r"is 32x20 \(HxW\)"),
        (
            lambda root: (root / "dog" / "a_mask.png").write_text("?"),
            ImageError,
            "cannot be read as an image",
        ),
    ],
)
def test_wrong_folders(tmp_path: Path, spoil, error, message: str) -> None:
    spoil(folders(tmp_path))

    def read() -> None:
        _, found = find_examples(tmp_path, Vocabulary.parse("dog, red car"))
        for each in found:
            each.read()

    if error is None:
        read()
        return
    with pytest.raises(error, match=message):
        read()


def test_wrong_label_maps(tmp_path: Path) -> None:
    root = label_maps(tmp_path)
    (root / "classes.txt").write_text("sky\n")
    with pytest.raises(VocabularyError, match=r"has label 1 and the vocabulary 1 classes"):
        find_examples(root)[1][0].read()
    (root / "classes.txt").unlink()
    with pytest.raises(VocabularyError, match=r"nobody says what the numbers"):
        find_examples(root)
    (root / "labels" / "x.png").unlink()
    with pytest.raises(ConfigError, match=r"x\.jpg has no label map: expected .*x\.png"):
        find_examples(root, Vocabulary.parse("sky, grass"))
    with pytest.raises(ConfigError, match="no such folder of examples"):
        find_examples(tmp_path / "nowhere")


def test_cells_lie_in_their_masks() -> None:
    scorer = build_method("sclip", tiny_encoder(), short_side=None, crop=64, stride=32)
    image = random_image(64, 96)
    labels = np.full((64, 96), UNKNOWN)
    labels[:, :48], labels[:, 64:] = 2, 0
    features = scorer.encode(scorer.prepare([image]))
    present, share = shares(features, labels)
    assert present.tolist() == [0, 2]
    assert share.shape == (2, *features.grid.shape[-2:])
    assert float(share.sum(dim=0).max()) <= 1 + 1e-5
    everything = shares(features, np.zeros((64, 96), int))[1]
    torch.testing.assert_close(everything, torch.ones_like(everything))

    found = cells_of(scorer, random_bank((1, 1, 2)), image, labels, least_share=0.99)
    assert len(found.classes) == int((share >= 0.99).sum())
    assert found.classes.unique().tolist() == [0, 2]
    assert found.words.shape == (len(found.classes), 3)
    torch.testing.assert_close(found.features.norm(dim=1), torch.ones(len(found.features)))
    few = cells_of(scorer, random_bank((1, 1, 2)), image, labels, most_cells=3)
    assert few.classes.bincount().tolist() == [3, 0, 3]


def test_sums_are_what_a_plain_calculation_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    features, classes = torch.randn(60, 5, generator=generator), torch.arange(60) % 3
    ours = GaussianSums(3, 5).add(features[:25], classes[:25]).add(features[25:], classes[25:])
    means = torch.stack([features[classes == k].mean(dim=0) for k in range(3)])
    covariance = torch.cov((features - means[classes]).T)
    precision = 59 * torch.linalg.inv(59 * covariance + covariance.trace() * torch.eye(5))
    expected = features @ precision @ means.T - 0.5 * (means @ precision * means).sum(dim=1)
    found = ours.fit().logits(features)
    torch.testing.assert_close(found + torch.tensor(3.0).log(), expected, rtol=1e-4, atol=1e-4)


def painted(classes: list[int], seed: int = 0) -> list[Cells]:
    """Images of ten patches of one class each, whose words always say class 3."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 32, generator=torch.Generator().manual_seed(9))
    found = []
    for k in classes:
        features = F.normalize(centres[k] + 0.4 * torch.randn(10, 32, generator=generator), dim=1)
        words = torch.zeros(10, 4)
        words[:, 3] = 0.5  # less than log 2: two classes of examples can win against it
        found.append(Cells(features, torch.full((10,), k), words))
    return found


def test_examples_outweigh_words_that_are_wrong() -> None:
    bank = random_bank((1, 1, 1, 1))
    made = fit_prototypes(painted([0, 0, 1, 1, 2, 2]), bank)
    assert made.names == ("class0", "class1", "class2")
    assert made.facts["patches"] == dict.fromkeys(made.names, 20)
    assert made.facts["left_out_accuracy"]["words"] == 0
    assert made.facts["left_out_accuracy"]["with_examples"] > 0.6  # one class in turn has words alone
    for cells in painted([0, 1, 2], seed=5):
        grid = cells.features.T[None, :, None]
        logits = cells.words.T + made.logits(grid, bank.names)[0, :, 0]
        assert logits.argmax(dim=0).tolist() == cells.classes.tolist()
    assert not made.logits(torch.randn(1, 32, 2, 2), bank.names)[:, 3].any()  # no examples: words alone


def test_examples_leave_room_for_classes_of_words_alone() -> None:
    """Words are right here: a strength that lets examples win against them is not chosen."""
    images = [
        Cells(each.features, each.classes, 3.0 * F.one_hot(each.classes, 4).float())
        for each in painted([0, 0, 0, 1, 1, 1])
    ]
    bank = random_bank((1, 1, 1, 1))
    made = fit_prototypes(images, bank)
    (cells,) = painted([2], seed=5)  # class 2 has words alone
    logits = 3.0 * F.one_hot(cells.classes, 4).float().T
    logits = logits + made.logits(cells.features.T[None, :, None], bank.names)[0, :, 0]
    assert logits.argmax(dim=0).tolist() == cells.classes.tolist()


def test_single_images_leave_the_strength_as_it_is() -> None:
    lines: list[str] = []
    made = fit_prototypes(painted([0, 1]), random_bank((1, 1, 1, 1)), note=lines.append)
    assert made.strength == DEFAULT_STRENGTH
    assert "too few images" in lines[0]
    assert fit_prototypes(painted([0, 1]), random_bank((1, 1, 1, 1)), strength=2.0).strength == 2.0
    with pytest.raises(ConfigError, match="no patch of any example"):
        fit_prototypes([], random_bank())
