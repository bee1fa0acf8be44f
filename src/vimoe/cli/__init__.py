"""The command line: one verb a file, imported only when it is called."""

import io
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType
from typing import TextIO

from vimoe import __version__
from vimoe.errors import UserError, first_line, suggest
from vimoe.training.interrupt import InterruptedRun

VERBS = {
    "demo": "train, upcycle, analyze, prune and compare, on embedded images",
    "train": "train a model from a recipe, dense or as a Mixture-of-Experts",
    "evaluate": "measure a model on labelled images: accuracy, calibration, mIoU",
    "predict": "classify or segment images, and list the chosen experts",
    "analyze": "measure which MoE layers specialise and matter, and make a plan",
    "compare": "compare finished runs on the same images: accuracy and cost",
    "prune": "apply the plan to a run, train to recover, and report the effect",
    "study": "run a grid of settings and seeds, and write tables and figures",
    "export": "write a model as an ONNX or torch.export file, and check it",
    "card": "write a model card: what a run is, how good, at what cost",
    "push": "upload a model and its card to the Hugging Face Hub",
    "convert-vmoe": "turn a JAX checkpoint of V-MoE into a model folder",
    "info": "count a model's parameters and multiply-adds, dense and upcycled",
}
# These go on where they stopped.
RESUMABLE = ("demo", "train", "prune", "study")

USAGE = """\
usage: vimoe [-h] [--version] VERB ...

Sparse Mixture-of-Experts Vision Transformers from pretrained dense ones.

verbs:
{verbs}

`vimoe VERB --help` lists the flags of a verb."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `vimoe` with these arguments (those of the process by default), and return the exit code.

    0; 2 after one line on stderr for what the user can mend; 130 after an interrupt; 141 if the reader of the output
    has gone.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _open_closed_streams()
    verb = arguments[0] if arguments else "--help"
    try:
        with _interruptible():
            try:
                _run(verb, arguments[1:])
            finally:  # --help ends in a SystemExit
                sys.stdout.flush()
    except UserError as error:
        return _fail(f"process {rank}: {error}" if (rank := os.environ.get("RANK", "0")) != "0" else str(error))
    except BrokenPipeError:
        _discard(sys.stdout)
        return 141  # what a shell reports of a process that ended so
    except OSError as error:
        _discard(sys.stdout)
        return _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search("out of memory|can't allocate", str(error)):
            raise
        return _fail(f"out of memory; smaller batches or images need less. {first_line(error)}")
    except KeyboardInterrupt:
        _tell(f"interrupted{'; the same command goes on' if verb in RESUMABLE else ''}")
        return 130
    except InterruptedRun as error:
        if os.environ.get("RANK", "0") == "0":
            _tell(str(error))
        return 130
    return 0


def _run(verb: str, arguments: Sequence[str]) -> None:
    if verb in ("-h", "--help"):
        print(USAGE.format(verbs="\n".join(f"  {name:14}{about}" for name, about in VERBS.items())))
    elif verb == "--version":
        print(f"vimoe {__version__}")
    elif verb in VERBS:
        import_module(f"vimoe.cli.{verb.replace('-', '_')}").run(arguments)
    else:
        raise UserError(f"unknown {'flag' if verb.startswith('-') else 'verb'} {verb!r}{suggest(verb, VERBS)}")


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM is a Ctrl-C, and so is whatever a library makes of one, an error of its own or a worker's end."""
    interrupted = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {kind: signal.signal(kind, note) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Exception as error:
        if interrupted and not isinstance(error, InterruptedRun):
            raise KeyboardInterrupt from error
        raise
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _open_closed_streams() -> None:
    """Give a stream that the shell closed (`>&-`) to /dev/null, so that no file gets its number and its output."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be text


def _discard(stream: TextIO) -> None:
    """What cannot be written is not tried again at exit."""
    with suppress(OSError, ValueError):  # ValueError: no real stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fail(message: str) -> int:
    _tell(f"error: {' '.join(message.split())}")
    return 2


def _tell(line: str) -> None:
    try:
        print(f"vimoe: {line}", file=sys.stderr)
    except OSError:  # the exit code must do
        _discard(sys.stderr)
