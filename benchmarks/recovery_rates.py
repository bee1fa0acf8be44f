"""At which learning rate a pruned model recovers, and what recovery does to one that lost nothing.

Some MoE layers of finished runs become plain FFNs, and the models are trained for a quarter of the runs' epochs at
several shares of their learning rate. Validation scores in percent, mean and standard deviation over the runs.

    python benchmarks/recovery_rates.py runs/glyphs/seed*/N8-L4-token-paper
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import vimoe
from vimoe.analysis.analyze_run import finished_run, run_images
from vimoe.study.recovery import recovery, recovery_epochs
from vimoe.training.fit import recipe_task, train
from vimoe.training.run_folder import RunFolder
from vimoe.vit.plan import LayerPlan, Plan


def scores(path: Path, blocks: list[int], shares: list[float]) -> list[float]:
    """In percent: of the run, of its model without MoE layers in these blocks, and of that trained at each rate."""
    run, recipe = finished_run(path)
    splits = run_images(run, recipe)
    task = recipe_task(recipe, splits)
    metric = f"val_{task.metric}"
    pruned = vimoe.prune(vimoe.load(run.model), Plan(tuple(LayerPlan(block, ()) for block in blocks)))
    found = [run.read_rows()[-1][metric]]
    found.append(task.evaluate(pruned, splits.val, "cpu", 0, print, 0.0)[task.metric])
    with tempfile.TemporaryDirectory() as folder:
        task.save(pruned, Path(folder) / "start", splits)
        for share in shares:
            once = recovery(recipe, Path(folder) / "start", recovery_epochs(recipe), Path(folder) / str(share), "cpu")
            train(replace(once, lr=recipe.lr * share))
            found.append(RunFolder(Path(once.output)).read_rows()[-1][metric])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--prune", type=int, nargs="+", default=[1])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.2, 0.1, 0.05])
    given = parser.parse_args()
    shown = [f"at {share:g} of the rate" for share in given.shares]
    nothing: list[int] = []
    for blocks in (nothing, given.prune):
        found = np.array([scores(path, blocks, given.shares) for path in given.runs])
        print(f"\n{len(given.runs)} runs, plain FFNs in blocks {blocks or 'none'}")
        for name, column in zip(("before", "right after", *shown), found.T, strict=True):
            change = column - found[:, 0]
            print(f"{name:20} {_spread(column)}   change {_spread(change)}", flush=True)


def _spread(values: NDArray[np.float64]) -> str:
    return f"{values.mean():6.2f} ± {values.std(ddof=1):.2f}"


if __name__ == "__main__":
    main()
