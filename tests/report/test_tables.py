import csv
import io

from vimoe.report.tables import Table, cost_table, whole
from vimoe.vit.cost import giga_macs, millions
from vimoe.vit.inspection import compare_costs

TABLE = Table(("what", "gain_%"), [["a & b", "1.0 ± 0.5"], ["c|d", "-22.5"]], ["A note."])


def test_a_table_in_a_terminal_has_its_first_column_left_and_the_others_right() -> None:
    assert TABLE.text().splitlines() == [
        "what      gain_%",
        "-----  ---------",
        "a & b  1.0 ± 0.5",
        "c|d        -22.5",
        "",
        "A note.",
    ]


def test_a_table_is_markdown_csv_and_latex() -> None:
    assert TABLE.markdown() == (
        "| what | gain_% |\n| --- | ---: |\n| a & b | 1.0 ± 0.5 |\n| c\\|d | -22.5 |\n\nA note.\n"
    )
    assert TABLE.csv() == "what,gain_%\na & b,1.0 ± 0.5\nc|d,-22.5\n"
    assert TABLE.latex() == (
        "% A note.\n\\begin{tabular}{lr}\n\\hline\nwhat & gain\\_\\% \\\\\n\\hline\n"
        "a \\& b & 1.0 $\\pm$ 0.5 \\\\\nc|d & -22.5 \\\\\n\\hline\n\\end{tabular}\n"
    )
    assert r"a\textbackslash{}b\^" not in Table((r"a\b^c",), []).latex()
    assert r"a\textbackslash{}b\textasciicircum{}c" in Table((r"a\b^c",), []).latex()


def test_no_cell_of_a_csv_is_a_formula_and_numbers_stay_numbers() -> None:
    cells = ["=1+1", "@sum", "+cmd|' /C calc'!A0", "-x", "+0.5 (-1.0 to +2.0)", "-3", "-", "- x"]
    rows = list(csv.reader(io.StringIO(Table(("a",), [[cell] for cell in cells]).csv())))[1:]
    assert [row[0] for row in rows] == ["'=1+1", "'@sum", "'+cmd|' /C calc'!A0", "'-x", *cells[4:]]


def test_numbers_keep_three_figures() -> None:
    assert [millions(n) for n in (599_000, 1_014_000, 22_013_800, 135_481_192)] == [
        "0.599 M",
        "1.01 M",
        "22.0 M",
        "135.5 M",
    ]
    assert [giga_macs(n) for n in (172_544, 10_500_000, 6_123_945_984)] == ["0.17 MMAC", "10.5 MMAC", "6.12 GMAC"]


def test_the_cost_table_holds_the_papers_figures_and_the_routing_degree() -> None:
    text = cost_table(
        compare_costs("vit_small_patch14_dinov2", image_size=224, num_classes=1000, last=2, num_experts=8)
    )
    for words in ("22.0 M", "24.4 M", "40.9 M", "6.12 GMAC", "6.73 GMAC", "C(8, 1)^2 = 64", "blocks 10, 11 (from 0)"):
        assert words in text


def test_a_number_too_long_to_read_is_shown_with_its_power_of_ten() -> None:
    assert whole(262_144) == "262,144"
    assert whole(32**24) == "1.3e+36"
