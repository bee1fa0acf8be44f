import pytest
import torch

from vimoe import UserError
from vimoe.moe.experts import Experts
from vimoe.moe.slices import join_slices, redraw_units, take_slice

from .support import KINDS, D, H, make_ffn


@pytest.mark.parametrize("kind", KINDS)
def test_slices_put_together_are_the_ffn(kind):
    ffn = make_ffn(kind)
    packed = ffn.fc1.out_features != ffn.fc2.in_features if hasattr(ffn, "fc1") else False
    for name, value in ffn.named_parameters():
        parts = [take_slice(name, value, number, 4, packed) for number in range(4)]
        torch.testing.assert_close(join_slices(name, parts, packed), value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_all_slices_answers_as_the_ffn_does(kind):
    ffn, x = make_ffn(kind).double(), torch.randn(5, 1, D, dtype=torch.float64)
    experts = Experts(ffn, 4, granularity=4, backend="reference")
    assert experts.fc2.weight.shape == (4, D, H // 4)
    ids = torch.arange(4).repeat(5, 1)
    torch.testing.assert_close(experts(x, ids, torch.full((5, 4), 0.25).double()), ffn(x))


@pytest.mark.parametrize("kind", KINDS)
def test_an_ffn_comes_back_from_the_slices_of_several_copies(kind):
    ffn, x = make_ffn(kind).double(), torch.randn(5, D, dtype=torch.float64)
    experts = Experts(ffn, 6, granularity=2)
    torch.testing.assert_close(experts.to_ffn(torch.full((6,), 1 / 6))(x), ffn(x))
    experts.keep([3, 0, 1])  # slices 1, 0, 1
    torch.testing.assert_close(experts.to_ffn(torch.tensor([0.9, 0.1, 0.0]))(x), ffn(x))
    experts.keep([0, 2])
    with pytest.raises(UserError, match="only some slices"):
        experts.to_ffn(torch.ones(2))


@pytest.mark.parametrize(
    ("granularity", "norm", "line"),
    [(3, False, "granularity must divide the 32 hidden units"), (2, True, "granularity must be 1: .* have a norm")],
)
def test_what_cannot_be_cut_is_refused(granularity, norm, line):
    with pytest.raises(UserError, match=line):
        Experts(make_ffn(norm=norm), 6, granularity=granularity)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_each_expert_s_units_is_drawn_anew(kind, share):
    ffn = make_ffn(kind)
    experts = Experts(ffn, 3)
    packed = experts.packed
    before = {name: value.detach().clone() for name, value in experts.named_parameters()}
    redraw_units(dict(experts.named_parameters()), share, packed)
    assert torch.equal(experts.fc2.bias, before["fc2.bias"])
    changed = (experts.fc2.weight != before["fc2.weight"]).any(1)  # [E, H]
    assert (changed.sum(1) == round(share * H)).all()
    if 0 < share < 1:
        assert not torch.equal(changed[0], changed[1])
    for name, value in experts.named_parameters():
        if name.startswith("fc1") and name.endswith("weight"):
            rows = (value != before[name]).any(2)
            assert torch.equal(rows, changed.repeat(1, 2) if packed else changed)


def test_redrawn_units_have_the_spread_of_those_they_replace():
    ffn = make_ffn(hidden=4000)
    experts = Experts(ffn, 1)
    with torch.no_grad():
        experts.fc1.weight.add_(0.5)
    old = experts.fc1.weight.detach().clone()
    redraw_units(dict(experts.named_parameters()), 0.5, False)
    new = experts.fc1.weight.detach()
    fresh = new[(new != old)]
    assert fresh.mean().item() == pytest.approx(0.5, abs=0.01)
    assert fresh.std().item() == pytest.approx(0.3, abs=0.01)
