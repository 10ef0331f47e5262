"""What users expect of a training, on a toy: resuming, small safe checkpoints, frozen towers, clear stops."""

from __future__ import annotations

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook

from mm.conftest import REPO
from mm.toy import CONFIG, ToyModel
from ovseg.errors import CheckpointError, ConfigError
from ovseg.mm import load_config
from ovseg.mm.build import inferencer_from_config
from ovseg.mm.curves import draw_curves, read_curves
from ovseg.mm.draws import Draw, DrawSampler, SeededDataset
from ovseg.mm.registry import HOOKS
from ovseg.mm.train import Trained, prepare_training, run_training
from ovseg.mm.training_hooks import LossError


@HOOKS.register_module()
class PowerCut(Hook):
    """Stops in the middle."""

    priority = "LOWEST"

    def __init__(self, after: int) -> None:
        self.after = after

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        if runner.iter + 1 == self.after:
            raise KeyboardInterrupt


_runs = itertools.count()


def train(work_dir: Path, resume: str | None = None, amp: str | None = None, **options: Any) -> Trained:
    changes = {key.replace("__", "."): copy.deepcopy(value) for key, value in options.items()}
    config = prepare_training(load_config(CONFIG, changes), work_dir=work_dir, resume=resume, amp=amp)
    config.experiment_name = f"toy {next(_runs)}"  # else by the second, and two runs here take less
    return run_training(config)


def losses(work_dir: Path) -> dict[int, float]:
    return read_curves(work_dir)["loss"]


def weights(trained: Trained) -> dict[str, torch.Tensor]:
    return torch.load(trained.checkpoint, weights_only=True)["state_dict"]


EPOCHS = {
    "train_cfg": {"_delete_": True, "by_epoch": True, "max_epochs": 4},
    "train_dataloader__sampler": {"_delete_": True, "type": "DefaultSampler", "shuffle": True},
}


@pytest.mark.parametrize(
    "options",
    [{}, {"optim_wrapper__accumulative_counts": 2}, EPOCHS],
    ids=["iterations", "accumulating", "mid-epoch"],
)
def test_resumed_curve_is_that_of_an_uninterrupted_run(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = train(tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", custom_hooks=[{"type": "PowerCut", "after": 8}], **options)
    resumed = train(tmp_path / "cut", resume="auto", **options)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)
    assert len(losses(tmp_path / "whole")) == 12
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value)


def test_another_seed_is_another_curve(tmp_path: Path) -> None:
    train(tmp_path / "a")
    train(tmp_path / "b", randomness__seed=1)
    assert losses(tmp_path / "a") != pytest.approx(losses(tmp_path / "b"), rel=1e-3)


def test_checkpoint_is_small_safe_and_says_whose_it_is(tmp_path: Path) -> None:
    trained = train(tmp_path)
    content = torch.load(trained.checkpoint, weights_only=True)  # plain values and tensors only
    assert set(content["state_dict"]) == {"head.1.weight", "head.1.bias", "scale"}
    assert sum(len(each["params"]) for each in content["optimizer"]["param_groups"]) == 3
    assert content["meta"]["ovseg"] == {
        "method": "ToyModel",
        "encoder": "toy_tower",
        "weights_sha256": "hash of toy_tower",
        "trained": ["head", "scale"],
        "version": content["meta"]["ovseg"]["version"],
    }
    assert (content["meta"]["iter"], content["meta"]["seed"]) == (12, 0)
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["iter_10.pth", "iter_12.pth"]
    assert trained.curve == tmp_path / "curve.png"
    assert trained.curve.stat().st_size > 1000


def test_towers_stay_frozen_and_in_eval_mode() -> None:
    model = ToyModel()
    before = {name: value.clone() for name, value in model.tower.state_dict().items()}
    model.train()
    assert model.training
    assert model.head.training
    assert not any(module.training for module in model.tower.modules())
    model([torch.randn(6), torch.randn(6)], None, mode="loss")["loss_toy"].backward()
    assert all(parameter.grad is None for parameter in model.tower.parameters())
    assert all(parameter.grad is not None for parameter in [*model.head.parameters(), model.scale])
    for name, value in model.tower.state_dict().items():  # BatchNorm's statistics too
        assert torch.equal(value, before[name])
    model.eval()
    assert not model.head.training


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"encoder": "other_tower"}, r"its encoder is 'toy_tower', this model's is 'other_tower'"),
        ({"hidden": 5}, r"does not fit the model"),
    ],
)
def test_checkpoint_of_another_model_is_refused(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    trained = train(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        ToyModel(**other).load_trained(trained.checkpoint)
    with pytest.raises(CheckpointError, match=message):
        train(tmp_path, resume="auto", **{f"model__{key}": value for key, value in other.items()})


def test_foreign_and_unsafe_checkpoints_are_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str, str]]:
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"state_dict": {"head": Bomb()}, "meta": {"iter": 3}}, tmp_path / "bomb.pth")
    torch.save({"state_dict": ToyModel().state_dict()}, tmp_path / "bare.pth")
    for options in ({"resume": str(tmp_path / "bomb.pth")}, {"load_from": str(tmp_path / "bomb.pth")}):
        with pytest.raises(CheckpointError, match="more than tensors"):
            train(tmp_path / "work", **options)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(CheckpointError, match=r"not written by tools/train\.py"):
        ToyModel().load_trained(tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match="weights only"):
        train(tmp_path / "work", resume=str(tmp_path / "bare.pth"))
    pretrained = {"type": "Pretrained", "checkpoint": "some.pth"}
    with pytest.raises(ConfigError, match=r"model\.init_cfg .*'some\.pth'"):
        train(tmp_path / "work", model__init_cfg=pretrained)


