from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import Tensor, nn

import vimoe
from tests.analysis.toy import STYLE, blank, codes, copy_code, layer_of, route_by, show
from tests.vit.families import make, make_images, randomise, spread_routing
from vimoe.analysis.behaviour import EXAMPLES, Behaviour, agreement, count_routing, vary_a_little
from vimoe.analysis.expert_similarity import output_similarity
from vimoe.analysis.held_out import HeldOut
from vimoe.data.epoch_order import generator
from vimoe.moe.router import Selection
from vimoe.vit.blocks import moe_layers

SIZE, CLASSES = 30, 3


def upcycled(**settings: object) -> nn.Module:
    model = vimoe.upcycle(make(), **{"last": 2, "num_experts": 4, **settings})
    randomise(model)
    spread_routing(model, make_images(model, 16))
    return model.eval()


@torch.no_grad()
def watched(model: nn.Module, images: Tensor, labels: Tensor) -> Behaviour:
    behaviour = Behaviour(model)
    for part, classes in zip(images.split(12), labels.split(12), strict=True):
        assert torch.equal(behaviour.watch(part, classes), model(part))
    return behaviour


@torch.no_grad()
def selections(model: nn.Module, images: Tensor) -> dict[int, Selection]:
    model(images)
    return {number: layer.last_selection for number, layer in moe_layers(model).items()}  # type: ignore[misc]


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("routing", ["image", "token"])
def test_what_is_taken_down_batch_by_batch_is_what_the_whole_shows(routing: str, top_k: int) -> None:
    model = upcycled(routing=routing, top_k=top_k)
    images, labels = make_images(model, SIZE), torch.arange(SIZE) % CLASSES
    behaviour = watched(model, images, labels)
    for number, selection in selections(model, images).items():
        per_image = 5 if routing == "token" else 1
        patches = slice(1, None) if routing == "token" else slice(None)
        ids = selection.expert_ids.view(SIZE, per_image, top_k)[:, patches]
        probs = selection.probs.view(SIZE, per_image, 4)[:, patches]
        gates = selection.gates.view(SIZE, per_image, top_k)[:, patches]
        kept = behaviour.layers[number]
        expected = np.zeros((CLASSES, 4), dtype=np.int64)
        for label, chosen in zip(labels.tolist(), ids.flatten(1).tolist(), strict=True):
            for e in chosen:
                expected[label, e] += 1
        assert (behaviour.observations(number, CLASSES).table() == expected).all()
        top = probs.sort(-1, descending=True).values
        assert kept.choices == ids[..., 0].numel()
        assert kept.confidence / kept.choices == pytest.approx(top[..., 0].mean().item(), rel=1e-4)
        assert kept.margin / kept.choices == pytest.approx((top[..., 0] - top[..., 1]).mean().item(), rel=1e-4)
        assert kept.mass == pytest.approx(gates.sum(-1).mean().item(), rel=1e-4)
        for e in range(4):
            chose = [i for i in range(SIZE) if (ids[i, :, 0] == e).any()]
            by_score = sorted(chose, key=lambda i: -probs[i, :, e].mean().item())
            sure, unsure = kept.examples(e)
            assert sure == by_score[:EXAMPLES]
            assert set(unsure) == set(by_score[-EXAMPLES:]) - set(sure)


def test_neighbours_are_compared_choice_by_choice() -> None:
    model = upcycled(routing="token", last=3)
    images = make_images(model, SIZE)
    behaviour = watched(model, images, torch.zeros(SIZE, dtype=torch.long))
    first = {n: s.expert_ids.view(SIZE, 5)[:, 1:].flatten().numpy() for n, s in selections(model, images).items()}
    assert list(behaviour.joint) == list(pairwise(first))
    for (a, b), joint in behaviour.joint.items():
        assert joint.sum() == SIZE * 4
        for e in range(4):
            for f in range(4):
                assert joint[e, f] == ((first[a] == e) & (first[b] == f)).sum()


def test_agreement_is_one_for_a_copy_and_nothing_for_a_coin() -> None:
    assert agreement(np.diag([4000, 3000, 3000])) == pytest.approx(1, abs=1e-3)
    assert agreement(np.full((4, 4), 100)) == 0
    assert agreement(np.array([[50, 0], [40, 0]])) == 0  # one layer makes no choice
    joint = np.array([[400, 50], [20, 530]])
    first, second = np.repeat([0, 0, 1, 1], joint.ravel()), np.repeat([0, 1, 0, 1], joint.ravel())
    entropies = [mutual_info_score(x, x) for x in (first, second)]
    assert agreement(joint) == pytest.approx(mutual_info_score(first, second) / min(entropies), abs=2e-3)


