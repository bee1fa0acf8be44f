"""The command line in a child of its own, with limits on time and memory; torch is imported once, before the fork."""

import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

LIMIT_SECONDS = 60  # of computing: a loaded machine is slow, not wrong
LIMIT_WAIT = 300
LIMIT_BYTES = 6 * 2**30  # beyond what the parent holds


class Outcome(NamedTuple):
    """How a command ended.

    Attributes:
        code: Its exit code; negative for a signal, None where it had to be killed.
        out: Standard output.
        err: Standard error.
        seconds: How long it took.
    """

    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def fault(self) -> str:
        """What is wrong with this end, empty where it is an answer or one clear line."""
        if self.code is None:
            return f"did not end in {LIMIT_WAIT} s"
        if self.code == -signal.SIGXCPU:
            return f"computed for {LIMIT_SECONDS} s"
        if self.code < 0:
            return f"ended by signal {signal.Signals(-self.code).name}"
        if "Traceback" in self.err:
            return f"a traceback: {self.err.strip().splitlines()[-1][:160]}"
        if self.code not in (0, 2, 130):
            return f"exit code {self.code}"
        if self.code == 2 and not (self.err.splitlines() or [""])[-1].startswith("vimoe: error: "):
            return f"exit code 2 without its line: {self.err[-160:]!r}"
        return ""


def vimoe(
    arguments: list[str], folder: Path, largest_file: int | None = None, stop: tuple[int, float] | None = None
) -> Outcome:
    """Run `vimoe` with these arguments in a folder.

    Args:
        arguments: The command line.
        folder: The working directory.
        largest_file: Bytes at which a file can grow no more, as on a full disk.
        stop: A signal, and the seconds after which the command gets it once it listens to signals.
    """
    started = time.perf_counter()
    child, listening = begin(arguments, folder, largest_file), 0.0
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if stop is not None and not listening and _listens(child):
            listening = time.perf_counter()
        if stop is not None and listening and time.perf_counter() - listening > stop[1]:
            # Ctrl-C in a terminal goes to the workers too.
            (os.killpg if stop[0] == signal.SIGINT else os.kill)(child, stop[0])
            stop = None
        if time.perf_counter() - started > LIMIT_WAIT:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            ended = (child, None)  # type: ignore[assignment]
            break
        time.sleep(0.005)
    code = None if ended[1] is None else os.waitstatus_to_exitcode(ended[1])
    text = [(folder / name).read_text(errors="replace") for name in (".out", ".err")]
    return Outcome(code, *text, time.perf_counter() - started)


def _listens(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM, which Python by itself has not."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def begin(arguments: list[str], folder: Path, largest_file: int | None = None) -> int:
    """Start `vimoe` with these arguments in a folder, its output in `.out` and `.err` there; gives the process."""
    if child := os.fork():
        return child
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        for name, stream in ((".out", 1), (".err", 2)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if largest_file is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_SECONDS, LIMIT_SECONDS + 5))
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + LIMIT_BYTES, held + LIMIT_BYTES))
        from vimoe.cli import main

        code = main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
