"""CLIPN's second tower: read from the authors' form of checkpoint, and asked by rejection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import random_image, tiny_clip

from ovseg import Inferencer
from ovseg.errors import CheckpointError, ConfigError, VocabularyError
from ovseg.heads.rejection import CLIPN_SCALE, Evidence
from ovseg.no_tower import load_no_tower, negated
from ovseg.predictors import build_predictor
from ovseg.text.templates import load_templates
from ovseg.text.vocabulary import Vocabulary

SMALL = dict(encoder="tiny", device="cpu", short_side=64, crop=48, stride=16)
WORDS = "cat, dog = hound, wall"

pytestmark = pytest.mark.usefixtures("tiny_weights")


def checkpoint(path: Path, *, learned: bool = True, seed: int = 7) -> Path:
    """As the authors' training saves it: a whole CLIP, and a second text side with other weights."""
    torch.manual_seed(seed)
    state = dict(tiny_clip().model.state_dict())
    sides = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")
    for name, value in list(state.items()):
        if name.startswith(sides):
            first, dot, rest = name.partition(".")
            state[f"{first}_no{dot}{rest}"] = value + 0.1 * torch.randn_like(value)
    if learned:
        state["prompt_no"] = 0.2 * torch.randn(16, *state["positional_embedding"].shape)
    torch.save({"epoch": 10, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    return path


@pytest.fixture
def inferencer() -> Inferencer:
    return Inferencer("maskclip", **SMALL)


def test_learned_tokens_are_added_at_every_place(tmp_path: Path, inferencer: Inferencer) -> None:
    path = checkpoint(tmp_path / "epoch_10.pt")
    text = inferencer.text_encoder
    tower = load_no_tower(path, text)
    assert not tower.spelled
    state = {k.removeprefix("module."): v for k, v in torch.load(path)["state_dict"].items()}
    tokens = text.tokenizer(["a photo of a cat.", "hound"])
    x = F.embedding(tokens, state["token_embedding_no.weight"]) + state["positional_embedding_no"]
    x = x + state["prompt_no"].mean(dim=0, keepdim=True)
    mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
    x = tower.encoder.text.transformer(x, attn_mask=mask)
    x = F.layer_norm(x, x.shape[-1:], state["ln_final_no.weight"], state["ln_final_no.bias"])
    x = x[torch.arange(2), tokens.argmax(dim=1)] @ state["text_projection_no"]
    ours = tower.encoder.encode(["a photo of a cat.", "hound"])
    torch.testing.assert_close(ours, F.normalize(x, dim=-1), atol=1e-5, rtol=1e-5)
    assert (ours - text.encode(["a photo of a cat.", "hound"])).abs().max() > 0.05


def test_the_spelled_tower_reads_negated_sentences(tmp_path: Path, inferencer: Inferencer) -> None:
    tower = load_no_tower(checkpoint(tmp_path / "a.pt", learned=False), inferencer.text_encoder)
    assert tower.spelled
    vocabulary, bank = inferencer.bank("cat", ["a photo of a {}."])
    no = tower.attach(bank, vocabulary, ["a photo of a {}."], cache_dir=False).no
    torch.testing.assert_close(no, tower.encoder.encode(["a photo of no cat."]))
    described = Vocabulary.parse({"classes": {"cat": {"descriptions": ["It purrs."]}}})
    with pytest.raises(VocabularyError, match="description"):
        tower.attach(bank, described, cache_dir=False)


@pytest.mark.parametrize(
    ("template", "opposite"),
    [
        ("a photo of a {}.", "a photo of no {}."),
        ("a photo of many {}.", "a photo of many no {}."),
        ("a photo of the dirty {}.", "a photo of no dirty {}."),
        ("a sculpture of my {}.", "a sculpture of no {}."),
        ("a photo with a {}.", "a photo without a {}."),
        ("{}", "no {}"),
    ],
)
def test_opposites(template: str, opposite: str) -> None:
    assert negated(template) == opposite


def test_every_shipped_template_has_an_opposite() -> None:
    for name in ("none", "simple", "imagenet80", "imagenet7"):
        for template in load_templates(name):
            assert negated(template) != template
            assert negated(template).count("{}") == 1


@pytest.mark.parametrize("rule", ["ctw", "atd"])
@pytest.mark.parametrize("task", ["segment", "detect"])
def test_rejection_asks_both_towers(rule: str, task: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "epoch_10.pt")
    images = [random_image(70, 109)]
    answers = {
        least: next(
            build_predictor("maskclip", (task,), reject=f"{rule}:{least}", no_tower=path, **SMALL).answers(
                images, WORDS, tasks=(task,)
            )
        )
        for least in (0.0, 1.1)
    }
    if task == "segment":
        assert (answers[0.0].segmentation.labels != 255).all()
        assert (answers[1.1].segmentation.labels == 255).all()
    else:
        assert len(answers[1.1].detections) == 0


@pytest.mark.parametrize("rule", ["ctw", "atd"])
def test_images_are_judged_as_published(rule: str, tmp_path: Path) -> None:
    predictor = build_predictor(
        "maskclip",
        ("segment",),
        reject_images=rule,
        no_tower=checkpoint(tmp_path / "epoch_10.pt"),
        **SMALL,
    )
    features = predictor.encode([random_image(70, 109)])
    _, bank = predictor.bank(WORDS)
    yes, no = (CLIPN_SCALE * features.image @ rows.T for rows in (bank.embeddings, bank.no))
    p_yes = torch.stack([yes, no], dim=-1).softmax(dim=-1)[..., 0]
    expected = {
        "ctw": p_yes.gather(1, yes.argmax(dim=1, keepdim=True))[:, 0],
        "atd": (p_yes * yes.softmax(dim=-1)).sum(dim=-1),
    }[rule]
    (step,) = predictor.recipe.reject
    evidence = step.rejection.image_evidence(features, bank, 40.0)
    torch.testing.assert_close(evidence.score(rule), expected)
    assert Evidence().add(yes.T, no.T).accepted(rule, None) == evidence.accepted(rule, None)


def test_the_files_hash_is_part_of_the_run(tmp_path: Path) -> None:
    made = [
        Inferencer("maskclip", no_tower=checkpoint(tmp_path / f"{seed}.pt", seed=seed), **SMALL).describe()
        for seed in (7, 8)
    ]
    assert made[0]["no_tower_sha256"] != made[1]["no_tower_sha256"]


def test_words_of_both_towers_go_together(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "epoch_10.pt")
    inferencer = Inferencer("maskclip", no_tower=path, **SMALL)
    words = inferencer.words(WORDS, ("detect",))
    assert words.closed is not None
    assert words.closed.no is not None
    assert words.closed.no.shape == words.closed.embeddings.shape


def test_wrong_files(tmp_path: Path, inferencer: Inferencer) -> None:
    text = inferencer.text_encoder
    plain = tmp_path / "clip.pt"
    torch.save(tiny_clip().model.state_dict(), plain)
    with pytest.raises(CheckpointError, match="holds no 'no' tower"):
        load_no_tower(plain, text)
    with pytest.raises(CheckpointError, match=r"nothing\.pt"):
        load_no_tower(tmp_path / "nothing.pt", text)
    other = torch.load(checkpoint(tmp_path / "other.pt"))
    other["state_dict"]["module.text_projection"] += 1
    torch.save(other, tmp_path / "other.pt")
    with pytest.raises(ConfigError, match="another CLIP"):
        load_no_tower(tmp_path / "other.pt", text)


def test_what_goes_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--no-tower"):
        build_predictor("maskclip", ("segment",), reject="atd", **SMALL)
    with pytest.raises(ConfigError, match="--reject atd"):
        build_predictor("maskclip", ("segment",), no_tower=tmp_path / "a.pt", **SMALL)
    bank = Inferencer("maskclip", **SMALL).bank("cat")[1]
    assert replace(bank, no=bank.embeddings).to("cpu", torch.float64).no.dtype == torch.float64
