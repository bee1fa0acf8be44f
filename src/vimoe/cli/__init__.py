"""The command line: one verb a file, imported only when it is called."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from vimoe.errors import UserError
from vimoe.training.interrupt import InterruptedRun

VERBS = {
    "demo": "train, upcycle, analyse, prune and compare on embedded images, in minutes",
    "train": "train a model from a recipe, dense or as a Mixture-of-Experts",
    "evaluate": "measure a trained model on labelled images: accuracy, calibration, mIoU",
    "predict": "classify or segment images, and list the experts that were chosen",
    "analyze": "measure which MoE layers of a run specialise and matter; plan what to keep",
    "prune": "apply a plan to a run, train on to recover, and report the effect",
    "study": "run a grid of settings and seeds; write its tables and figures",
    "export": "write a trained model as an ONNX or torch.export file, and check it",
    "info": "count parameters and multiply-adds of a model, dense and upcycled",
}

USAGE = "usage: vimoe [-h] [--version] VERB ...\n\n{about}\n\nverbs:\n{verbs}\n\n`vimoe VERB --help` tells more."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `vimoe` with these arguments (those of the process by default).

    Returns:
        The exit code: 0, 2 after one line on stderr for what the user can mend, or 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        verbs = "\n".join(f"  {verb:8} {about}" for verb, about in VERBS.items())
        print(
            USAGE.format(about="Sparse Mixture-of-Experts Vision Transformers from pretrained dense ones.", verbs=verbs)
        )
        return 0
    if arguments[0] == "--version":
        from vimoe import __version__

        print(f"vimoe {__version__}")
        return 0
    verb = arguments[0]
    try:
        if verb not in VERBS:
            near = difflib.get_close_matches(verb, VERBS, n=1)
            hint = f", did you mean {near[0]!r}? There is" if near else ": there is"
            raise UserError(f"unknown verb {verb!r}{hint} {', '.join(VERBS)}")
        import_module(f"vimoe.cli.{verb}").run(arguments[1:])
    except UserError as error:
        return _fail(f"process {rank}: {error}" if (rank := os.environ.get("RANK", "0")) != "0" else str(error))
    except BrokenPipeError:  # whoever reads along has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except KeyboardInterrupt:
        print("vimoe: interrupted; the same command goes on from the last state it wrote", file=sys.stderr)
        return 130
    except InterruptedRun as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"vimoe: {error}", file=sys.stderr)
        return 130
    return 0


def _fail(message: str) -> int:
    print(f"vimoe: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
