import subprocess
import sys

import pytest

from vimoe.cli import VERBS, main

VIMOE = [sys.executable, "-c", "import sys; from vimoe.cli import main; sys.exit(main())"]


def test_help_names_every_verb_without_importing_torch() -> None:
    code = "import sys; from vimoe.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert f"  {verb} " in done.stdout


def test_every_verb_has_a_module_with_run_and_a_help() -> None:
    for verb in VERBS:
        done = subprocess.run([*VIMOE, verb, "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: vimoe {verb}")


def test_a_mistake_is_one_line_on_stderr_and_exit_code_2() -> None:
    done = subprocess.run([*VIMOE, "trian"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    told = f"unknown verb 'trian', did you mean 'train'? There is {', '.join(VERBS)}"
    assert done.stderr == f"vimoe: error: {told}\n"


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("vimoe 0.")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["info"], "the following arguments are required: MODEL (see vimoe info --help)"),
        (["info", "resnet18"], "ResNet has no blocks with an FFN of their own to replace; supported are plain timm"),
        (["info", "vit_smal"], "timm has no model 'vit_smal', did you mean "),
        (["info", "vit_tiny_patch16_224", "--last", "13"], "last must be 1 to 12, the number of blocks of this model"),
        (["info", "vit_tiny_patch16_224", "--last", "1", "--layers", "3"], "give either last or layers, not both"),
        (["info", "vit_tiny_patch16_224", "--top-k", "9"], "top_k must be between 1 and the 8 experts of block 10"),
        (["info", "vit_tiny_patch16_224", "--image-size", "0"], "--image-size: must be at least 1, got 0"),
        (["info", "vit_tiny_patch16_224", "--num-classes", "-1"], "--num-classes: must be at least 0, got -1"),
        (["train", "--epochs", "none"], "epochs must be a whole number, got 'none'"),
        (
            ["train", "--dataset", "nonsense", "--output", "unused"],
            "unknown dataset 'nonsense'; there is digits, glyphs, folder",
        ),
        (["demo", "--seed", "x"], "--seed: invalid int value: 'x' (see vimoe demo --help)"),
        (["demo", "--seed", "-1", "--output", "unused"], "seed must be at least 0, got -1"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"vimoe: error: {line}")
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_info_prints_the_papers_cost_table(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--image-size", "224", "--num-classes", "1000", "--num-experts", "8", "--last", "2"]
    assert main(["info", "vit_small_patch14_dinov2", *flags]) == 0
    shown = capsys.readouterr().out
    assert "ViMoE N=8 L=2  40.9 M     24.4 M      6.73 GMAC" in shown
    assert "C(8, 1)^2 = 64" in shown


def test_a_reader_that_has_seen_enough_is_no_mistake() -> None:
    command = f"{sys.executable} -m vimoe info vit_tiny_patch16_224 | true"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert ended.stderr == ""
