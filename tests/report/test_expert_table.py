from dataclasses import replace

from tests.report import examples
from vimoe.analysis.analysis_result import CriterionAgreement
from vimoe.analysis.paired import Estimate
from vimoe.report.expert_table import agreement_table, expert_table


def test_experts_stand_by_layer_and_worth_and_what_was_not_measured_is_a_dash() -> None:
    analysis = examples.analysis()
    assert expert_table(analysis) is None
    assert agreement_table(analysis) is None
    layers = []
    for layer in analysis.layers:
        lost = [Estimate(x, x - 1, x + 2) if layer.layer == 2 else None for x in (0.0, 2.5)]
        layers.append(
            replace(
                layer,
                experts=tuple(
                    replace(
                        e, lost=one, scores={**({"ablation": one.value} if one else {}), "load": e.load, "reap": 2 / 3}
                    )
                    for e, one in zip(layer.experts, lost, strict=False)
                ),
            )
        )
    table = expert_table(replace(analysis, layers=tuple(layers)))
    assert table is not None
    assert table.header == ("block", "ablation", "load", "reap")
    assert [row[:2] for row in table.rows] == [
        ["2, expert 1", "-2.5 (-4.5 to -1.5)"],
        ["2, expert 0", "+0.0 (-2.0 to +1.0)"],
        ["1, expert 0", "-"],
        ["1, expert 1", "-"],
    ]
    assert table.rows[0][2:] == ["75.0 %", "0.667"]
    assert "REAP" in table.notes[0]


def test_agreement_says_of_how_many_experts_it_is() -> None:
    rho = Estimate(0.5, -0.2, 0.9)
    found = (CriterionAgreement("reap", (1,), 8, None), CriterionAgreement("ablation", (1, 2), 16, rho))
    table = agreement_table(replace(examples.analysis(), agreements=found))
    assert table is not None
    assert table.rows == [
        ["ablation", "blocks 1, 2", "16", "+0.50 (-0.20 to +0.90)"],
        ["reap", "block 1", "8", "-"],
    ]
