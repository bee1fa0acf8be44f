"""`kill -9` at random moments, then the same command: the bits of a run that was never interrupted.

`make soak` kills 50 times, and ten times under torchrun, and prints how it went.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kills import soak, spawn
from vimoe.training.run_folder import RunFolder
from vimoe.vit.checkpoint import load

MODEL = '{"patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "weight_init": "jax"}'
FLAGS = {
    "--model-args": MODEL,
    "--last": "1",
    "--num-experts": "3",
    "--mixup": "0.2",
    "--model-ema-decay": "0.9",
    "--accumulate": "2",
    "--batch-size": "32",
    "--checkpoint-minutes": "0",  # a state after every step, so that kills fall inside its writing too
    "--device": "cpu",
}


VIMOE = [sys.executable, "-c", "import sys; from vimoe.cli import main; sys.exit(main())"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vimoe"]


def command(output: Path, epochs: int, *more: str, program: list[str] = VIMOE) -> list[str]:
    flags = [part for pair in FLAGS.items() for part in pair]
    return [*program, "train", *flags, "--router-noise", "--epochs", str(epochs), "--output", str(output), *more]


def check(tmp_path: Path, kills: int, longest: float, *how: Any, **by: Any) -> str:
    """Compare killed runs with one that was not; `how` and `by` are those of `command`."""

    def start(folder: Path) -> int:
        return spawn(command(folder / "run", *how, **by))

    def weights(folder: Path) -> dict[str, torch.Tensor]:
        return load(RunFolder(folder / "run").model).state_dict()

    def compare(folder: Path) -> None:
        killed = weights(folder)
        assert whole.keys() == killed.keys()
        assert all(torch.equal(whole[name], killed[name]) for name in whole)

    assert os.waitpid(start(tmp_path), 0)[1] == 0
    whole = weights(tmp_path)
    # A launcher that is killed alone leaves its processes at work, and they hold the folder.
    return soak(start, compare, tmp_path, kills, longest, states=True, alone=by.get("program") is not TORCHRUN)


def test_kills_change_no_bit(tmp_path: Path) -> None:
    check(tmp_path, 2, 0.2, 8)


def test_sigterm_ends_with_a_line_and_the_same_command_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = subprocess.Popen(command(output, 30), stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not list((output / "checkpoints").glob("state-*.pt")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.decode().splitlines()[-1].startswith("vimoe: stopped in epoch ")
    assert not RunFolder(output).finished


@pytest.mark.slow
def test_soak(tmp_path: Path) -> None:
    print(f"\ntrain: {check(tmp_path, 50, 0.6, 40)}")


@pytest.mark.slow
def test_soak_under_torchrun_with_fsdp(tmp_path: Path) -> None:
    print(f"\ntrain --fsdp on two processes: {check(tmp_path, 10, 2.0, 8, '--fsdp', program=TORCHRUN)}")
