import base64
import io

import numpy as np
import pytest
from PIL import Image

from vimoe.analysis.counts import RoutingCounts
from vimoe.report.heatmap import NAMED_CLASSES, RAMPS, class_shares, heatmap, hover_data, scale, shares_uri

TABLE = np.array([[[0, 10], [8, 2], [0, 0], [5, 5]]])
COUNTS = RoutingCounts((7,), (2,), ("a", "b", "never", "both"), TABLE)


def image(uri: str) -> np.ndarray:
    kind, data = uri.split(",", 1)
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def test_rows_are_shares_and_a_class_that_never_occurred_has_none() -> None:
    assert class_shares(TABLE[0]).tolist() == [[0, 1], [0.8, 0.2], [0, 0], [0.5, 0.5]]


@pytest.mark.parametrize("ramp", list(RAMPS))
def test_the_same_share_has_the_same_colour_in_every_image_and_more_is_further_from_none(ramp: str) -> None:
    everything = image(shares_uri(np.linspace(0, 1, 256)[None], ramp))[0]
    some = image(shares_uri(np.array([[0.2, 0.4]]), ramp))[0]
    assert some.tolist() == everything[[51, 102]].tolist()
    lightness = everything.sum(1)
    assert (np.diff(lightness) * (1 if ramp == "dark" else -1) >= 0).all()
    assert abs(lightness[-1] - lightness[0]) > 400


def test_a_pixel_is_a_cell_and_rows_are_ordered_by_their_dominant_expert() -> None:
    drawn = heatmap(COUNTS, 7)
    assert drawn.names == ("b", "both", "never", "a")
    assert (drawn.classes, drawn.experts) == (4, 2)
    wanted = image(shares_uri(np.array([[0.8, 0.2], [0.5, 0.5], [0, 0], [0, 1]]), "light"))
    assert (image(drawn.light) == wanted).all()
    assert (image(drawn.dark) != image(drawn.light)).any()
    assert image(scale().light).shape == (1, 128, 3)


def test_hovering_reads_the_same_order_and_the_counts_themselves() -> None:
    data = hover_data(COUNTS)
    assert data == {
        "classes": ["a", "b", "never", "both"],
        "layers": {"7": {"experts": 2, "order": [1, 3, 2, 0], "counts": [0, 10, 8, 2, 0, 0, 5, 5]}},
    }


def test_more_classes_than_can_be_read_at_once_are_not_named_yet() -> None:
    size = NAMED_CLASSES + 1
    names = tuple(f"c{i}" for i in range(size))
    drawn = heatmap(RoutingCounts((0,), (2,), names, np.ones((1, size, 2), dtype=np.int64)), 0)
    assert drawn.names == ()
    assert drawn.classes == size
