"""From a data set's name to its pictures."""

from __future__ import annotations

from pathlib import Path

from vimoe.data.digits import digits
from vimoe.data.folder import PictureForm, Variation, open_folder
from vimoe.data.splits import Splits
from vimoe.errors import UserError

NAMES = ("digits", "folder")


def open_dataset(
    name: str,
    data_dir: str | None = None,
    form: PictureForm | None = None,
    variation: Variation | None = None,
    val_share: float = 0.1,
    seed: int = 0,
) -> Splits:
    """The pictures behind a recipe's `dataset`.

    Args:
        name: `digits` (embedded; takes nothing else) or `folder` (see `vimoe.data.folder.open_folder`).
        data_dir: The folder.
        form: How the model wants its pictures.
        variation: How training pictures are varied.
        val_share: Share of each class to set aside where the folder is not split.
        seed: The run's seed.

    Raises:
        UserError: The name is not known, or the folder cannot be used.
    """
    if name == "digits":
        return digits()
    if name != "folder":
        raise UserError(f"unknown dataset {name!r}; there is {', '.join(NAMES)}")
    if data_dir is None or form is None:
        raise UserError("dataset 'folder' needs data_dir, the folder of pictures")
    return open_folder(Path(data_dir), form, variation, val_share, seed)
