from dataclasses import replace

from tests.study.support import row
from vimoe.study.comparisons import comparisons
from vimoe.study.study_tables import comparisons_table, planned_table, power_line, settings_table


def test_settings_are_told_with_their_spread_between_seeds() -> None:
    rows = [row("dense", 0, 80.0), row("dense", 1, 82.0), row("N8-L2", 0, 81.0)]
    table = settings_table(rows)
    cells = {line[0]: dict(zip(table.header, line, strict=True)) for line in table.rows}
    assert cells["dense"]["test top1"] == "81.00 ± 1.41"
    assert cells["dense"]["seeds"] == "2"
    assert cells["N8-L2"]["test top1"] == "81.00"
    assert cells["N8-L2"]["routing degree"] == "64"
    assert "test ece" not in table.header  # no run has it


def test_how_much_was_trained_is_told_where_it_is_not_all() -> None:
    rows = [row("dense", 0, 80.0), row("lora", 0, 81.0)]
    rows = [
        replace(each, values=each.values | {"trained_params": n}) for each, n in zip(rows, (1000, 250), strict=True)
    ]
    table = settings_table(rows)
    cells = [dict(zip(table.header, line, strict=True)) for line in table.rows]
    assert [line["trained"] for line in cells] == ["0.001 M", "0.000 M"]
    assert "trained" not in settings_table(rows[:1]).header


def test_a_planned_run_stands_beside_its_sweep_and_what_both_cost() -> None:
    rows = [row("dense", 0, 80.0), row("N8-L1-shared", 0, 81.0), row("N8-L4-shared", 0, 80.5), row("N8-L1", 0, 99.0)]
    rows += [row("N8-L4-shared-planned", 0, 82.0, kept=2, epochs=10)]
    table = planned_table(rows)
    (cells,) = [dict(zip(table.header, line, strict=True)) for line in table.rows]
    assert cells["MoE layers kept"] == "10, 11"
    assert (cells["test top1"], cells["before"], cells["best L on val"]) == ("82.00", "80.50", "81.00 (N8-L1-shared)")
    assert (cells["seconds"], cells["seconds of the sweep"]) == ("20", "20")  # 10 a run


def test_comparisons_say_how_sure_they_are_and_what_they_could_find() -> None:
    rows = [row("dense", seed, 80.0) for seed in range(3)]
    rows += [row("N8-L2", seed, test) for seed, test in enumerate((81.0, 82.0, 83.0))]
    table = comparisons_table(comparisons(rows), "top1")
    cells = dict(zip(table.header, table.rows[0], strict=True))
    assert (cells["one"], cells["against"], cells["seeds"]) == ("N8-L2", "dense", "3")
    assert cells["difference in top1"] == "+2.00"
    assert cells["95 % interval"] == "-0.48 to +4.48"  # 2 ± 4.303 / √3
    assert cells["p"] == "0.074"
    assert cells["findable"] == "3.26"
    assert "with 3 seeds 3.26" in table.notes[-1]


def test_one_seed_is_told_to_say_nothing() -> None:
    rows = [row("dense", 0, 80.0), row("N8-L2", 0, 81.0)]
    table = comparisons_table(comparisons(rows), "top1")
    cells = dict(zip(table.header, table.rows[0], strict=True))
    assert (cells["95 % interval"], cells["p"], cells["findable"]) == ("-", "-", "-")
    assert (
        table.notes[-1]
        == power_line(float("nan"))
        == "One seed, or seeds that all agree, tell nothing about the spread between seeds."
    )
