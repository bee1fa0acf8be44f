import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

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
    assert done.stderr == "vimoe: error: unknown verb 'trian', did you mean 'train'?\n"


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("vimoe 0.")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nonsense"], "unknown verb 'nonsense'; there is demo, train, "),
        (["--helq"], "unknown flag '--helq'"),
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
            "unknown dataset 'nonsense'; there is digits, ",
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


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in which VIMOE stands for the command line."""
    command = f"set -o pipefail; {command.replace('VIMOE', f'{sys.executable} -m vimoe')}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("verb", ["train --help", "--help"])
def test_a_reader_that_has_gone_is_no_traceback(verb: str) -> None:
    ended = shell(f"VIMOE {verb} | true")
    assert ended.stderr == ""
    assert ended.returncode in (0, 141)  # the reader may go after all was written


@pytest.mark.parametrize(
    ("command", "code", "line"),
    [
        ("VIMOE --help >&-", 0, ""),
        ("VIMOE --help 2>&-", 0, ""),
        ("VIMOE --help >&- 2>&-", 0, ""),
        ("VIMOE nonsense 2>&-", 2, ""),
        ("VIMOE nonsense 2>/dev/full", 2, ""),
        ("VIMOE --help >/dev/full", 2, "vimoe: error: No space left on device\n"),
    ],
)
def test_streams_that_are_closed_or_full_are_no_traceback(command: str, code: int, line: str) -> None:
    ended = shell(command)
    assert (ended.returncode, ended.stderr) == (code, line)


def test_a_closed_stdout_does_not_give_its_number_to_a_file(tmp_path: Path) -> None:
    code = (
        f"from vimoe.cli import main; main(['--help']); f = open({str(tmp_path / 'f')!r}, 'w'); assert f.fileno() > 2"
    )
    assert subprocess.run(["bash", "-c", f'{sys.executable} -c "{code}" >&-'], check=False).returncode == 0


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: object) -> None:
        raise error

    monkeypatch.setattr("vimoe.cli.evaluate.run", run)
    monkeypatch.setattr("vimoe.cli.train.run", run)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("CUDA out of memory. Tried"), RuntimeError("[x] DefaultCPUAllocator: can't allocate")],
)
def test_too_little_memory_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(error, monkeypatch)
    assert main(["evaluate"]) == 2
    assert capsys.readouterr().err.startswith("vimoe: error: out of memory; smaller batches or images need less. ")


def test_another_runtime_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(RuntimeError("a bug"), monkeypatch)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["evaluate"])


def test_only_verbs_that_go_on_say_so_when_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(KeyboardInterrupt(), monkeypatch)
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "vimoe: interrupted; the same command goes on\n"
    assert main(["evaluate"]) == 130
    assert capsys.readouterr().err == "vimoe: interrupted\n"


def test_an_interrupt_that_a_library_turned_into_an_error_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("DataLoader worker exited unexpectedly") from None

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("vimoe.cli.evaluate.run", run)
    assert main(["evaluate"]) == 130
    assert capsys.readouterr().err == "vimoe: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_name_that_is_no_text_can_be_printed() -> None:
    ended = shell("VIMOE info $'\\xff' ; LC_ALL=C PYTHONIOENCODING=ascii VIMOE info é")
    lines = ended.stderr.splitlines()
    assert [line.startswith("vimoe: error: ") for line in lines] == [True, True]


@pytest.mark.parametrize("verb", [[], *([verb] for verb in VERBS)], ids=lambda verb: "".join(verb) or "vimoe")
def test_help_fits_in_80_columns(
    verb: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with suppress(SystemExit):
        main([*verb, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: vimoe")
    assert max(map(len, lines)) <= 80
