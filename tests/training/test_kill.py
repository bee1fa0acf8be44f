"""`kill -9` at random moments, then the same command: the bits of a run that was never interrupted.

`make soak` kills 50 times and prints how it went.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

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


def start(output: Path, epochs: int, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    flags = [part for pair in FLAGS.items() for part in pair]
    command = [sys.executable, "-c", "import sys; from vimoe.cli import main; sys.exit(main())", "train"]
    command += [*flags, "--router-noise", "--epochs", str(epochs), "--output", str(output)]
    return subprocess.Popen(command, stderr=stderr, env={**os.environ, "OMP_NUM_THREADS": "1"})


def states(output: Path) -> set[Path]:
    return set((output / "checkpoints").glob("state-*.pt"))


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load(RunFolder(output).model).state_dict()


def killed_run(output: Path, kills: int, epochs: int, longest: float) -> int:
    """Run to the end, killed up to `kills` times once it has begun to train; gives how often it was."""
    chance, done = random.Random(0), 0
    while True:
        process = start(output, epochs)
        before = states(output)
        while done < kills and process.poll() is None:
            if states(output) - before:
                time.sleep(chance.uniform(0, longest))
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    done += 1
                break
            time.sleep(0.005)
        if process.wait() == 0:
            return done


def check(tmp_path: Path, kills: int, epochs: int, longest: float) -> int:
    assert start(tmp_path / "whole", epochs).wait() == 0
    done = killed_run(tmp_path / "killed", kills, epochs, longest)
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    return done


def test_kills_change_no_bit(tmp_path: Path) -> None:
    assert check(tmp_path, kills=2, epochs=8, longest=0.2) >= 1  # a fast machine may finish before the second


def test_sigterm_ends_with_a_line_and_the_same_command_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = start(output, epochs=30, stderr=subprocess.PIPE)
    while not states(output):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.decode().splitlines()[-1].startswith("vimoe: stopped in epoch ")
    assert not RunFolder(output).finished


@pytest.mark.slow
def test_soak(tmp_path: Path) -> None:
    done = check(tmp_path, kills=50, epochs=40, longest=0.6)
    print(f"\n{done} kills, every bit the same")
    assert done == 50
