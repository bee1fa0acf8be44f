"""Several dense models as one: their probabilities are averaged (deep ensembles, Lakshminarayanan et al. 2017)."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vimoe.errors import UserError
from vimoe.vit.changes import note_change


class Ensemble(nn.Module):
    """Classifiers of one kind; the output is the logarithm of their mean probabilities, `[B, classes]` in fp32."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        first: Any = members[0]
        self.num_classes: int = first.num_classes
        self.pretrained_cfg: dict[str, Any] = first.pretrained_cfg
        note_change(self, "vimoe_ensemble", {"members": len(members)})

    def forward(self, images: Tensor) -> Tensor:
        logs = torch.stack([member(images).float().log_softmax(-1) for member in self.members])
        return logs.logsumexp(0) - math.log(len(logs))

    def reset_classifier(self, num_classes: int) -> None:
        """Give every member a new head."""
        for member in self.members:
            member.reset_classifier(num_classes)  # type: ignore[operator]
        self.num_classes = num_classes


def repeat(model: nn.Module, members: int) -> Ensemble:
    """An ensemble of this model and copies of it. Raises UserError if it is no classifier of timm's."""
    if not hasattr(model, "reset_classifier"):
        raise UserError(f"an ensemble is made of classifiers: {type(model).__name__} is none")
    return Ensemble([model, *(copy.deepcopy(model) for _ in range(members - 1))])


def members_of(model: nn.Module) -> list[nn.Module]:
    """The members of an ensemble; any other model alone."""
    return list(model.members) if isinstance(model, Ensemble) else [model]
