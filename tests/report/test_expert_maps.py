import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.report.names import NAMES as HOSTILE
from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.patches import ExpertMap
from vimoe.data.masks import IGNORE
from vimoe.report.expert_maps import class_panel, expert_maps, expert_panel, favoured_classes
from vimoe.report.saving import embed
from vimoe.tasks.palette import class_colours

NAMES = ("sky", "tree", "road")


def example(layers: int = 2, seed: int = 0) -> ExpertMap:
    """An image of 20 x 30 pixels on patches of 8: the last row and column of patches reach beyond it."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 2, (20, 30))
    classes[0, 0] = IGNORE
    experts = {number: rng.integers(0, 4, (3, 4)) for number in range(12 - layers, 12)}
    return ExpertMap(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8), classes, experts, (8, 8))


def counts(layers: int = 2) -> RoutingCounts:
    table = np.random.default_rng(1).integers(0, 9, (layers, 3, 4))
    return RoutingCounts(tuple(range(12 - layers, 12)), (4,) * layers, NAMES, table)


def test_each_image_stands_beside_its_classes_and_its_layers_the_last_first() -> None:
    figure = expert_maps([example(), example(seed=1)], counts())
    panels = [ax for ax in figure.axes if ax.images]
    assert len(panels) == 2 * 4
    assert [ax.get_title() for ax in panels[:4]] == ["image", "classes", "block 11", "block 10"]
    assert (np.asarray(panels[4].images[0].get_array()) == example(seed=1).image).all()


def test_twelve_layers_go_on_in_further_rows() -> None:
    figure = expert_maps([example(12)], counts(12))
    titles = [ax.get_title() for ax in figure.axes if ax.images]
    assert titles == ["image", "classes", *(f"block {n}" for n in range(11, -1, -1))]


def test_a_patch_is_coloured_as_its_expert_over_the_image_in_grey() -> None:
    one = example()._replace(
        image=np.full((20, 30, 3), 128, dtype=np.uint8), experts={11: np.array([[0, 1, 2, 3]] * 3)}
    )
    panel = expert_panel(one, 11, 4)
    assert panel.shape == (20, 30, 3)
    assert len(np.unique(panel.reshape(-1, 3), axis=0)) == 4
    assert (panel[:, 7] == panel[0, 0]).all()
    assert (panel[:, 8] != panel[0, 0]).any()


def test_dark_and_light_images_give_their_experts_the_same_colours() -> None:
    texture = np.random.default_rng(0).integers(0, 100, (20, 30, 1), dtype=np.uint8).repeat(3, 2)
    dark, light = (expert_panel(example()._replace(image=texture + shift), 11, 4) for shift in (0, 150))
    assert np.abs(dark.astype(int) - light).max() <= 1


def test_classes_have_their_own_colours_and_unlabelled_pixels_none() -> None:
    one = example()
    panel = class_panel(one, 3)
    assert panel[0, 0].tolist() == [240, 240, 240]
    labelled = one.classes != IGNORE
    assert (panel[labelled] == class_colours(3)[one.classes[labelled]]).all()


def test_borders_run_between_patches_of_different_experts_only() -> None:
    one = example()._replace(experts={11: np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]])})
    figure = expert_maps([one], RoutingCounts((11,), (4,), NAMES, np.ones((1, 3, 4), dtype=np.int64)))
    panel = next(ax for ax in figure.axes if ax.get_title() == "block 11")
    segments = {tuple(map(tuple, segment.tolist())) for segment in panel.collections[0].get_segments()}
    assert segments == {
        ((15.5, -0.5), (15.5, 7.5)),
        ((15.5, 7.5), (15.5, 15.5)),
        ((15.5, 15.5), (23.5, 15.5)),
        ((23.5, 15.5), (29.5, 15.5)),
    }


def words(figure: Figure) -> list[list[str]]:
    return [[text.get_text() for text in found.get_texts()] for found in figure.legends]


def test_the_legend_says_which_classes_the_last_layers_experts_favour_and_which_are_seen() -> None:
    table = np.array([[80, 0, 0], [15, 50, 0], [5, 50, 0]])
    assert favoured_classes(table, NAMES) == ["100% of sky", "91% of road, 77% of tree", "no patch"]
    assert favoured_classes(np.full((30, 2), 5), tuple(map(str, range(30)))) == ["all alike", "all alike"]


def test_a_background_that_fills_every_expert_hides_no_class() -> None:
    table = np.array([[500, 480, 520], [2, 60, 3], [1, 0, 0]])  # the last is a class of one patch
    names = ("background", "cat", "speck")
    assert favoured_classes(table, names) == ["all alike", "92% of cat", "all alike"]
    experts, classes = words(expert_maps([example()], counts()))
    assert [name.split(":")[0] for name in experts] == ["0", "1", "2", "3"]
    assert classes == ["sky", "tree", "unlabelled"]


def test_a_hundred_classes_are_not_all_named() -> None:
    names = tuple(f"class {i}" for i in range(150))
    one = example()._replace(classes=np.arange(600).reshape(20, 30) % 150)
    table = RoutingCounts((10, 11), (4, 4), names, np.ones((2, 150, 4), dtype=np.int64))
    assert len(words(expert_maps([one], table))[1]) == 24


def test_images_keep_their_width_and_legends_their_place() -> None:
    names = ("a very long name of a class indeed", *(f"another long name of a class {i}" for i in range(23)))
    one = example(12)._replace(classes=np.arange(600).reshape(20, 30) % 24)
    table = RoutingCounts(tuple(range(12)), (8,) * 12, names, np.ones((12, 24, 8), dtype=np.int64))
    figure = expert_maps([one, one], table)
    figure.draw_without_rendering()
    widths = [ax.get_window_extent().width / figure.dpi for ax in figure.axes if ax.images]
    assert min(widths) > 1.4
    boxes = [found.get_window_extent() for found in figure.legends]
    assert not any(box.overlaps(ax.get_tightbbox()) for box in boxes for ax in figure.axes if ax.images)


@pytest.mark.parametrize("name", HOSTILE)
def test_any_class_name_can_be_drawn(name: str) -> None:
    table = RoutingCounts((10, 11), (4, 4), (name, "tree", "road"), np.ones((2, 3, 4), dtype=np.int64))
    assert embed(expert_maps([example()], table), "name", "").svg