def test_agreement_is_freed_of_the_bias_of_few_choices() -> None:
    """Miller's (rows - 1) (columns - 1) / 2N, in nats like scikit-learn's information: no other factor will do."""
    joint = np.array([[9, 1, 2], [2, 8, 1], [1, 2, 9]])
    rows, columns = (index.ravel() for index in np.indices(joint.shape))
    first, second = np.repeat(rows, joint.ravel()), np.repeat(columns, joint.ravel())
    unbiased = mutual_info_score(first, second) - 2 * 2 / (2 * joint.sum())
    most = min(mutual_info_score(x, x) for x in (first, second))
    assert agreement(joint) == pytest.approx(unbiased / most, abs=1e-6)
    assert agreement(joint) < mutual_info_score(first, second) / most - 0.04


def test_experts_are_compared_on_images_from_all_batches() -> None:
    """Class by class, as folders are read: two experts that differ on the last class only are not the same."""
    model = blank([1], experts=2)
    layer = layer_of(model, 1)
    route_by(layer, STYLE, 2)
    copy_code(layer, 0, turn=0)
    copy_code(layer, 1, turn=0)
    with torch.no_grad():
        layer.experts.fc2.weight[1, :, 3] *= -1  # what it says of mark 3
    mark, style, coin = codes(64)
    order = mark.argsort(stable=True)
    images, labels = show(mark, style, coin)[order], mark[order]
    behaviour = Behaviour(model)
    with torch.no_grad():
        for part, classes in zip(images.split(16), labels.split(16), strict=True):
            behaviour.watch(part, classes)
    assert output_similarity(behaviour.layers[1].gram)[0, 1] == pytest.approx(0.5)


def test_experts_touched_counts_the_experts_of_each_image() -> None:
    model = upcycled(routing="token")
    images = make_images(model, 7)
    seen = HeldOut(lambda: [(part, torch.zeros(len(part), dtype=torch.long)) for part in images.split(5)])
    touched = count_routing(model, seen).experts_touched()
    expected = dict.fromkeys(moe_layers(model), 0)
    for image in images:
        for layer, selection in selections(model, image[None]).items():
            expected[layer] += len(selection.expert_ids[1:].unique())  # without the class token
    assert touched == {layer: total / 7 for layer, total in expected.items()}
    assert any(value > 1 for value in touched.values())


def test_stability_is_the_share_of_choices_that_the_varied_image_makes_too() -> None:
    model = upcycled()
    moe_layers(model)[2].router.weight.data.zero_()  # this one does not look at its input
    images = make_images(model, 12)
    behaviour = watched(model, images, torch.zeros(12, dtype=torch.long))
    drawn = generator("watch", 0)
    for _ in behaviour.layers:  # the tokens of the similarity are drawn first
        torch.rand(12, 5, generator=drawn)
    varied = vary_a_little(images, drawn)
    first, again = (selections(model, x)[1].expert_ids[:, 0] for x in (images, varied))
    assert behaviour.layers[1].stayed == (first == again).sum()
    assert behaviour.layers[2].stayed == behaviour.layers[2].choices == 12


def test_patches_with_classes_of_their_own_count_where_they_have_one() -> None:
    model = upcycled(routing="token")
    images = make_images(model, 4)
    labels = torch.tensor([[0, 1, -1, 2], [-1, -1, -1, -1], [2, 2, 2, 2], [0, 0, 1, 1]])
    behaviour = watched(model, images, labels)
    ids = selections(model, images)[1].expert_ids.view(4, 5)[:, 1:]
    expected = np.zeros((CLASSES, 4), dtype=np.int64)
    for label, e in zip(labels.flatten().tolist(), ids.flatten().tolist(), strict=True):
        if label >= 0:
            expected[label, e] += 1
    assert (behaviour.observations(1, CLASSES).table() == expected).all()


def test_an_image_varied_a_little_is_moved_by_a_pixel_and_nothing_is_lost() -> None:
    ramp = torch.arange(64.0).view(1, 1, 8, 8).expand(40, 1, 8, 8)
    varied = vary_a_little(ramp, torch.Generator().manual_seed(0))
    moves = set()
    for image in varied[:, 0]:
        steps = image[3, 4] - image[3, 3]  # the contrast, as neighbours differ by 1
        assert 0.9 <= steps <= 1.1
        centre = image.mean()
        flat = (image - centre) / steps
        moves |= {
            (dy, dx)
            for dy in (-1, 1)
            for dx in (-1, 1)
            if torch.allclose(
                flat[1:-1, 1:-1] - flat[3, 3], _moved(dy, dx)[1:-1, 1:-1] - _moved(dy, dx)[3, 3], atol=1e-3
            )
            and torch.allclose(flat[0] - flat[3, 3], _moved(dy, dx)[0] - _moved(dy, dx)[3, 3], atol=1e-3)
        }
    assert len(moves) == 4


def _moved(dy: int, dx: int) -> Tensor:
    rows, columns = (torch.arange(8) + dy).clamp(0, 7), (torch.arange(8) + dx).clamp(0, 7)
    return torch.arange(64.0).view(8, 8)[rows][:, columns]
