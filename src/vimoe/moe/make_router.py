"""From a configuration to a layer's router: the one place that knows all of them."""

from collections.abc import Callable

import torch

from vimoe.moe.capacity import ExpertChoiceRouter, PrioritisedRouter
from vimoe.moe.config import MoEConfig
from vimoe.moe.one_router import FollowingRouter, LeadingRouter
from vimoe.moe.router import Router, TopKRouter
from vimoe.moe.soft import SoftRouter


def make_router(config: MoEConfig, dim: int, num_experts: int, leader: Router | None = None) -> Router:
    """A router of `num_experts` experts as it starts, for inputs of width `dim`; or one that follows the `leader`."""
    if isinstance(leader, LeadingRouter):
        return FollowingRouter(leader)
    return _KINDS["leading" if config.router_scope == "model" else config.router](config, dim, num_experts)


def _choosing(kind: type[TopKRouter], *more: str) -> Callable[[MoEConfig, int, int], Router]:
    def make(config: MoEConfig, dim: int, num_experts: int) -> Router:
        router = kind(
            dim,
            num_experts,
            config.top_k,
            config.gate,
            config.router_noise,
            jitter=config.router_jitter,
            temperature=config.router_temperature,
            balanced=config.balance == "bias",
            **{name: getattr(config, name) for name in more},
        )
        with torch.no_grad():
            if config.init == "split" and config.top_k == num_experts:
                router.weight.zero_()  # all slices together are the FFN, if they count alike
            elif config.init != "split" and config.granularity > 1:
                tied = router.weight[:: config.granularity].repeat_interleave(config.granularity, 0)
                router.weight.copy_(tied[:num_experts])
        return router

    return make


_KINDS: dict[str, Callable[[MoEConfig, int, int], Router]] = {
    "top_k": _choosing(TopKRouter),
    "leading": _choosing(LeadingRouter),
    "prioritised": _choosing(PrioritisedRouter, "capacity"),
    "expert_choice": _choosing(ExpertChoiceRouter, "capacity"),
    "soft": lambda config, dim, num_experts: SoftRouter(dim, num_experts, config.slots),
}
