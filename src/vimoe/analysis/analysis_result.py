"""What an analysis found: plain numbers, and their form on disk (`analysis.json`)."""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vimoe.analysis.paired import Estimate
from vimoe.analysis.specialisation import Specialisation
from vimoe.errors import UserError
from vimoe.files import write_text

# In the order in which they are shown; see `vimoe.analysis.ablations`.
ABLATIONS = {
    "mean": "the mean of all experts answers",
    "random": "experts chosen at random",
    "second": "the second choice instead of the first",
    "shared": "the shared expert alone",
    "pruned": "a plain FFN, as after pruning",
}


@dataclass(frozen=True)
class AblationResult:
    """What one of `ABLATIONS` cost: points lost against the intact model on the same images, negative for a gain."""

    name: str
    lost: Estimate


@dataclass(frozen=True)
class ClassShare:
    """A class's share of an expert's assignments, and `lift`, that share over its share of all: 1 for no preference."""

    label: int
    share: float
    lift: float


@dataclass(frozen=True)
class ExpertAnalysis:
    """One expert."""

    expert: int
    load: float  # share of the assignments
    classes: tuple[ClassShare, ...]  # its most frequent classes, the most frequent first
    confident: tuple[int, ...]  # images (places in the split) that the router sends here with the highest probability
    unsure: tuple[int, ...]  # those sent here with the lowest; none of `confident`
    scores: dict[str, float] = field(
        default_factory=dict
    )  # by criterion of `expert_criteria.CRITERIA` that was asked for
    lost: Estimate | None = None  # the score `ablation` with its interval


@dataclass(frozen=True)
class LayerAnalysis:
    """One MoE layer."""

    layer: int
    specialisation: Specialisation  # how far the class decides the expert
    confidence: float  # mean probability of the first choice
    margin: float  # mean distance of first and second choice, in probability
    stability: float  # share of first choices that stay when the image is moved and its contrast changed a little
    ablations: tuple[AblationResult, ...]
    experts: tuple[ExpertAnalysis, ...]
    # `[E][E]` likeness of what two experts answer to the same input, 1 for the same answer.
    output_similarity: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Neighbours:
    """Two MoE layers, one after the other, and how much of one's choice is known from the other's.

    That is their mutual information over the smaller entropy, 0 to 1.
    """

    first: int
    second: int
    agreement: float


@dataclass(frozen=True)
class CriterionAgreement:
    """How far a criterion puts experts in the order in which ablation does, see `expert_criteria.rank_agreement`."""

    criterion: str  # `ablation` is held against itself: half of the images against the others
    layers: tuple[int, ...]  # one layer, or all of them together
    experts: int  # how many were put in order
    rank_correlation: Estimate | None  # None where one of the two makes no difference


@dataclass(frozen=True)
class Step:
    """One step of the backward elimination: this change is tried on top of those accepted before."""

    layer: int
    drop: tuple[int, ...]  # experts to remove from it; empty where the whole layer becomes a plain FFN
    lost: Estimate  # percentage points lost by all changes so far together, against the intact model
    own: Estimate  # percentage points lost by this change, against those accepted before
    outcome: str  # `accepted`; or the layer stays as it was, because it is `needed` or the images leave it `undecided`

    @property
    def accepted(self) -> bool:
        """Whether the change stays."""
        return self.outcome == "accepted"

    @property
    def decisive(self) -> Estimate:
        """The one of `own` and `lost` that decided."""
        if self.outcome == "needed":
            return max(self.own, self.lost, key=lambda lost: lost.low)
        return max(self.own, self.lost, key=lambda lost: lost.high)


@dataclass(frozen=True)
class Analysis:
    """What was measured on a model, on held-out images."""

    # What `score` is the mean of: `top1` (whether an image is right), `lrap` (how far its labels stand before the
    # others) or `pixels` (the share of its labelled pixels that is right).
    metric: str
    split: str
    images: int  # how many were looked at
    split_images: int  # how many there are: more where a sample was drawn
    unit: str  # what the counts count: a `image` or a `patch`
    class_names: tuple[str, ...]
    score: Estimate  # of the intact model, in percent
    depth: int
    layers: tuple[LayerAnalysis, ...]
    neighbours: tuple[Neighbours, ...]
    steps: tuple[Step, ...]
    max_drop: float  # percentage points that the plan may lose
    # The files of the images named in `experts`, by place in the split; empty for images without files.
    paths: dict[int, str]
    agreements: tuple[
        CriterionAgreement, ...
    ] = ()  # of the criteria that were asked for, where ablation was among them

    def layer(self, number: int) -> LayerAnalysis:
        """The layer of this block."""
        return next(layer for layer in self.layers if layer.layer == number)

    @property
    def measure(self) -> str:
        """What the specialisation of its layers is called."""
        return self.layers[0].specialisation.name

    def save(self, path: Path) -> None:
        """Write `analysis.json`, whole or not at all."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False, allow_nan=False)
        write_text(path, f"{text}\n")

    @classmethod
    def load(cls, path: Path) -> typing.Self:
        """Read what `save` wrote. Raises UserError if the file is missing, damaged, or of another form."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(f"there is no analysis at {path}: `vimoe analyze` writes it") from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path} holds no analysis: {error}") from error
        try:
            return typing.cast(typing.Self, _read(cls, values))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"{type(error).__name__} {error}"
            raise UserError(f"{path} holds no analysis of this version ({what}): run `vimoe analyze` again") from error


def _read(kind: Any, value: Any) -> Any:
    """JSON's value as the type that a field was declared with."""
    if isinstance(kind, types.UnionType):  # of a type and None
        return None if value is None else _read(typing.get_args(kind)[0], value)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if set(value) != set(hints):
            raise KeyError(next(iter(sorted(set(value) ^ set(hints)))))
        return kind(**{name: _read(hint, value[name]) for name, hint in hints.items()})  # type: ignore[operator]
    if typing.get_origin(kind) is tuple:
        return tuple(_read(typing.get_args(kind)[0], item) for item in value)
    if kind is float and type(value) is int:
        return float(value)
    if typing.get_origin(kind) is dict:
        keys, items = typing.get_args(kind)
        return {keys(key): _read(items, item) for key, item in value.items()}
    if type(value) is not kind:
        raise TypeError(f"{value!r} should be of type {kind.__name__}")
    return value
