from dataclasses import asdict
from pathlib import Path

import pytest

from vimoe.study.recovery import recovery, recovery_epochs
from vimoe.training.recipe import Recipe

RUN = Recipe(epochs=10, lr=0.5, warmup_epochs=2.0, last=4, pretrained=True, batch_size=7, output="run")


@pytest.mark.parametrize(("recover", "epochs"), [(0.25, 3), (0.3, 3), (0.0, 0), (0.01, 1), (1, 1), (4, 4)])
def test_a_share_of_the_epochs_is_rounded_up_and_a_number_is_itself(recover: float, epochs: int) -> None:
    assert recovery_epochs(RUN, recover) == epochs


def test_recovery_is_the_runs_own_recipe_from_the_pruned_model_at_a_fourteenth_of_the_rate() -> None:
    after = asdict(recovery(RUN, Path("start"), 4, Path("pruned"), "cpu"))
    changed = {key: value for key, value in after.items() if value != asdict(RUN)[key]}
    assert changed == {
        **{"initial_checkpoint": "start", "pretrained": False, "last": 0, "epochs": 4, "lr": pytest.approx(0.035)},
        **{"warmup_epochs": 1.0, "device": "cpu", "output": "pruned"},
    }
