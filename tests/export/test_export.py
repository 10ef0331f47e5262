"""Exported files compute what torch computes, at any size, for any words, and without torch."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from support import load_tool, random_image, tiny_clip, tiny_encoder, tiny_part

from ovseg.errors import CheckpointError, ConfigError, ShapeError, VocabularyError
from ovseg.export.build import Exported, encode_words, export, label_agreement, parity
from ovseg.export.formats import trace
from ovseg.export.image_side import NOT_EXPORTED, ImageSide, check_exportable
from ovseg.export.onnx_inferencer import OnnxInferencer
from ovseg.export.word_table import WordTable
from ovseg.inferencer import Inferencer
from ovseg.methods import METHODS, build_method, parts_of
from ovseg.parts import LOADERS
from ovseg.results import Segmentation
from ovseg.structures import TextBank

TOOL = Path(__file__).parents[2] / "tools" / "export.py"
SMALL = {"short_side": 80, "crop": 64, "stride": 32}
CLASSES = "cat = kitten | tabby, dog, sofa, grass"
SIZES = [(70, 109), (96, 64), (131, 83)]


@pytest.fixture(autouse=True)
def _no_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks of shapes would look at symbols as if they were numbers; torch logs every one of them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.setattr(logging.root.manager, "disable", logging.INFO)


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ovseg.inferencer.load_clip", lambda *_, **__: tiny_clip())
        patch.setattr("ovseg.parts.weights_file", lambda part, name: Path(__file__))
        for part in LOADERS:
            patch.setitem(LOADERS, part, lambda name, part=part: tiny_part(part))
        yield


def inferencer(method: str, **options) -> Inferencer:
    return Inferencer(method, encoder="tiny", device="cpu", **{**SMALL, **options})


@pytest.fixture(scope="module")
def sclip(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        return export(inferencer("sclip"), tmp_path_factory.mktemp("sclip") / "sclip.onnx")


def words_that_differ(theirs: Inferencer, image: np.ndarray) -> TextBank:
    """What sets some patches apart from the mean, as words: random towers tell real words apart nowhere."""
    features = theirs.scorer.encode(theirs.scorer.prepare([image])).grid[0].flatten(1).T
    apart = torch.nn.functional.normalize(features - features.mean(dim=0), dim=1)
    chosen = apart[torch.linspace(0, len(apart) - 1, 6).long()]
    owners = torch.tensor([0, 1, 1, 2, 3, 0])
    return TextBank(chosen, owners, ("a", "b", "c", "d"), frozenset({2}), (None, 0.4, None, None))


def agreement(theirs: Inferencer, path: Path, images: list[np.ndarray]) -> float:
    """Share of pixels with the same label as by torch; several labels there must be."""
    bank = words_that_differ(theirs, images[0])
    table = WordTable.of(bank, encoder="tiny", weights_sha256="0" * 64)
    same, found = [], set()
    for image, ours in zip(images, OnnxInferencer(path)(images, table), strict=True):
        (wanted,) = torch_segments(theirs, image, bank)
        same.append((ours.labels == wanted.labels).mean())
        found |= set(np.unique(wanted.labels).tolist())
    assert len(found) >= 3
    return min(same)


def torch_segments(theirs: Inferencer, image: np.ndarray, bank: TextBank) -> list[Segmentation]:
    return theirs.head(theirs.scorer(theirs.scorer.prepare([image]), bank, image.shape[:2]))


@pytest.fixture
def images() -> list[np.ndarray]:
    return [random_image(*hw, seed) for seed, hw in enumerate(SIZES)]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_exported_or_says_why(method: str) -> None:
    if method in NOT_EXPORTED:
        with pytest.raises(ConfigError, match=f"'{method}' cannot be exported: .*These can: clip, maskclip"):
            check_exportable(method)
        return
    check_exportable(method)
    parts = {part: tiny_part(part) for part in parts_of(method)}
    side = ImageSide(build_method(method, tiny_encoder(), **parts).eval().requires_grad_(False))
    program = trace(side, 32, (101, 128)).module()  # of one size: any size takes long, and is tested below
    for batch in (1, 3):
        image, text = torch.rand(batch, 3, 101, 128), torch.randn(5, 32)
        with torch.no_grad():
            given, wanted = program(image, text), side(image, text)
        assert len(given) == len(side.output_names) == len(wanted)
        for one, other in zip(given, wanted, strict=True):
            assert torch.allclose(one, other, atol=1e-4)


def test_reasons_are_of_methods_that_exist() -> None:
    assert set(NOT_EXPORTED) < set(METHODS)


def test_an_onnx_file_agrees_with_torch_at_any_size(sclip: Exported) -> None:
    assert len(sclip.differences) == 3
    assert all(difference < 1e-5 for difference in sclip.differences.values())
    assert {height % 16 for _, height, _ in sclip.differences} > {0}


def test_metadata_say_how_to_run_it(sclip: Exported) -> None:
    import onnx

    model = onnx.load(sclip.path)
    kept = {each.key: json.loads(each.value) for each in model.metadata_props}
    assert kept["ovseg.method"] == "sclip"
    assert (kept["ovseg.encoder"], kept["ovseg.weights_sha256"]) == ("tiny", "0" * 64)
    assert len(kept["ovseg.mean"]) == len(kept["ovseg.std"]) == 3
    assert kept["ovseg.patch_hw"] == [16, 16]
    assert kept["ovseg.temperature"] == 40
    assert (kept["ovseg.windows"]["crop"], kept["ovseg.short_side"]) == (64, 80)
    axes = [axis.dim_param or axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", 3, "height", "width"]
    assert model.opset_import[0].version == 18
    assert OnnxInferencer(sclip.path).described == sclip.described


@pytest.mark.parametrize("classes", [CLASSES, "one thing", "background = sky | wall, dog, sofa"])
def test_new_words_need_no_new_export(sclip: Exported, images: list[np.ndarray], classes: str) -> None:
    theirs = inferencer("sclip")
    assert label_agreement(theirs, OnnxInferencer(sclip.path), images, classes) > 0.99
    (one,) = OnnxInferencer(sclip.path)(images[:1], encode_words(theirs, classes))
    (other,) = theirs(images[:1], classes)
    assert (one.names, one.background, one.labels.shape) == (other.names, other.background, SIZES[0])
    assert np.abs(one.confidence - other.confidence).max() < 0.02


def test_labels_agree(sclip: Exported, images: list[np.ndarray]) -> None:
    assert agreement(inferencer("sclip"), sclip.path, images) > 0.99


def test_without_torch(sclip: Exported, tmp_path: Path, images: list[np.ndarray]) -> None:
    theirs = inferencer("sclip", threshold=0.3)
    bank = words_that_differ(theirs, images[0])
    WordTable.of(bank, encoder="tiny", weights_sha256="0" * 64).save(tmp_path / "words.npz")
    Image.fromarray(images[0]).save(tmp_path / "image.png")
    code = (
        "import sys\n"
        "from ovseg.export.onnx_inferencer import OnnxInferencer\n"
        "assert 'onnxruntime' not in sys.modules\n"
        "import numpy\n"
        "model, image, words, out = sys.argv[1:]\n"
        "(found,) = OnnxInferencer(model, threshold=0.3, threads=1)([image], words)\n"
        "numpy.save(out, found.labels)\n"
        "loaded = {name.split('.')[0] for name in sys.modules} & {'torch', 'open_clip', 'cv2', 'timm'}\n"
        "assert not loaded, loaded\n"
    )
    paths = [sclip.path, tmp_path / "image.png", tmp_path / "words.npz", tmp_path / "labels.npy"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, paths)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wanted,) = torch_segments(theirs, images[0], bank)
    assert (np.load(tmp_path / "labels.npy") == wanted.labels).mean() > 0.99
    assert len(np.unique(wanted.labels)) > 2


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("clip-dinoiser", {"sure": 0.5, "temperature": 10.0}),
        ("proxyclip", {}),
        ("sc-clip", {"short_side": 128, "crop": 112, "stride": 64}),
        ("clip-surgery", {"crop": None, "stride": None}),
    ],
)
def test_other_windows_heads_and_networks(
    tmp_path: Path, images: list[np.ndarray], method: str, options: dict
) -> None:
    theirs = inferencer(method, **options)
    done = export(theirs, tmp_path / "model.onnx")
    # Of 16 patches two are always exactly as far out (SC-CLIP), and rounding says which is repaired.
    differences = [
        each for (_, *hw), each in done.differences.items() if method != "sc-clip" or hw != [64, 64]
    ]
    assert len(differences) >= 2
    assert max(differences) < 1e-4
    assert agreement(theirs, done.path, images) > 0.99


def test_int8_is_smaller_and_close(sclip: Exported, tmp_path: Path, images: list[np.ndarray]) -> None:
    done = export(inferencer("sclip"), tmp_path / "int8.onnx", int8=True)
    assert done.described == replace(sclip.described, quantized="int8")
    assert 1e-5 < max(done.differences.values()) < 0.5
    assert done.path.stat().st_size < 0.7 * sclip.path.stat().st_size
    assert 0.8 < agreement(inferencer("sclip"), done.path, images) < 1


@pytest.mark.parametrize("format", ["torchscript", "torch-export"])
def test_other_formats(tmp_path: Path, format: str) -> None:
    done = export(inferencer("naclip"), tmp_path / "model.pt", format)
    assert all(difference < 1e-5 for difference in done.differences.values())
    assert done.described.left_out == ("PAMR",)


def test_a_graph_of_one_size(tmp_path: Path, images: list[np.ndarray]) -> None:
    done = export(inferencer("maskclip"), tmp_path / "model.onnx", size_hw=(64, 64))
    assert done.agrees
    segment = OnnxInferencer(done.path)
    assert segment.session.get_inputs()[0].shape[1:] == [3, 64, 64]
    words = encode_words(inferencer("maskclip"), CLASSES)
    assert next(segment(images, words)).labels.shape == SIZES[0]
    small = replace(segment.described, short_side=None)
    segment.described = small
    with pytest.raises(ShapeError, match="exported for windows of"):
        next(segment([random_image(40, 60)], words))


def test_parity_notices_another_graph(sclip: Exported) -> None:
    side = ImageSide(inferencer("sclip").scorer)

    def other(image: np.ndarray, text: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            cosine, features = side(torch.from_numpy(image), torch.from_numpy(text))
        return {"cosine": cosine.numpy() + 0.002, "features": features.numpy()}

    found = parity(side, other, sclip.described)
    assert not Exported(sclip.path, sclip.described, found).agrees


def test_words_of_another_model(sclip: Exported, tmp_path: Path) -> None:
    words = replace(encode_words(inferencer("sclip"), CLASSES), weights_sha256="1" * 64, encoder="other")
    with pytest.raises(VocabularyError, match="encoded by 'other' and the images by 'tiny'"):
        OnnxInferencer(sclip.path)([], words)
    (tmp_path / "words.npz").write_text("no")
    with pytest.raises(VocabularyError, match="no file of encoded words"):
        WordTable.load(tmp_path / "words.npz")


def test_files_of_others(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="cannot be run"):
        OnnxInferencer(tmp_path / "model.onnx")


def test_what_cannot_be_exported() -> None:
    with pytest.raises(ConfigError, match="as_published=True cannot be exported"):
        ImageSide(inferencer("sclip", as_published=True).scorer)
    with pytest.raises(ConfigError, match="class token of the whole image"):
        ImageSide(inferencer("clip-surgery").scorer)


def test_the_tool(tmp_path: Path, capsys: pytest.CaptureFixture[str], images: list[np.ndarray]) -> None:
    tool = load_tool(TOOL)
    (tmp_path / "images").mkdir()
    Image.fromarray(images[0]).save(tmp_path / "images" / "a.png")
    common = ["--encoder", "tiny", "--templates", "none"]
    assert tool.main(["--words", "cat, dog", "-o", str(tmp_path / "words.npz"), *common]) == 0
    assert WordTable.load(tmp_path / "words.npz").names == ("cat", "dog")
    arguments = ["naclip", "-o", str(tmp_path / "naclip.onnx"), "--words", "cat, dog, sofa"]
    arguments += ["--images", str(tmp_path / "images"), *common, "--opts", "crop=64", "stride=32"]
    assert tool.main([*arguments, "short_side=80"]) == 0
    printed = capsys.readouterr().out
    assert "not part of it: PAMR" in printed
    assert "100.00% of the pixels of 1 images" in printed or "99." in printed
    found = OnnxInferencer(tmp_path / "naclip.onnx")(images[:1], tmp_path / "naclip.npz")
    assert next(found).names == ("cat", "dog", "sofa")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trident"], "'trident' cannot be exported: SAM"),
        (["sclp"], "Did you mean 'sclip'?"),
        (["sclip", "--format", "onx"], "Did you mean 'onnx'?"),
        (["sclip", "--format", "torchscript", "--quantize", "int8"], "--quantize is for --format onnx"),
        (["-o", "words.npz"], "needs --words"),
        ([], "which method?"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert load_tool(TOOL).main(arguments) == 2
    assert said in capsys.readouterr().err
