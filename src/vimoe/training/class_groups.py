"""Classes that a model takes for one another, in groups of equal size."""

import numpy as np
from numpy.typing import NDArray


def group_classes(confusion: NDArray[np.floating], groups: int) -> list[list[int]]:
    """Cut the classes into so many groups, equal in size up to one, so that confusions lie within them.

    How alike two classes are is the sum of their shares in each other's row. Each group grows from the first free class
    by the class most like its members; then pairs of classes change places as long as likeness within groups rises
    (as in Kernighan and Lin 1970).

    Args:
        confusion: `[C, C]`, by class, how often it is taken for each class: counts, or sums of probabilities.

    Returns:
        The classes of each group, ascending; every class is in one.
    """
    classes, short = len(confusion), -len(confusion) % groups
    alike = confusion / np.maximum(confusion.sum(1, keepdims=True), 1e-12)
    # The last groups have an empty place each, as like to all as to none: whoever changes places with it moves.
    alike = np.pad(alike + alike.T, (0, short))
    np.fill_diagonal(alike, 0.0)
    empty = np.arange(len(alike)) >= classes
    group = np.where(empty, np.arange(len(alike)) - len(alike) + groups, -1)
    for number, part in enumerate(np.array_split(group[~empty], groups)):
        pull = np.zeros(len(alike))
        for _ in part:
            chosen = np.where(group < 0, pull, -1.0).argmax()  # the first of equals
            group[chosen] = number
            pull += alike[chosen]
    while True:
        to = alike @ np.eye(groups)[group]  # `[C, groups]`, how like a class is to all of a group
        gain = to[:, group] - to[np.arange(len(alike)), group][:, None]
        gain = gain + gain.T - 2 * alike
        gain[group[:, None] == group] = 0.0
        gain[np.ix_(np.isin(group, group[empty]), empty)] = 0.0  # no group has two
        one, other = np.unravel_index(gain[:classes].argmax(), gain[:classes].shape)
        if gain[one, other] <= 1e-9:
            return [np.flatnonzero((group == number) & ~empty).tolist() for number in range(groups)]
        group[one], group[other] = group[other], group[one]
