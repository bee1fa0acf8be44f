"""Where a run's rows go besides its own files: TensorBoard and Weights & Biases, when the recipe asks for them."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from vimoe.errors import UserError
from vimoe.training.recipe import Recipe


def scalars(row: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a row by name, those inside it as `outer/inner`; lists are left out."""
    for key, value in row.items():
        if isinstance(value, dict):
            yield from scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield prefix + key, float(value)


@contextmanager
def open_logs(folder: Path, recipe: Recipe) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Open the loggers that a recipe asks for; gives a function that logs an epoch's row.

    A row that is logged again after a resume takes the place of the first.

    Raises UserError if a logger is not installed.
    """
    writer = session = None
    with ExitStack() as stack:
        if recipe.log_tensorboard:
            writer = _logger("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder / "tensorboard"))
            stack.callback(writer.close)
        if recipe.log_wandb:
            place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]  # folders may share a name
            session = _logger("wandb", "wandb").init(
                project="vimoe",
                name=folder.name,
                id=f"{folder.name}-{place}",
                resume="allow",
                dir=folder,
                config=asdict(recipe),
            )
            stack.push(lambda kind, *_: session.finish(exit_code=0 if kind is None else 1))

        def add(row: dict[str, Any]) -> None:
            values = dict(scalars(row))
            epoch = int(values.pop("epoch"))
            if writer is not None:
                for name, value in values.items():
                    writer.add_scalar(name, value, epoch)
            if session is not None:
                session.log(values, step=epoch)

        yield add


def _logger(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"log_{extra} is not installed: pip install 'vimoe[{extra}]'") from error
