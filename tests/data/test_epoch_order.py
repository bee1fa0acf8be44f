import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vimoe.data.epoch_order import epoch_order, generator


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 5), st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_an_epoch_shows_each_image_at_most_once_in_full_batches(size: int, batch: int, seed: int, epoch: int) -> None:
    order = epoch_order(size, batch, seed, epoch)
    seen = [i for part in order for i in part]
    assert len(order) == size // batch
    assert len(set(seen)) == len(seen) == len(order) * batch
    assert set(seen) <= set(range(size))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert list(epoch_order(50, 5, 1, 2)) == list(epoch_order(50, 5, 1, 2))
    assert list(epoch_order(50, 5, 1, 2)) != list(epoch_order(50, 5, 1, 3))
    assert list(epoch_order(50, 5, 1, 2)) != list(epoch_order(50, 5, 2, 2))


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_repeats_show_fewer_images_in_as_many_batches_side_by_side(size: int, batch: int, repeats: int) -> None:
    plain = [i for part in epoch_order(size, batch, 1, 2) for i in part]
    numbers = [i for part in epoch_order(size, batch, 1, 2, repeats) for i in part]
    assert len(numbers) == len(plain)
    assert numbers == [plain[j // repeats] + size * (j % repeats) for j in range(len(plain))]


@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3))
@settings(deadline=None, max_examples=40)
def test_processes_share_out_the_batches_of_one(size: int, share: int, world: int, repeats: int) -> None:
    whole = epoch_order(size, share * world, 3, 4, repeats)
    parts = [epoch_order(size, share * world, 3, 4, repeats, (rank, world)) for rank in range(world)]
    assert {len(part) for part in parts} == {len(whole)}
    for batch, *shares in zip(whole, *parts, strict=True):
        assert [len(one) for one in shares] == [share] * world
        assert sorted(i for one in shares for i in one) == sorted(batch)


def test_generators_of_different_keys_draw_different_numbers() -> None:
    assert torch.randn(1, generator=generator("a", 1)) != torch.randn(1, generator=generator("a", 2))


@given(st.integers(1, 60), st.integers(1, 3), st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_an_image_that_is_drawn_again_comes_in_other_views(size: int, repeats: int, seed: int) -> None:
    weights = torch.arange(1.0, size + 1) ** 2
    (numbers,) = epoch_order(size, size, seed, 0, repeats, weights=weights)
    assert len(set(numbers)) == size
    drawn = [number % size for number in numbers[::repeats]]
    assert numbers[::repeats] == [i + size * repeats * drawn[:at].count(i) for at, i in enumerate(drawn)]
