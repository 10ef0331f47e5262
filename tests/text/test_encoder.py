import logging
import subprocess
import sys

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CustomTextCLIP
from safetensors import safe_open
from safetensors.torch import save_file

from ovseg.errors import CheckpointError, VocabularyError
from ovseg.text import cache as cache_module
from ovseg.text import encoder as encoder_module
from ovseg.text.cache import EmbeddingCache, default_cache_dir
from ovseg.text.encoder import TextEncoder
from ovseg.text.tokens import count_tokens
from ovseg.text.vocabulary import ClassEntry, Vocabulary

CONTEXT = 20
TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
SIGLIP = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
PETS = {
    "cat": None,
    "dog": ["hound"],
    "sky": {"descriptions": ["It is blue and far away."], "threshold": 0.3},
}


@pytest.fixture(scope="module")
def tokenizer():
    return open_clip.SimpleTokenizer(context_length=CONTEXT)


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("OVSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "text"


def build_model(kind=CLIP, seed=0, **text) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = kind(embed_dim=16, vision_cfg=dict(VISION), text_cfg=TEXT | text)
    for parameter in model.parameters():  # away from the small initial values, so that every part tells
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def build(tokenizer, model=None, weights_id="random") -> TextEncoder:
    return TextEncoder(model or build_model(), tokenizer, context_length=CONTEXT, weights_id=weights_id)


@pytest.fixture
def encoder(tokenizer) -> TextEncoder:
    return build(tokenizer)


class Counter:
    """Counts the sentences that go through an encoder's tower."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.sentences = 0
        encoder.text.register_forward_hook(self)

    def __call__(self, module, inputs, output) -> None:
        self.sentences += len(inputs[0])


KINDS = {
    "clip": (CLIP, {}),
    "clip_quick": (CLIP, {"act_kwargs": {}}),
    "clip_eos": (CLIP, {"pool_type": "eos", "eos_id": 49407}),
    "clip_bidirectional": (CLIP, {"no_causal_mask": True}),
    "clip_bias": (CLIP, {"proj_bias": True}),
    "clip_first": (CLIP, {"pool_type": "first", "no_causal_mask": True}),
    "custom": (CustomTextCLIP, {}),
    "custom_siglip": (CustomTextCLIP, SIGLIP),
}


@pytest.mark.parametrize("name", KINDS)
def test_equals_open_clip(name, tokenizer):
    """Differential: short batches and a text side without its image tower change nothing."""
    kind, options = KINDS[name]
    model = build_model(kind, **options)
    sentences = ["cat", "a photo of a very small dog!", "!", "", *(f"{'word ' * n}end" for n in range(1, 16))]
    with torch.no_grad():
        expected = F.normalize(model.encode_text(tokenizer(sentences)), dim=-1)
    found = build(tokenizer, model).encode(sentences, batch_size=4)
    assert (expected[0] - expected[1]).abs().max() > 0.01
    assert torch.allclose(found, expected, atol=1e-5)


def test_batches_are_as_short_as_their_prompts(encoder):
    seen = []
    encoder.text.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape)))
    encoder.encode(["cat", "a photo of a cat", "dog", "a photo of the dog"], batch_size=2)
    assert seen == [(2, 3), (2, 7)]  # start and end included


@pytest.mark.parametrize("kind", [CLIP, CustomTextCLIP])
def test_the_image_tower_is_not_kept_and_weights_are_shared(kind, tokenizer):
    model = build_model(kind)
    encoder = build(tokenizer, model)
    visual = {id(each) for each in model.visual.parameters()}
    own = {id(each) for each in encoder.parameters()}
    assert not visual & own
    assert own <= {id(each) for each in model.parameters()}
    assert len(list(model.children())) > 1  # the model itself is left whole
    assert model.visual is not None


def test_a_model_without_text_is_refused(tokenizer):
    with pytest.raises(CheckpointError, match="Linear has no text side"):
        build(tokenizer, torch.nn.Linear(2, 2))


def test_bank_is_the_mean_over_templates(encoder, tokenizer):
    """Reference: METHODS 1.3, written as a loop."""
    templates = ("a photo of a {}.", "the {}", "{}")
    bank = encoder.bank(Vocabulary.parse(PETS), templates)
    rows = []
    sentences = {"cat": templates, "dog": templates, "hound": templates, "sky": templates}
    sentences["It is blue and far away."] = ("{}",)
    for text, own in sentences.items():
        vectors = [encoder.encode([template.format(text)])[0] for template in own]
        mean = sum(vector / vector.norm() for vector in vectors) / len(vectors)
        rows.append(mean / mean.norm())
    assert torch.allclose(bank.embeddings, torch.stack(rows), atol=1e-6)
    assert bank.class_of_query.tolist() == [0, 1, 1, 2, 2]
    assert bank.names == ("cat", "dog", "sky")
    assert bank.thresholds == (None, None, 0.3)
    assert bank.background == frozenset()
    assert bank.embeddings.dtype == torch.float32
    assert not bank.embeddings.requires_grad


def test_background_reaches_the_bank(encoder):
    assert encoder.bank(Vocabulary.parse("background, cat"), "none").background == {0}


def test_steps_and_batches_do_not_matter(encoder, monkeypatch):
    vocabulary = Vocabulary.parse("cityscapes_names")
    whole = encoder.bank(vocabulary, "imagenet7", cache_dir=False)
    monkeypatch.setattr(encoder_module, "GROUP_PROMPTS", 50)
    pieces = encoder.bank(vocabulary, "imagenet7", cache_dir=False, batch_size=13)
    assert torch.allclose(whole.embeddings, pieces.embeddings, atol=1e-5)


def test_half_precision_gives_float32_unit_rows(tokenizer):
    bank = build(tokenizer, build_model().to(torch.bfloat16)).bank(Vocabulary.parse("cat, dog"), "simple")
    assert bank.embeddings.dtype == torch.float32
    assert torch.allclose(bank.embeddings.norm(dim=1), torch.ones(2), atol=1e-5)


# --- the cache ---


def test_second_time_comes_from_the_cache(encoder, tokenizer, cache_dir):
    vocabulary = Vocabulary.parse(PETS)
    first = encoder.bank(vocabulary, "imagenet7")
    assert len(list(cache_dir.iterdir())) == 1
    again = build(tokenizer)
    counter = Counter(again)
    second = again.bank(vocabulary, "imagenet7")
    assert counter.sentences == 0
    assert torch.equal(first.embeddings, second.embeddings)
    again.bank(Vocabulary.parse("dog, bird"), "imagenet7")
    assert counter.sentences == 7  # the bird
    assert len(list(cache_dir.iterdir())) == 1


def test_a_description_is_not_a_prompt(encoder):
    prompt = encoder.bank(Vocabulary((ClassEntry("cat", ("sky",)),)), "simple").embeddings
    description = encoder.bank(Vocabulary((ClassEntry("cat", ("cat",), ("sky",)),)), "simple").embeddings[1:]
    assert not torch.allclose(prompt, description, atol=1e-3)


def test_what_changes_an_embedding_changes_the_setting(tokenizer):
    cased = open_clip.SimpleTokenizer(context_length=CONTEXT, clean="whitespace")
    encoders = [
        build(tokenizer),
        build(tokenizer, weights_id="other"),
        build(tokenizer, build_model(seed=1)),
        build(tokenizer, build_model().to(torch.bfloat16)),
        build(cased),
    ]
    settings = [each._setting(("{}",)) for each in encoders] + [encoders[0]._setting(("a {}",))]
    assert len(set(settings)) == len(settings)
    assert build(tokenizer)._setting(("{}",)) == settings[0]


def test_no_cache_when_told_so(encoder, cache_dir, tmp_path):
    encoder.bank(Vocabulary.parse("cat, dog"), "none", cache_dir=False)
    assert not cache_dir.exists()
    encoder.bank(Vocabulary.parse("cat, dog"), "none", cache_dir=tmp_path / "here")
    assert not cache_dir.exists()
    assert len(list((tmp_path / "here").iterdir())) == 1


def spoil_bytes(path):
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 0x40
    path.write_bytes(raw)


def spoil_length(path):
    path.write_bytes(path.read_bytes()[:-10])


def spoil_with_text(path):
    path.write_text("not a tensor file")


def spoil_by_emptying(path):
    path.write_bytes(b"")


def spoil_metadata(path, **changes):
    with safe_open(path, framework="pt") as stored:
        metadata, matrix = stored.metadata(), stored.get_tensor("embeddings")
    save_file({"embeddings": matrix}, path, metadata | changes)


def spoil_setting(path):
    spoil_metadata(path, setting="somebody else's")


def spoil_queries(path):
    spoil_metadata(path, queries='["a", "b"]')


def spoil_queries_form(path):
    spoil_metadata(path, queries="{}")


def spoil_contents(path):
    save_file({"something": torch.ones(3)}, path, {"format": cache_module.FORMAT})


def spoil_by_folder(path):
    path.unlink()
    path.mkdir()


SPOILERS = [
    *(spoil_bytes, spoil_length, spoil_with_text, spoil_by_emptying, spoil_setting),
    *(spoil_queries, spoil_queries_form, spoil_contents, spoil_by_folder),
]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_a_spoilt_cache_is_computed_anew(spoil, encoder, cache_dir):
    vocabulary = Vocabulary.parse("cat, dog")
    expected = encoder.bank(vocabulary, "none").embeddings
    (path,) = cache_dir.iterdir()
    spoil(path)
    counter = Counter(encoder)
    assert torch.equal(encoder.bank(vocabulary, "none").embeddings, expected)
    assert counter.sentences == 2
    if path.is_file():  # replaced by a good one
        assert torch.equal(encoder.bank(vocabulary, "none").embeddings, expected)
        assert counter.sentences == 2


def test_a_disk_that_cannot_be_written_to_does_not_stop_a_run(encoder, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        bank = encoder.bank(Vocabulary.parse("cat, dog"), "none", cache_dir=tmp_path / "file" / "cache")
    assert len(bank.names) == 2
    assert "could not be cached" in caplog.text


def test_two_runs_keep_what_the_other_wrote(cache_dir):
    first, second = EmbeddingCache(cache_dir, "s" * 64), EmbeddingCache(cache_dir, "s" * 64)
    first.load(), second.load()
    first.add({"a": torch.ones(3)})
    second.add({"b": torch.zeros(3)})
    assert sorted(first.load()) == ["a", "b"]
    assert [each.name for each in cache_dir.iterdir()] == [f"{'s' * 32}.safetensors"]


def test_the_oldest_rows_go_first(cache_dir, monkeypatch):
    monkeypatch.setattr(cache_module, "MAX_ROWS", 3)
    cache = EmbeddingCache(cache_dir, "s" * 64)
    cache.add({key: torch.ones(2) for key in "abc"})
    cache.add({"d": torch.ones(2)})
    assert list(cache.load()) == ["b", "c", "d"]


def test_an_interrupted_run_keeps_what_is_done(encoder, monkeypatch):
    monkeypatch.setattr(encoder_module, "GROUP_PROMPTS", 1)
    counter = Counter(encoder)

    def interrupt(module, inputs, output):
        if counter.sentences == 2:
            raise KeyboardInterrupt

    handle = encoder.text.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        encoder.bank(Vocabulary.parse("cat, dog, bird"), "none")
    handle.remove()
    encoder.bank(Vocabulary.parse("cat, dog, bird"), "none")
    assert counter.sentences == 2 + 2  # only the cat was done


def test_default_cache_dir(monkeypatch, tmp_path):
    assert default_cache_dir() == tmp_path / "cache" / "text"
    monkeypatch.delenv("OVSEG_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert default_cache_dir() == tmp_path / "xdg" / "ovseg" / "text"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert default_cache_dir() == tmp_path / ".cache" / "ovseg" / "text"


# --- long prompts ---


def test_exactly_full_fits_and_one_more_does_not(encoder, tokenizer):
    full, over = "cat " * (CONTEXT - 2), "cat " * (CONTEXT - 1)
    assert count_tokens(tokenizer, full, CONTEXT) == CONTEXT
    encoder.encode([full])
    with pytest.raises(VocabularyError, match=f"{CONTEXT + 1} tokens"):
        encoder.encode([over])


def test_a_long_prompt_is_named_with_its_length(encoder):
    name = "cat " * 25
    with pytest.raises(VocabularyError) as caught:
        encoder.bank(Vocabulary.parse(["dog", name]), "none")
    for part in (f"'{name.strip()}'", "27 tokens", f"context of {CONTEXT} tokens", "1 of the prompts"):
        assert part in str(caught.value)


def test_a_long_template_is_named(encoder):
    template = "a photo of a {} and of all the other things that there are in the whole world"
    with pytest.raises(VocabularyError) as caught:
        encoder.bank(Vocabulary.parse("hot dog, cat"), ["a {}.", template])
    for part in ("'hot dog' (4 tokens, 21 as 'a photo of a hot dog and", "'cat' (3 tokens, 20"):
        assert (part in str(caught.value)) == part.startswith("'hot")


def test_truncation_warns_every_time_and_keeps_other_prompts_cached(encoder, caplog):
    name = "cat " * 25
    counter = Counter(encoder)
    for expected in (2, 3):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            bank = encoder.bank(Vocabulary.parse(["dog", name]), "none", on_long="truncate")
        assert name.strip() in caplog.text
        assert "27 tokens" in caplog.text
        assert counter.sentences == expected
        assert len(bank.embeddings) == 2


class WordTokenizer:
    """Looks like a Hugging Face tokenizer in open_clip's wrapper: a token a word, start, end, padding."""

    class Inner:
        def __call__(self, text, truncation, add_special_tokens=True):
            ids = [5 + len(word) for word in text.split()]
            return type("Encoding", (), {"input_ids": [3, *ids, 4] if add_special_tokens else ids})

    def __init__(self, mode: str = "") -> None:
        self.tokenizer = self.Inner()
        self.clean_fn = str.lower
        self.tokenizer_mode = mode

    def __call__(self, texts, context_length):
        clips = self.tokenizer_mode == "clips"
        room = context_length - clips
        rows = []
        for text in texts:
            ids = self.tokenizer(text, truncation=False).input_ids
            ids = ids if len(ids) <= room else [*ids[: room - 1], 4]
            rows.append(ids + [1] * (room - len(ids)) + [2] * clips)
        return torch.tensor(rows)


class PlainTokenizer(WordTokenizer):
    """Neither `encode` nor an inner tokenizer."""

    def __call__(self, texts, context_length):
        self.tokenizer = self.Inner()
        found = super().__call__(texts, context_length)
        del self.tokenizer
        return found

    def __init__(self) -> None:
        super().__init__()
        del self.tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "extra"), [(WordTokenizer(), 2), (WordTokenizer("clips"), 3), (PlainTokenizer(), 2)]
)
def test_other_tokenizers_report_too(tokenizer, extra):
    model = build_model(CustomTextCLIP, **SIGLIP)
    encoder = build(tokenizer, model)
    words = CONTEXT - extra
    encoder.encode(["cat", "cat " * words])
    with pytest.raises(VocabularyError, match=rf"1 of the prompts.*\({CONTEXT + 7} tokens\)"):
        encoder.encode(["cat", "cat " * (words + 7)])


# --- quiet ---


def test_vocabularies_load_without_torch():
    code = "import sys, ovseg.text.vocabulary as v; v.Vocabulary.parse('voc21'); exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_progress_bar_where_stderr_is_no_terminal(encoder, capsys):
    encoder.bank(Vocabulary.parse("ade150_names"), "simple")
    assert capsys.readouterr() == ("", "")
