"""tools/train.py: messages, and two processes that are killed and go on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mm.conftest import _quick_and_forgetful_mmengine  # noqa: F401  # fixture
from mm.toy import CONFIG
from support import load_tool

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool() -> ModuleType:
    return load_tool(ROOT / "tools" / "train.py")


def test_says_where_the_checkpoint_is_and_what_comes_next(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(CONFIG), "--work-dir", str(tmp_path), "--seed", "3", "--cfg-options"]
    assert tool.main([*words, "train_cfg.max_iters=4"]) == 0
    said = capsys.readouterr().out
    checkpoint = tmp_path / "iter_4.pth"
    assert f"trained: {checkpoint}\n" in said
    assert f"python tools/test.py {CONFIG} {checkpoint}\n" in said
    assert f"--method {CONFIG} --weights {checkpoint}\n" in said
    assert torch.load(checkpoint, weights_only=True)["meta"]["seed"] == 3
    assert (
        tool.main([str(CONFIG), "--work-dir", str(tmp_path), "--resume"]) == 0
    )  # with the seed it began with
    assert torch.load(tmp_path / "iter_12.pth", weights_only=True)["meta"]["seed"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["configs/none.py"], "no such config: configs/none.py"),
        ([str(ROOT / "configs/sclip/sclip_bundled_scenes.py")], "nothing is to train"),
        ([str(CONFIG), "--resume", "none.pth"], "no such file: none.pth"),
        ([str(CONFIG), "--amp", "fp16"], "needs a GPU"),
        ([str(CONFIG), "--cfg-options", "model"], "--cfg-options takes KEY=VALUE, got 'model'"),
        ([str(CONFIG), "--launcher", "slurm"], "srun --ntasks N python tools/train.py CONFIG"),
    ],
)
def test_messages(
    tool: ModuleType,
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tool.main([*words, "--work-dir", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_not_a_number_is_no_usage_error(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(CONFIG), "--work-dir", str(tmp_path), "--cfg-options"]
    assert tool.main([*words, "train_dataloader.dataset.broken=7"]) == 1
    assert re.search(r"error: iteration \d+: loss is nan.*photos/007\.jpg", capsys.readouterr().err)


@pytest.mark.timeout(1200)  # three processes import OpenMMLab: half a minute, much more on a busy machine
def test_killed_run_goes_on_in_two_processes(tool: ModuleType, tmp_path: Path) -> None:
    """One process, killed with SIGKILL, resumed by two with half the batch, against a run left alone."""
    options = ["model.dropout=0.0", "train_dataloader.dataset.length=11", "train_cfg.max_iters=30"]
    alone = [str(CONFIG), "--work-dir", str(tmp_path / "alone"), "--cfg-options", *options]
    assert tool.main([*alone, "train_dataloader.batch_size=8"]) == 0
    command = [sys.executable, "tools/train.py", str(CONFIG), "--work-dir", str(tmp_path / "killed")]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    last = tmp_path / "killed" / "last_checkpoint"
    with subprocess.Popen(
        [*command, "--cfg-options", *options, "train_dataloader.batch_size=8"],
        cwd=ROOT,
        env=environment | {"TOY_DELAY": "0.5"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        while not last.exists() and running.poll() is None:
            time.sleep(0.05)
        running.kill()
    killed_at = int(re.findall(r"\d+", last.read_text())[-1])
    assert killed_at < 30
    command += ["--launcher", "pytorch", "--resume", "--cfg-options", *options]
    command += ["train_dataloader.batch_size=4", "train_dataloader.num_workers=1"]
    port = str(20000 + os.getpid() % 20000)
    common = environment | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert f"resumed epoch: 0, iter: {killed_at}" in said[0]
    assert ["trained: " in each for each in said] == [True, False]
    ends = [
        torch.load(tmp_path / run / "iter_30.pth", weights_only=True)["state_dict"]
        for run in ("alone", "killed")
    ]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-5)
