from vimoe.export.latency import Latency, take_turns


def test_all_run_in_every_round_and_each_begins_some() -> None:
    order: list[str] = []
    found = take_turns({name: lambda name=name: order.append(name) for name in "abc"}, rounds=3, warmups=1)  # type: ignore[misc]
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert all(len(latency.seconds) == 3 and latency.median >= 0 for latency in found.values())


def test_median_and_quartiles_are_of_the_rounds() -> None:
    assert Latency((4.0, 1.0, 3.0, 2.0, 5.0)).median == 3
    assert Latency((4.0, 1.0, 3.0, 2.0, 5.0)).quartiles == (2, 4)
    assert Latency((2.0,)).quartiles == (2, 2)


def test_a_ratio_is_taken_within_a_round() -> None:
    """A machine that is busy for a while slows both alike: 2 in every round, whatever the medians say."""
    assert Latency((2.0, 20.0, 4.0)).over(Latency((1.0, 10.0, 2.0))) == 2
