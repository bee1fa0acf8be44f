import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vimoe.data.digits import digits
from vimoe.data.loading import batches
from vimoe.data.splits import EpochOrder, generator


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 5), st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_an_epoch_shows_each_picture_at_most_once_in_full_batches(size: int, batch: int, seed: int, epoch: int) -> None:
    order = EpochOrder(size, batch, seed, epoch)
    seen = [i for part in order for i in part]
    assert len(order) == size // batch
    assert len(set(seen)) == len(seen) == len(order) * batch
    assert set(seen) <= set(range(size))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert list(EpochOrder(50, 5, 1, 2)) == list(EpochOrder(50, 5, 1, 2))
    assert list(EpochOrder(50, 5, 1, 2)) != list(EpochOrder(50, 5, 1, 3))
    assert list(EpochOrder(50, 5, 1, 2)) != list(EpochOrder(50, 5, 2, 2))


def test_evaluation_sees_every_picture_once_in_its_own_order() -> None:
    part = digits().test
    labels = torch.cat([labels for _, labels in batches(part, 100)])
    assert torch.equal(labels, part.labels)


def test_generators_of_different_keys_draw_different_numbers() -> None:
    assert torch.randn(1, generator=generator("a", 1)) != torch.randn(1, generator=generator("a", 2))
