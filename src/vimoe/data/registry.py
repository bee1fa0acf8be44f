"""From a data set's name to its pictures."""

from __future__ import annotations

from vimoe.data.digits import digits
from vimoe.data.splits import Splits
from vimoe.errors import UserError

_DATASETS = {"digits": digits}


def open_dataset(name: str) -> Splits:
    """The pictures behind a recipe's `dataset`.

    Raises:
        UserError: The name is not known.
    """
    if name not in _DATASETS:
        raise UserError(f"unknown dataset {name!r}; there is {', '.join(_DATASETS)}")
    return _DATASETS[name]()
