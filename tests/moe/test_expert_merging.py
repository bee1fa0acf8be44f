import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.moe.support import KINDS, make_experts, make_ffn
from vimoe.moe.expert_merging import aligned, merged_experts
from vimoe.moe.experts import is_packed
from vimoe.moe.router import Selection, TopKRouter, by_expert


def shuffled(ffn: dict[str, Tensor], order: Tensor, packed: bool) -> dict[str, Tensor]:
    """The same function with its hidden units in another order, written out by name."""
    found = {}
    for name, value in ffn.items():
        if name == "fc2.bias":
            found[name] = value
        elif name == "fc2.weight":
            found[name] = value[:, order]
        elif packed and name.startswith("fc1."):
            found[name] = value[torch.cat([order, order + len(order)])]
        else:
            found[name] = value[order]
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", [False, True])
@torch.no_grad()
def test_shuffled_hidden_units_compute_the_same_and_are_put_back_also_under_noise(kind: str, norm: bool) -> None:
    torch.manual_seed(0)
    ffn = make_ffn(kind, norm=norm).double()
    packed, x = is_packed(ffn), torch.randn(5, 16, dtype=torch.float64)
    own = {name: value.detach().clone() for name, value in ffn.named_parameters()}
    before, other = ffn(x), shuffled(own, torch.randperm(32), packed)
    ffn.load_state_dict(other)
    torch.testing.assert_close(ffn(x), before)
    back = aligned(other, own, packed)
    assert all(torch.equal(back[name], value) for name, value in own.items())
    noise = {name: 0.02 * torch.randn_like(value) for name, value in own.items()}
    back = aligned({name: other[name] + value for name, value in noise.items()}, own, packed)
    assert all((back[name] - value).abs().max() < 0.1 for name, value in own.items())


def test_the_order_found_is_the_nearest_of_all() -> None:
    torch.manual_seed(0)
    one, other = (dict(make_ffn(hidden=5).named_parameters()) for _ in range(2))

    def distance(to: dict[str, Tensor]) -> float:
        return sum(float((one[name].double() - value).square().sum()) for name, value in to.items())

    with torch.no_grad():
        every = [distance(shuffled(other, torch.tensor(order), False)) for order in itertools.permutations(range(5))]
        assert distance(aligned(other, one, False)) == pytest.approx(min(every))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_each_goes_to_its_nearest_and_the_mean_is_by_load(kind: str) -> None:
    """1 is like 3 and 2 like 0, in another order and not quite; what has no load has no part."""
    experts = make_experts(kind).double()
    stacked = {name: value.detach().clone() for name, value in experts.named_parameters()}
    near = {}
    for e, like in ((1, 3), (2, 0)):
        near[e] = {name: 0.01 * torch.randn_like(value[0]) for name, value in stacked.items()}
        noisy = shuffled(
            {name: stacked[name][like] + near[e][name] for name in stacked}, torch.randperm(32), experts.packed
        )
        for name, value in stacked.items():
            value[e] = noisy[name]
    merged, places = merged_experts(stacked, [3, 0], torch.tensor([0.5, 0.3, 0.0, 0.1]), experts.packed)
    assert places == [1, 0, 1, 0]
    for name, value in merged.items():
        torch.testing.assert_close(value[0], stacked[name][3] + 0.75 * near[1][name])
        assert torch.equal(value[1], stacked[name][0])
    unused, _ = merged_experts(stacked, [3, 0], torch.zeros(4), experts.packed)
    assert all(torch.equal(value, stacked[name][[3, 0]]) for name, value in unused.items())


@pytest.mark.parametrize("top_k", [1, 2])
def test_rows_choose_as_before_and_probabilities_of_an_expert_add_up(top_k: int) -> None:
    torch.manual_seed(0)
    router = TopKRouter(8, 5, top_k, "softmax")
    router.weight.data.normal_()
    x = torch.randn(40, 8)
    before = router(x)
    router.renumber({0: 1, 1: 0, 2: 1, 3: 2, 4: 0})
    assert router.expert_of == (0, 0, 1, 1, 2)
    after, new = router(x), torch.tensor([1, 0, 1, 2, 0])
    assert torch.equal(after.expert_ids, new[before.expert_ids])
    torch.testing.assert_close(after.gates, before.gates)
    p = before.probs
    torch.testing.assert_close(after.probs, torch.stack([p[:, 1] + p[:, 4], p[:, 0] + p[:, 2], p[:, 3]], 1))
    torch.testing.assert_close(after.logits.softmax(-1), after.probs)
    torch.testing.assert_close(after.logits.logsumexp(-1), before.logits.logsumexp(-1))
    router.keep([2, 1])
    assert router.expert_of == (0, 1, 1)
    router.keep([0])
    assert (router.expert_of, len(router.weight)) == ((), 1)


def test_noise_of_rows_is_noise_of_their_experts() -> None:
    torch.manual_seed(0)
    logits, noise = torch.randn(6, 3), torch.randn(6, 3)
    chosen: Any = Selection(torch.zeros(6, 1, dtype=torch.int64), torch.ones(6, 1), logits.softmax(-1), logits, noise)
    found = by_expert(chosen, (0, 0, 1))
    noisy = (logits + noise).softmax(-1)
    assert found.noise is not None
    torch.testing.assert_close((found.logits + found.noise).softmax(-1)[:, 1], noisy[:, 2])
