from vimoe.analysis.planning import choose_layers
from vimoe.analysis.specialisation import Specialisation


def layer(normalised: float, p_value: float = 0.001) -> Specialisation:
    return Specialisation(3 * normalised, normalised, 0.5, p_value, 8.0, (0.125,) * 8)


def test_layers_near_the_most_telling_one_stay_and_the_others_go() -> None:
    plan = choose_layers({8: layer(0.3), 9: layer(0.5), 10: layer(0.61), 11: layer(0.6)})
    assert [(part.layer, part.pruned) for part in plan.layers] == [(8, True), (9, False), (10, False), (11, False)]
    assert plan.layers[1].experts == tuple(range(8))
    assert "50% of what it could" in plan.layers[1].reason


def test_a_layer_no_better_than_chance_goes_even_if_it_looks_telling() -> None:
    plan = choose_layers({10: layer(0.5, p_value=0.3), 11: layer(0.5)})
    assert [part.pruned for part in plan.layers] == [True, False]
    assert "chance" in plan.layers[0].reason


def test_where_nothing_specialises_everything_goes() -> None:
    plan = choose_layers({layer_: layer(0.01, p_value=0.5) for layer_ in range(3)})
    assert all(part.pruned for part in plan.layers)
    assert plan.layers[0].load == (0.125,) * 8


def test_the_papers_own_figure_5_keeps_the_last_layer_alone() -> None:
    bits = {11: 1.58, 10: 0.85, 9: 0.52, 8: 0.31, 7: 0.26, 6: 0.19}
    plan = choose_layers({number: layer(value / 3) for number, value in bits.items()})
    assert [part.layer for part in plan.layers if not part.pruned] == [11]
