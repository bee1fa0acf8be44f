"""The splits of a data set, and which of them a run or an evaluation takes."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vimoe.data.images import Images, Read, Samples
from vimoe.data.transforms import ImageForm
from vimoe.errors import UserError

Augment = Callable[[Tensor, torch.Generator], Tensor]

# What the splits are usually called, by their role in a run.
USUAL = {"train": ("train", "training"), "val": ("val", "validation", "valid"), "test": ("test", "testing")}
USUAL_NAMES = frozenset(name for names in USUAL.values() for name in names)
# The name of the one split of a data set that is not split.
UNSPLIT = ""


@dataclass(frozen=True)
class Splits:
    """Labelled images, split."""

    train: Images  # what is learned from; augmented by `augment`
    val: Images  # what decisions are made on (which layers to keep)
    test: Images  # what is reported, and never decides anything; the same object as `val` where there is no such split
    class_names: tuple[str, ...]  # by label
    form: ImageForm
    augment: Augment | None = None  # augments a batch `[B, C, H, W]` of training images, None for no augmentation
    # By label, the larger class that it belongs to (the script of a letter); empty without such.
    super_classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what the data set holds that is not used, a line each


class Found(NamedTuple):
    """What a data set holds in the wanted splits, before a model says in what form it wants it."""

    parts: Mapping[str, Samples]  # the chosen splits: where each image is, with its label or where its mask is
    class_names: tuple[str, ...] | None  # by label; None where labels are numbers without names
    read: Read  # from a sample to the image in RGB and its target
    super_classes: tuple[str, ...] = ()  # as of `Splits`
    notes: tuple[str, ...] = ()  # as of `Splits`


class RunSplits(NamedTuple):
    """The splits that a run takes; one without a name is looked for by the usual names."""

    train: str = ""
    val: str = ""
    test: str = ""

    def choose(self, there: Collection[str], where: str) -> dict[str, str]:
        """By role (`train`, and `val` and `test` where there are such), which of the splits that are `there` to take.

        Raises UserError if a split that is named is not there, or none is there to learn from.
        """
        if UNSPLIT in there:
            return {"train": UNSPLIT}
        chosen = dict[str, str]()
        for role, name in zip(USUAL, self, strict=True):
            _check_there(name, there, where)
            taken = () if role == "train" else (*chosen.values(), *self)
            if found := name or _usual(role, [n for n in there if n not in taken]):
                chosen[role] = found
        if "train" not in chosen:
            raise UserError(f"{where} has no training split; name one with train_split: there is {_listed(there)}")
        return chosen


class OneSplit(NamedTuple):
    """The split that an evaluation takes: `train`, `val`, `test`, its own name; if empty, test, val or the only one."""

    name: str = ""

    def choose(self, there: Collection[str], where: str) -> dict[str, str]:
        """The split under its own name. Raises UserError if it is not there, or has no name and there are several."""
        if UNSPLIT in there:
            return {UNSPLIT: UNSPLIT}
        roles = [self.name] if self.name else ["test", "val"]
        found = self.name if self.name in there else next(filter(None, (_usual(r, there) for r in roles)), "")
        if not found:
            _check_there(self.name, there, where)
            if len(there) != 1:
                raise UserError(f"{where} has several splits; name one with --split: there is {_listed(there)}")
            (found,) = there
        return {found: found}


Wanted = RunSplits | OneSplit
AS_USUAL = RunSplits()


def is_split(inside: Collection[str], wanted: Wanted) -> bool:
    """Whether a folder is split: a split is wanted by name, or what is `inside` has one of the usual names."""
    return any(wanted) or any(name.casefold() in USUAL_NAMES for name in inside)


def check_classes(found: Sequence[str], expected: Sequence[str], whose: str) -> None:
    """Make sure that a data set has the classes that a model learned, in their order.

    Raises UserError if they differ; the line begins with `whose` (such as `the images have other classes than the
    model`) and names the first class that only one of them has.
    """
    if tuple(found) == tuple(expected):
        return
    odd = sorted(set(expected) ^ set(found))
    difference = f", the first that differs is {odd[0]!r}" if odd else ", in another order"
    raise UserError(f"{whose}: {len(found)} against {len(expected)}{difference}")


def _usual(role: str, there: Collection[str]) -> str:
    """The split of a role by its usual names, in capitals or not; empty where there is none."""
    found = {name.casefold(): name for name in there}
    return next((found[name] for name in USUAL.get(role, ()) if name in found), "")


def _check_there(name: str, there: Collection[str], where: str) -> None:
    if name and name not in there:
        raise UserError(f"{where} has no split {name!r}; there is {_listed(there)}")


def _listed(names: Collection[str]) -> str:
    return ", ".join(list(names)[:10]) or "none"
