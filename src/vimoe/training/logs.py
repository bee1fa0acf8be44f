"""Where a run's rows go besides its own files: TensorBoard and Weights & Biases, when the recipe asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
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


class Logs:
    """The loggers that a recipe asks for; entering opens them, leaving closes them.

    Args:
        folder: The run's folder.
        recipe: The run's recipe.

    Raises:
        UserError: A logger is asked for that is not installed (when entered).
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        self._tensorboard: Any = None
        self._wandb: Any = None

    def __enter__(self) -> Logs:
        if self.recipe.log_tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UserError("log_tensorboard needs TensorBoard: pip install 'vimoe[tensorboard]'") from error
            self._tensorboard = SummaryWriter(str(self.folder / "tensorboard"))
        if self.recipe.log_wandb:
            try:
                import wandb
            except ImportError as error:
                raise UserError("log_wandb needs Weights & Biases: pip install 'vimoe[wandb]'") from error
            name = self.folder.name
            self._wandb = wandb.init(
                project="vimoe", name=name, id=name, resume="allow", dir=self.folder, config=asdict(self.recipe)
            )
        return self

    def add(self, row: dict[str, Any]) -> None:
        """Log one epoch's row; a row that is logged again after a resume takes the place of the first."""
        values = dict(scalars(row))
        epoch = int(values.pop("epoch"))
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, epoch)
        if self._wandb is not None:
            self._wandb.log(values, step=epoch)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if error is None else 1)
