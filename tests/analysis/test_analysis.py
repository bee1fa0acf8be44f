from pathlib import Path

import pytest
import torch
from torch import nn

import vimoe
from tests.analysis.toy import MARK, NAMES, blank, codes, layer_of, route_by, say, show
from tests.vit.families import assert_unchanged, make, make_images, refused, snapshot
from vimoe.analysis.analysis import analyze
from vimoe.analysis.analysis_result import Analysis
from vimoe.analysis.behaviour import count_routing
from vimoe.analysis.held_out import HeldOut


def specialised() -> nn.Module:
    model = blank([0, 2], shared_expert=True)
    for number in (0, 2):
        route_by(layer_of(model, number), MARK, 4)
        for e in range(4):
            say(layer_of(model, number), e, e)
    return model


def labelled(size: int = 32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images, labels = show(*codes(size)), codes(size)[0]
    return list(zip(images.split(10), labels.split(10), strict=True))


SEEN = HeldOut(labelled)


def test_everything_is_measured_and_survives_the_way_to_disk(tmp_path: Path) -> None:
    model = specialised()
    before = snapshot(model)
    counts, analysis, plan = analyze(model, SEEN, NAMES, shuffles=99)
    assert_unchanged(model, before)
    assert (counts.counts == count_routing(model, SEEN).counts(NAMES).counts).all()
    analysis.save(tmp_path / "analysis.json")
    assert Analysis.load(tmp_path / "analysis.json") == analysis
    assert (analysis.images, analysis.unit, analysis.depth) == (32, "image", 3)
    assert analysis.score.value == 100
    assert [layer.layer for layer in analysis.layers] == [part.layer for part in plan.layers] == [0, 2]
    assert [k.name for k in analysis.layer(2).ablations] == ["mean", "random", "second", "shared", "pruned"]
    assert [e.classes[0].label for e in analysis.layer(2).experts] == [0, 1, 2, 3]
    assert analysis.layer(2).experts[1].classes[0].lift == pytest.approx(4)
    assert analysis.layer(2).stability == 1


def test_images_of_a_sample_are_named_by_their_places_in_the_split() -> None:
    places = list(range(100, 132))
    _, analysis, _ = analyze(specialised(), SEEN, NAMES, shuffles=99, places=places, split_images=1000)
    _, whole, _ = analyze(specialised(), SEEN, NAMES, shuffles=99)
    for e in range(4):
        found, known = analysis.layer(2).experts[e], whole.layer(2).experts[e]
        assert found.confident == tuple(100 + place for place in known.confident)
    assert (analysis.images, analysis.split_images) == (32, 1000)
    assert whole.split_images == 32


def test_the_same_model_and_images_give_the_same_analysis() -> None:
    assert analyze(specialised(), SEEN, NAMES, shuffles=99)[1:] == analyze(specialised(), SEEN, NAMES, shuffles=99)[1:]


def test_patches_with_classes_are_counted_and_those_without_are_not() -> None:
    model = vimoe.upcycle(make(), last=1, num_experts=4, routing="token")
    images = make_images(model, 6)
    patches = torch.arange(24).view(6, 4) % 3 - (torch.arange(24).view(6, 4) == 5).long() * 10

    def classes(_: torch.Tensor) -> torch.Tensor:
        return patches.clamp(min=-1)

    seen = HeldOut(lambda: [(images, torch.zeros(6, dtype=torch.long))], classes=classes)
    counts, analysis, _ = analyze(model, seen, NAMES[:3], shuffles=9)
    assert analysis.unit == "patch"
    assert counts.counts.sum() == 23


def test_what_cannot_be_analyzed_gets_one_line() -> None:
    with refused("this model has no MoE layer to analyze: it is dense, or was pruned"):
        analyze(make(), SEEN, NAMES)
    with refused("the images have a single class, and routing cannot follow what does not differ"):
        analyze(specialised(), SEEN, NAMES[:1])
    with refused("there is no image to analyze the model on"):
        analyze(specialised(), HeldOut(list), NAMES)
    broken = specialised()
    layer_of(broken, 2).router.weight.data[0, 0] = torch.nan
    with refused("the router of block 2 holds weights that are not finite: was the training sound?"):
        analyze(broken, SEEN, NAMES)


def test_a_class_with_no_image_is_nobodys_class() -> None:
    _, analysis, _ = analyze(specialised(), SEEN, (*NAMES, "nobody"), shuffles=99)
    assert analysis.layer(2).specialisation.normalised == pytest.approx(1)
    assert all(c.label != 4 for e in analysis.layer(2).experts for c in e.classes)
