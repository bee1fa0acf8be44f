"""A small analysis whose numbers were made up, for tests of what reads one."""

from vimoe.analysis.analysis_result import (
    AblationResult,
    Analysis,
    ClassShare,
    ExpertAnalysis,
    LayerAnalysis,
    Neighbours,
    Step,
)
from vimoe.analysis.paired import Estimate
from vimoe.analysis.specialisation import Specialisation


def measure(normalised: float = 0.5, p_value: float = 0.005, load: tuple[float, ...] = (0.25, 0.75)) -> Specialisation:
    return Specialisation(
        information=2 * normalised,
        normalised=normalised,
        top_share=0.8,
        p_value=p_value,
        effective_experts=1.75,
        load=load,
        low=max(0.0, normalised - 0.1),
        high=min(1.0, normalised + 0.1),
        chance_top_share=0.6,
        consistency=0.7,
        chance_consistency=0.6,
    )


def layer(number: int, normalised: float = 0.5) -> LayerAnalysis:
    lost = {"mean": 3.0, "random": 6.0, "second": 8.0, "shared": 4.0, "pruned": 4.5}
    classes = (ClassShare(0, 0.7, 1.4), ClassShare(1, 0.3, 0.6))
    return LayerAnalysis(
        layer=number,
        specialisation=measure(normalised),
        confidence=0.8,
        margin=0.6,
        stability=0.9,
        ablations=tuple(AblationResult(name, Estimate(x, x - 2, x + 2)) for name, x in lost.items()),
        experts=(ExpertAnalysis(0, 0.25, classes, (3, 1), (0,)), ExpertAnalysis(1, 0.75, classes[::-1], (2,), ())),
        output_similarity=((1.0, 0.4), (0.4, 1.0)),
    )


def analysis() -> Analysis:
    """Two layers, two experts, two classes of which one wants escaping."""
    return Analysis(
        metric="top1",
        split="val",
        images=40,
        split_images=40,
        unit="image",
        class_names=("a", "<script>alert(1)</script>"),
        score=Estimate(90.0, 82.5, 97.5),
        depth=3,
        layers=(layer(1, 0.1), layer(2, 0.6)),
        neighbours=(Neighbours(1, 2, 0.3),),
        steps=(
            Step(1, (), Estimate(0.5, -1.0, 2.0), Estimate(0.5, -1.0, 2.0), "accepted"),
            Step(2, (), Estimate(6.0, 2.0, 10.0), Estimate(5.5, 2.0, 9.0), "needed"),
            Step(2, (1,), Estimate(0.5, -1.0, 2.0), Estimate(0.0, -1.0, 1.0), "accepted"),
        ),
        max_drop=2.0,
        paths={0: "a/0.png", 1: "a/1.png"},
    )
