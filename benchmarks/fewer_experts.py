"""What cheap criteria say of single experts, and what it costs to remove, or merge, those of least worth by each.

The runs were analyzed with `vimoe analyze RUN --experts ablation,load,router-change,reap,activation`, which looks at
validation images. Rank agreement with ablation is within layers: of all experts (Spearman, Kendall), and of the busy
ones alone, which get at least half of an even share; of ablation it is one half of the images against the other. Then
the same share of the experts of every layer is removed, or merged into the others, by each criterion, and as the run's
plan says; the model is scored on test images before any recovery. Mean and standard deviation over the runs.

    python benchmarks/fewer_experts.py runs/glyphs/seed*/N8-L4-token-paper
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

import vimoe
from vimoe.analysis.ablation_scores import image_scores
from vimoe.analysis.analysis_result import Analysis, ExpertAnalysis
from vimoe.analysis.analyze_run import finished_run, run_images
from vimoe.analysis.expert_criteria import CRITERIA, rank_agreement
from vimoe.analysis.held_out import draw, held_out
from vimoe.vit.plan import LayerPlan, Plan

DRAWS = 2  # of experts at random, for each run
Layers = Sequence[Sequence[ExpertAnalysis]]


def agreement(analysis: Analysis, name: str) -> list[float]:
    """With ablation: Spearman's and Kendall's of all experts, Spearman's of the busy ones."""
    if name == "ablation":  # half of the images against the others
        together = max(analysis.agreements, key=lambda found: (found.criterion == name, len(found.layers)))
        return [together.rank_correlation.value if together.rank_correlation else np.nan, np.nan, np.nan]
    layers = [layer.experts for layer in analysis.layers]
    busy = [[e for e in layer if e.load >= 0.5 / len(layer)] for layer in layers]
    scores = [[[e.scores[by] for e in layer] for layer in layers] for by in (name, "ablation")]
    kendall = [kendalltau(one, other).statistic for one, other in zip(*scores, strict=True)]
    return [_spearman(layers, name), float(np.nanmean(kendall)), _spearman(busy, name)]


def _spearman(layers: Layers, name: str) -> float:
    found = rank_agreement(*([[e.scores[by] for e in layer] for layer in layers] for by in (name, "ablation")))
    return np.nan if found is None else found.value


def losses(path: Path, analysis: Analysis, shares: Sequence[float], sample: int, seed: int) -> dict[str, list[float]]:
    """By criterion, the points gained or lost for each share: removed, merged."""
    run, recipe = finished_run(path)
    splits, drawn = run_images(run, recipe), np.random.default_rng(seed)
    images = draw(splits.test, sample, seed)
    seen = held_out(vimoe.load(run.model), images, len(splits.class_names), 0, recipe.short_side, 500)
    batches, layers = list(seen.batches()), [layer.experts for layer in analysis.layers]

    def score(plan: Plan) -> float:
        model = vimoe.prune(vimoe.load(run.model), plan)
        return 100 * image_scores(model, batches, seen.score).mean().item()

    worth = {name: [[[e.scores[name] for e in layer] for layer in layers]] for name in layers[0][0].scores}
    worth["random"] = [[drawn.random(len(layer)).tolist() for layer in layers] for _ in range(DRAWS)]
    whole, found = score(Plan(())), defaultdict(list)
    for name, draws in worth.items():
        for share in shares:
            for merge in (False, True):
                after = [score(without(analysis, values, share, merge)) for values in draws]
                found[name].append(float(np.mean(after)) - whole)
    plan = Plan.load(path / "plan.json")
    merged = replace(plan, layers=tuple(replace(part, merge=not part.pruned) for part in plan.layers))
    kept = sum(len(part.experts) for part in plan.layers)
    return {"score": [whole], "plan": [kept, score(plan) - whole, score(merged) - whole], **found}


def without(analysis: Analysis, worth: Sequence[Sequence[float]], share: float, merge: bool) -> Plan:
    """The plan that removes, or merges, this share of the experts of every layer, those of least worth."""
    parts = []
    for layer, values in zip(analysis.layers, worth, strict=True):
        kept = np.argsort(values, kind="stable")[round(share * len(values)) :]
        parts.append(LayerPlan(layer.layer, tuple(sorted(kept.tolist())), layer.specialisation.load, merge=merge))
    return Plan(tuple(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--sample", type=int, default=4000, help="test images, each class in its share")
    given = parser.parse_args()
    agree, lost = defaultdict(list), defaultdict(list)
    for seed, path in enumerate(given.runs):
        analysis = Analysis.load(path / "analysis.json")
        for name in CRITERIA:
            agree[name].append(agreement(analysis, name))
        for name, values in losses(path, analysis, given.shares, given.sample, seed).items():
            lost[name].append(values)
    shares, whole, plans = [f"{share:.0%}" for share in given.shares], lost.pop("score"), lost.pop("plan")
    _table("agreement", ["Spearman", "Kendall", "of the busy"], agree)
    _table("as it is", ["score"], {"": whole})
    _table("points", [f"{share} {how}" for share in shares for how in ("removed", "merged")], lost)
    better = {name: [np.subtract(v[1::2], v[::2]).tolist() for v in values] for name, values in lost.items()}
    _table("merged less", shares, better)
    _table("the plan", ["experts kept", "removed", "merged"], {"": plans})


def _table(title: str, columns: Sequence[str], rows: dict[str, list[list[float]]]) -> None:
    print(f"\n{title:14}{''.join(f'{name:18}' for name in columns)}")
    for name, values in rows.items():
        cells = zip(np.mean(values, 0), np.std(values, 0, ddof=1), strict=True)
        shown = ["-" if np.isnan(mean) else f"{mean:+.2f} ± {spread:.2f}" for mean, spread in cells]
        print(f"{name:14}{''.join(f'{cell:18}' for cell in shown)}", flush=True)


if __name__ == "__main__":
    main()
