import pytest

from vimoe.data.splits import RunSplits
from vimoe.errors import UserError


def test_splits_are_chosen_by_name_or_by_the_usual_names() -> None:
    assert RunSplits().choose(["training", "valid", "test"], "x") == {
        "train": "training",
        "val": "valid",
        "test": "test",
    }
    assert RunSplits("b", "a").choose(["a", "b", "test"], "x") == {"train": "b", "val": "a", "test": "test"}
    assert RunSplits(test="train").choose(["train"], "x") == {"train": "train", "test": "train"}


def test_a_split_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(UserError, match="x has no split 'dev'; there is train, test"):
        RunSplits(val="dev").choose(["train", "test"], "x")
    with pytest.raises(UserError, match="x has no training split; name one with train_split: there is val, test"):
        RunSplits().choose(["val", "test"], "x")