def test_not_a_number_stops_and_names_the_images(tmp_path: Path) -> None:
    with pytest.raises(
        LossError, match=r"iteration \d+: loss is nan, loss_toy is nan.*photos/007\.jpg"
    ) as caught:
        train(tmp_path, train_dataloader__dataset__broken=7)
    last = int(str(caught.value).split(":")[0].removeprefix("iteration "))
    for path in tmp_path.glob("*.pth"):
        content = torch.load(path, weights_only=True)
        assert content["meta"]["iter"] < last
        assert all(value.isfinite().all() for value in content["state_dict"].values())


def test_mixed_precision_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ToyModel] = []
    monkeypatch.setattr(ToyModel, "trained", lambda self: seen.append(self) or ("head", "scale"))
    train(tmp_path / "full")
    assert seen[-1].dtypes == {torch.float32}
    train(tmp_path / "half", amp="bf16")
    assert seen[-1].dtypes <= {torch.bfloat16, torch.float32}
    assert losses(tmp_path / "half") != losses(tmp_path / "full")
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "full"), rel=0.05)
    with pytest.raises(ConfigError, match="needs a GPU"):
        train(tmp_path, amp="fp16")


def test_accumulated_gradients_are_those_of_a_larger_batch(tmp_path: Path) -> None:
    common = {"model__dropout": 0.0, "param_scheduler": None, "train_dataloader__dataset__length": 8}
    large = train(tmp_path / "a", train_cfg__max_iters=3, **common)
    parts = {"train_dataloader__batch_size": 2, "optim_wrapper__accumulative_counts": 2}
    small = train(tmp_path / "b", train_cfg__max_iters=6, **common, **parts)
    for name, value in weights(large).items():
        torch.testing.assert_close(weights(small)[name], value, rtol=1e-4, atol=1e-6)


def test_what_can_be_said_before_the_work_is(tmp_path: Path) -> None:
    free = load_config(REPO / "configs/sclip/sclip_bundled_scenes.py")
    with pytest.raises(ConfigError, match=r"training-free method.*tools/test\.py"):
        prepare_training(free, work_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"has no train_dataloader.*docs/training\.md"):
        train(tmp_path, train_dataloader=None)
    dataset = {"_delete_": True, "type": "mmseg.ADE20KDataset", "data_root": str(tmp_path / "ade")}
    dataset["data_prefix"] = {"img_path": "images/training"}
    with pytest.raises(ConfigError) as caught:
        train(tmp_path, train_dataloader__dataset=dataset)
    said = str(caught.value)
    assert f"{tmp_path}/ade/images/training" in said
    assert "--cfg-options train_dataloader.dataset.data_root=FOLDER" in said
    assert "  annotations/training/ADE_*_00000001.png" in said
    trained = train(tmp_path / "run")
    with pytest.raises(ConfigError, match="--seed 5 contradicts the checkpoint"):
        prepare_training(load_config(CONFIG), work_dir=tmp_path / "run", resume=trained.checkpoint, seed=5)


def test_trained_model_answers_through_the_config(tmp_path: Path) -> None:
    trained = train(tmp_path)
    found = inferencer_from_config(CONFIG, checkpoint=trained.checkpoint, device="cpu")
    assert found.scale == pytest.approx(float(weights(trained)["scale"]))
    assert (found.name, len(found.weights_sha256)) == ("iter_12.pth", 64)
    assert inferencer_from_config(CONFIG, device="cpu").name == "untrained"
    with pytest.raises(ConfigError, match="model cannot be built"):
        inferencer_from_config(CONFIG, device="cpu", dtype="bf16")


@pytest.mark.parametrize("endless", [True, False])
def test_draws_do_not_depend_on_processes_or_on_where_one_begins(
    endless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draws(rank: int, world: int, number: int, skipped: int = 0) -> list[tuple[int, int]]:
        monkeypatch.setattr("ovseg.mm.draws.get_dist_info", lambda: (rank, world))
        sampler = DrawSampler(range(10), seed=3, endless=endless)
        sampler.set_epoch(1)
        sampler.skip(skipped)
        return [(int(draw), draw.seed) for draw, _ in zip(sampler, range(number), strict=False)]

    alone = draws(0, 1, 10)
    both = [each for pair in zip(draws(0, 2, 5), draws(1, 2, 5), strict=True) for each in pair]
    assert both == alone
    assert sorted(index for index, _ in alone) == list(range(10))
    assert len({seed for _, seed in alone}) == 10
    assert draws(0, 1, 6, skipped=4) == alone[4:]


def test_a_draw_reaches_a_worker_with_its_seed() -> None:
    draw = pickle.loads(pickle.dumps(Draw(3, 17)))
    assert (draw, draw.seed, [0, 1, 2, 7][draw]) == (3, 17, 7)
    dataset = SeededDataset([torch.rand for _ in range(4)])
    before = torch.get_rng_state()
    with torch.random.fork_rng():
        first = dataset[draw]
    assert first is torch.rand
    assert torch.equal(torch.get_rng_state(), before)


def test_curve_of_a_killed_run_is_read(tmp_path: Path) -> None:
    for run, lines in (("1", '{"loss": 2.0, "step": 1}\n{"loss": 1.0, "step": 2}\n{"lo'),
                       ("2", '{"loss": 0.9, "step": 2, "lr": 1}\n{"mIoU": 3.0, "step": 2}\n')):  # fmt: skip
        (tmp_path / run / "vis_data").mkdir(parents=True)
        (tmp_path / run / "vis_data" / "scalars.json").write_text(lines)
    assert read_curves(tmp_path) == {"loss": {1: 2.0, 2: 0.9}, "mIoU": {2: 3.0}}
    assert draw_curves(tmp_path / "nothing") is None
