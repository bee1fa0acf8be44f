"""`vimoe compare`: finished runs side by side on the same images."""

from collections.abc import Sequence
from pathlib import Path

from vimoe.cli.arguments import Parser


def run(arguments: Sequence[str]) -> None:
    """Print the table; write it and one figure."""
    parser = Parser("compare", "Differences are against the first run, paired image by image.")
    parser.value("run", "the folders of finished runs", type=Path, nargs="+")
    parser.flag("--split", "the images to compare on", "test", choices=("train", "val", "test"))
    parser.flag("--output", "where table and figure go (default: comparison, beside the first run)", type=Path)
    parser.shared("--data-dir", "--batch-size", "--workers", "--device")
    args = parser.parse(arguments)
    from vimoe.files import write_text
    from vimoe.report.comparison import comparison_table
    from vimoe.report.plots import score_and_cost
    from vimoe.report.saving import save_figure
    from vimoe.study.compare_runs import compare_runs

    found = compare_runs(
        args.run,
        split=args.split,
        data_dir=args.data_dir,
        batch_size=args.batch_size,
        workers=args.workers,
        device=args.device,
    )
    split = found.data.split()[0]
    note = "Changes are against the first row; an interval that holds 0 is within noise."
    table = comparison_table(found.variants, found.metric, found.images, note, split)
    folder = args.output or args.run[0].resolve().parent / "comparison"
    write_text(folder / "comparison.md", table.markdown())
    write_text(folder / "comparison.csv", table.csv())
    save_figure(score_and_cost(found.variants, found.metric, split), folder / "comparison")
    print(f"{table.text()}\n\nTable and figure lie in {folder}.")
