import pytest

from tests.vit.families import refused
from vimoe import MoEConfig
from vimoe.vit.blocks import SUPPORTED
from vimoe.vit.inspection import compare_costs


def test_a_name_is_enough_to_know_what_upcycling_will_cost() -> None:
    name, dense, upcycled, config = compare_costs("vit_small_patch14_dinov2", 224, 1000, num_experts=8, last=2)
    assert name == "vit_small_patch14_dinov2"
    assert round(dense.activated_params / 1e6, 1) == 22.0
    assert round(upcycled.activated_params / 1e6, 1) == 24.4
    assert upcycled.stored_params / 1e6 == pytest.approx(40.9, rel=0.001)
    assert dense.macs / 1e9 == pytest.approx(6.14, rel=0.003)
    assert upcycled.macs / 1e9 == pytest.approx(6.74, rel=0.003)
    assert config == MoEConfig(layers=(10, 11), num_experts=(8, 8))
    assert config.routing_degree == 64


def test_size_and_classes_are_the_model_s_own_unless_given() -> None:
    own = compare_costs("vit_tiny_patch16_224")
    assert own.dense == compare_costs("vit_tiny_patch16_224", 224, 1000).dense
    assert compare_costs("vit_tiny_patch16_224", 160).dense.macs < own.dense.macs
    fewer = compare_costs("vit_tiny_patch16_224", num_classes=10)
    assert own.dense.stored_params - fewer.dense.stored_params == 990 * (192 + 1)


def test_a_name_with_a_tag_is_understood() -> None:
    assert (
        compare_costs("vit_tiny_patch16_224.augreg_in21k_ft_in1k").dense == compare_costs("vit_tiny_patch16_224").dense
    )


def test_a_name_that_timm_does_not_know_gets_one_line_with_its_neighbours() -> None:
    with refused("timm has no model 'vit_small_patch15_dinov2', did you mean …?"):
        compare_costs("vit_small_patch15_dinov2")
    with refused("timm has no model 'vit_smal_patch14_dinov2', did you mean vit_small_patch14_dinov2, …?"):
        compare_costs("vit_smal_patch14_dinov2")
    with refused("timm has no weights 'deit_tiny_patch16_224.fb_in22k', did you mean 'deit_tiny_patch16_224.fb_in1k'?"):
        compare_costs("deit_tiny_patch16_224.fb_in22k")
    with refused("timm has no model 'qqqqqqqqqqqqqqqq'"):
        compare_costs("qqqqqqqqqqqqqqqq")


def test_a_model_that_cannot_be_upcycled_gets_one_line() -> None:
    with refused(f"ResNet has no blocks with an FFN of their own to replace; supported are {SUPPORTED}"):
        compare_costs("resnet18", 224)


def test_a_setting_out_of_range_gets_one_line() -> None:
    with refused("last must be 1 to 12, the number of blocks of this model, got 13"):
        compare_costs("vit_tiny_patch16_224", last=13)


@pytest.mark.parametrize("size", [0, -224])
def test_an_image_size_that_is_none_gets_one_line(size: int) -> None:
    with refused(
        f"timm cannot make vit_tiny_patch16_224: Expected a positive image size (H, W), got ({size}, {size})."
    ):
        compare_costs("vit_tiny_patch16_224", size)
