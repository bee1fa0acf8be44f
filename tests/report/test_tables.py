from vimoe.report.comparison import Variant
from vimoe.report.tables import cost_table, giga_macs, millions, plain_table, variant_table
from vimoe.vit.cost import Cost
from vimoe.vit.inspection import compare_costs


def test_columns_are_aligned_first_left_others_right() -> None:
    assert plain_table(["a", "bb"], [["xyz", "1"], ["x", "22.5"]]).splitlines() == [
        "a      bb",
        "---  ----",
        "xyz     1",
        "x    22.5",
    ]


def test_numbers_keep_three_figures() -> None:
    assert [millions(n) for n in (599_000, 1_014_000, 22_013_800, 135_481_192)] == [
        "0.60 M",
        "1.01 M",
        "22.0 M",
        "135.5 M",
    ]
    assert [giga_macs(n) for n in (10_500_000, 6_123_945_984)] == ["10.5 MMAC", "6.12 GMAC"]


def test_an_variant_is_one_line_with_its_error() -> None:
    table = variant_table([Variant("dense", 96.66, 1.04, 360, Cost(600_000, 600_000, 10_500_000), 57.4)])
    assert table.splitlines()[-1].split("  ")[0] == "dense"
    assert "96.7 ± 1.0" in table


def test_the_cost_table_holds_the_papers_figures_and_the_routing_degree() -> None:
    text = cost_table(
        compare_costs("vit_small_patch14_dinov2", image_size=224, num_classes=1000, last=2, num_experts=8)
    )
    for words in ("22.0 M", "24.4 M", "40.9 M", "6.12 GMAC", "6.73 GMAC", "C(8, 1)^2 = 64", "blocks 10, 11 (from 0)"):
        assert words in text
