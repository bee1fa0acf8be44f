import csv
from pathlib import Path

from tests.study.support import TINY, study
from tests.study.test_study_rows import MOE, RESULT
from vimoe.study.gather import gather
from vimoe.study.grid import list_runs
from vimoe.study.study_rows import read_study_rows


def test_rows_curves_and_the_deepest_runs_counts_are_gathered(tmp_path: Path) -> None:
    text = TINY.replace("seeds: [0]", "seeds: [0, 1]").replace("last: [0, 2]", "last: [0, 1, 2]")
    runs = list_runs(study(tmp_path, text))
    folder = tmp_path / "runs"
    results = {run.name: MOE if "N2" in run.name else RESULT for run in runs}
    for name in results:
        (folder / name / "routing").mkdir(parents=True)
        (folder / name / "routing" / "val.npz").write_bytes(name.encode())
        (folder / name / "metrics.jsonl").write_text('{"epoch": 1, "val_top1": 50.0, "routing": {"0": {}}}\n')
    some = {name: result for name, result in results.items() if "L2" not in name}
    gather(runs, some, folder)
    assert {path.name for path in (folder / "routing").iterdir()} == {"N2-L1.npz", "N2-L1-shared.npz"}
    gather(runs, results, folder)
    assert [row.run for row in read_study_rows(folder / "study.csv")] == list(results)
    with (folder / "curves.csv").open(newline="") as file:
        assert next(iter(csv.DictReader(file))) == {"run": "seed0/start", "epoch": "1", "val_top1": "50.0"}
    counts = {path.name: path.read_bytes() for path in (folder / "routing").iterdir()}
    assert counts == {
        "N2-L2.npz": b"seed0/N2-L2",
        "N2-L2-shared.npz": b"seed0/N2-L2-shared",
    }
