import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vimoe import UserError
from vimoe.tasks.windows import View, probabilities, resized, sliding_window, view_size, window_starts


def linear_in_the_pixels(images: Tensor) -> Tensor:
    weight = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.1, -1.0]])
    return torch.einsum("kc,bchw->bkhw", weight, images)


@given(st.integers(1, 2000), st.integers(1, 600), st.data())
def test_windows_leave_no_gap_end_flush_with_the_border_and_are_as_many_as_mmseg_has(
    size: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window))
    starts = window_starts(size, window, stride)
    assert starts[0] == 0
    assert starts[-1] == max(0, size - window)
    assert all(0 < b - a <= stride for a, b in itertools.pairwise(starts))
    assert len(starts) == max(size - window + stride - 1, 0) // stride + 1  # mmsegmentation's slide_inference


def test_dinov2s_windows_on_a_image_of_1024_pixels() -> None:
    assert window_starts(1024, 512, 341) == [0, 341, 512]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.integers(1, 5), st.data())
@settings(deadline=None, max_examples=40)
def test_on_a_model_linear_in_the_pixels_windows_give_what_the_whole_image_gives(
    height: int, width: int, window: int, batch: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window))
    images = torch.randn(2, 3, height, width)
    logits = sliding_window(linear_in_the_pixels, images, View(window=window, stride=stride, batch=batch))
    assert torch.allclose(logits, linear_in_the_pixels(images), atol=1e-5)


def test_overlapping_windows_are_averaged_place_by_place() -> None:
    seen: list[float] = []

    def numbered(windows: Tensor) -> Tensor:
        """Every window is its own number, from 1."""
        values = [float(len(seen) + i + 1) for i in range(len(windows))]
        seen.extend(values)
        return torch.tensor(values)[:, None, None, None].expand(-1, 1, *windows.shape[-2:])

    logits = sliding_window(numbered, torch.zeros(1, 3, 2, 5), View(window=3, stride=2, batch=1))
    assert logits[0, 0].tolist() == [[1, 1, 1.5, 2, 2]] * 2


def test_windows_go_through_the_model_in_batches_of_the_asked_size() -> None:
    sizes: list[tuple[int, ...]] = []

    def model(windows: Tensor) -> Tensor:
        sizes.append(tuple(windows.shape))
        return windows

    sliding_window(model, torch.zeros(1, 3, 12, 20), View(window=8, stride=4, batch=3))
    assert sizes == [(3, 3, 8, 8), (3, 3, 8, 8), (2, 3, 8, 8)]


def test_a_flip_cancels_what_leans_to_one_side_and_scales_average_over_sizes() -> None:
    def leaning(images: Tensor) -> Tensor:
        """The second class grows to the right, whatever the image."""
        ramp = torch.linspace(-1, 1, images.shape[-1]).expand(len(images), 1, *images.shape[-2:])
        return torch.cat([torch.zeros_like(ramp), ramp], 1)

    image = torch.randn(1, 3, 8, 8)
    assert not torch.allclose(probabilities(leaning, image, View()), torch.tensor(0.5), atol=0.1)
    assert torch.allclose(probabilities(leaning, image, View(flips=True)), torch.tensor(0.5), atol=1e-6)
    one = probabilities(linear_in_the_pixels, image, View())
    half = probabilities(linear_in_the_pixels, image, View(scales=(0.5,)))
    both = probabilities(linear_in_the_pixels, image, View(scales=(1.0, 0.5)))
    assert torch.allclose(both, (one + half) / 2, atol=1e-6)


@given(st.integers(1, 30), st.integers(1, 30), st.booleans(), st.sampled_from([None, 7, 16]))
@settings(deadline=None, max_examples=30)
def test_probabilities_sum_to_one_at_the_images_own_size(
    height: int, width: int, flips: bool, short_side: int | None
) -> None:
    view = View(short_side, window=8, stride=5, scales=(0.5, 1.5), flips=flips)
    probs = probabilities(linear_in_the_pixels, torch.randn(1, 3, height, width), view)
    assert probs.shape == (1, 2, height, width)
    assert torch.allclose(probs.sum(1), torch.ones(1, height, width), atol=1e-5)


def test_plain_whole_image_inference_is_the_softmax_of_the_model() -> None:
    images = torch.randn(2, 3, 9, 5)
    assert torch.equal(probabilities(linear_in_the_pixels, images, View()), linear_in_the_pixels(images).softmax(1))


def test_the_shorter_side_is_brought_to_size_and_the_ratio_kept() -> None:
    assert view_size(360, 480, 240) == (240, 320)
    assert view_size(480, 360, 240, 0.5) == (160, 120)
    assert view_size(360, 480, None) == (360, 480)
    assert view_size(20, 1000, 64) == (5, 256)  # the longer side is at most four times 64
    assert view_size(1, 1000, None, 0.25) == (1, 250)
    constant = torch.full((1, 2, 9, 6), 3.0)
    assert torch.allclose(resized(constant, 4, 11), torch.full((1, 2, 4, 11), 3.0))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"window": 100}, "stride 341 leaves gaps between windows of 100 pixels"),
        ({"scales": ()}, "scales must be one or more positive numbers"),
        ({"scales": (1.0, -1.0)}, "scales must be one or more positive numbers"),
    ],
)
def test_a_view_that_cannot_be_is_refused(settings: dict[str, object], line: str) -> None:
    with pytest.raises(UserError, match=line):
        View(**settings)
