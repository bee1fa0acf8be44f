import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.study.support import TINY, study
from vimoe.errors import UserError
from vimoe.study.grid import differing_fields, list_runs
from vimoe.study.study_file import read_study

STUDIES = sorted((Path(__file__).parents[2] / "configs" / "studies").glob("*.yaml"))


def names(folder: Path, text: str) -> list[str]:
    return [run.name for run in list_runs(study(folder, text))]


def test_a_grid_is_laid_out_seed_by_seed_with_the_pretraining_first(tmp_path: Path) -> None:
    assert names(tmp_path, TINY.replace("seeds: [0]", "seeds: [3, 1]")) == [
        *("seed3/start", "seed3/dense", "seed3/N2-L2-shared", "seed3/N2-L2"),
        *("seed1/start", "seed1/dense", "seed1/N2-L2-shared", "seed1/N2-L2"),
    ]


def test_runs_that_describe_the_same_model_are_one_run_of_all_their_variants(tmp_path: Path) -> None:
    variants = """variants:
  - {name: main, last: [0, 2], num_experts: [2, 4], shared_expert: [true, false]}
  - {name: paper, last: [0, 2], num_experts: 2, preset: paper, router_noise: true}
  - {name: again, last: 2, num_experts: 4, shared_expert: false}
  - {name: dense, baseline: dense, last: [1, 2]}
"""
    runs = {run.setting: run for run in list_runs(study(tmp_path, variants))}
    assert list(runs) == [
        "dense",
        "N2-L2-shared",
        "N2-L2",
        "N4-L2-shared",
        "N4-L2",
        "N2-L2-shared-paper-router_noise=True",
    ]
    assert runs["dense"].variants == ("main", "paper", "dense")
    assert runs["N4-L2"].variants == ("main", "again")
    assert runs["N2-L2-shared-paper-router_noise=True"].qualifier == "paper-router_noise=True"


def test_the_experts_rate_makes_no_other_dense_model(tmp_path: Path) -> None:
    assert names(tmp_path, "variants: [{name: a, last: [0, 1], expert_lr: [0.5, 1.0]}]") == [
        *("seed0/dense", "seed0/N8-L1-shared-expert_lr=0.5", "seed0/N8-L1-shared")
    ]


def test_a_wide_control_is_shared_by_all_that_have_its_width(tmp_path: Path) -> None:
    variants = """variants:
  - {name: wide, baseline: wide, last: [0, 2], num_experts: [2, 8], routing: [image, token]}
  - {name: none, baseline: wide, last: 2, shared_expert: false}
  - {name: two, baseline: wide, last: 2, shared_expert: false, top_k: 2}
"""
    runs = {run.setting: run for run in list_runs(study(tmp_path, variants))}
    assert list(runs) == ["dense", "wide2-L2"]
    assert runs["dense"].variants == ("wide", "none")  # as wide as one expert is dense
    assert runs["wide2-L2"].variants == ("wide", "two")
    recipe = runs["wide2-L2"].recipe
    assert (recipe.baseline, recipe.last, recipe.top_k + recipe.shared_expert) == ("wide", 2, 2)


def test_with_a_frozen_trunk_a_dense_model_learns_in_as_many_blocks_as_the_sparse_one(tmp_path: Path) -> None:
    variants = """variants:
  - {name: dense, baseline: dense, last: [0, 1, 2]}
  - {name: moe, last: 2}
"""
    runs = {run.setting: run for run in list_runs(study(tmp_path, "base: {freeze: trunk}\n" + variants))}
    assert list(runs) == ["dense", "dense-L1", "dense-L2", "N8-L2-shared"]
    assert [(run.kind, run.recipe.last) for run in runs.values()] == [
        *(("dense", 0), ("dense", 1), ("dense", 2), ("moe", 2))
    ]


def test_baselines_are_named_and_kept_apart_by_what_decides_their_size(tmp_path: Path) -> None:
    variants = """variants:
  - {name: split, baseline: wide, last: 2, init: split, num_experts: 4, top_k: [2, 3]}
  - {name: fine, baseline: [wide, deeper], last: 2, granularity: 4, num_experts: 2}
  - {name: rank, baseline: wide, last: 2, expert_rank: 8}
  - {name: linear, baseline: linear, last: [0, 2], top_k: [1, 2]}
  - {name: vpt, baseline: vpt, last: [0, 2], prompt_tokens: [10, 20]}
  - {name: lora, baseline: lora, last: [1, 2], router_lr: [1.0, 0.1]}
  - {name: given, baseline: lora, last: [1, 2], lora_rank: 4}
  - {name: pair, baseline: ensemble, last: [1, 2], members: 2}
  - {name: equal, baseline: ensemble, last: 2, num_experts: [4, 8]}
"""
    runs = {run.setting: run for run in list_runs(study(tmp_path, variants))}
    assert list(runs) == [
        *("wide-L2-num_experts=4-top_k=2-init=split", "wide-L2-num_experts=4-top_k=3-init=split"),
        *("wide2-L2", "deeper2-L2", "wide-L2-expert_rank=8", "linear", "vpt", "vpt-prompt_tokens=20"),
        *("lora-L1", "lora-L2", "lora-lora_rank=4", "ensemble-members=2"),
        *("ensemble-L2-num_experts=4", "ensemble-L2"),
    ]
    assert {run.kind for run in runs.values()} == {"wide", "deeper", "linear", "vpt", "lora", "ensemble"}
    assert runs["linear"].recipe.last == 0
    assert (runs["lora-L2"].recipe.last, runs["lora-L2"].recipe.router_lr) == (2, 1.0)


def test_fine_tunings_start_from_their_own_seeds_pretraining(tmp_path: Path) -> None:
    runs = list_runs(study(tmp_path, TINY.replace("seeds: [0]", "seeds: [0, 1]")))
    for run in runs:
        assert run.recipe.output == str(tmp_path / "runs" / run.name)
        if run.kind == "start":
            assert run.needs is None
            assert run.recipe.augment is False
            assert run.recipe.initial_checkpoint is None
        else:
            assert run.needs == f"seed{run.recipe.seed}/start"
            assert run.recipe.augment is True
            assert run.recipe.initial_checkpoint == str(tmp_path / "runs" / run.needs / "model")


def test_another_model_or_other_data_has_a_pretraining_of_its_own(tmp_path: Path) -> None:
    text = TINY + "  - {name: other, last: 2, model: vit_small_patch16_224, lr: [0.001, 0.002]}\n"
    runs = {run.name: run for run in list_runs(study(tmp_path, text))}
    other = runs["seed0/start-model=vit_small_patch16_224"]
    assert other.recipe.model == "vit_small_patch16_224"
    assert other.variants == ("other",)
    assert {run.needs for run in runs.values() if "other" in run.variants} == {None, other.name}
    assert sum(run.kind == "start" for run in runs.values()) == 2  # another lr needs none


def test_fewer_images_have_a_pretraining_of_their_own(tmp_path: Path) -> None:
    text = TINY.replace("dataset: digits", "dataset: folder") + "  - {name: few, last: 2, per_class: 5}\n"
    runs = {run.name: run for run in list_runs(study(tmp_path, text))}
    assert runs["seed0/start-per_class=5"].recipe.per_class == 5
    assert [run.needs for run in runs.values() if run.recipe.per_class == 5 and run.kind != "start"] == [
        "seed0/start-per_class=5"
    ]


def test_what_is_planned_comes_after_its_run_with_the_epochs_of_both(tmp_path: Path) -> None:
    text = TINY.replace("epochs: 1", "epochs: 9") + "planned: [N2-L2-shared]\n"
    runs = list_runs(study(tmp_path, text))
    run = runs[-1]
    assert (run.name, run.needs, run.qualifier, run.variants) == (
        *("seed0/N2-L2-shared-planned", "seed0/N2-L2-shared", "planned"),
        ("planned",),
    )
    assert run.recovers == 3  # a quarter, rounded up
    assert run.recipe.epochs == 12
    assert run.recipe.output == str(tmp_path / "runs" / run.name)
    assert all(other.recovers == 0 for other in runs[:-1])
    assert differing_fields(runs) == (*differing_fields(runs[:-1]), "epochs")


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("N2-L2-share", "did you mean 'N2-L2-shared'"),
        ("dense", "there is N2-L2-shared, N2-L2"),
        ("start", "there is N2-L2-shared, N2-L2"),
    ],
)
def test_only_a_run_with_moe_layers_can_be_planned(tmp_path: Path, setting: str, line: str) -> None:
    with pytest.raises(UserError, match=f"planned: {setting!r} is no setting with MoE layers of this study[,;] {line}"):
        list_runs(study(tmp_path, TINY + f"planned: [{setting}]\n"))


def test_a_name_tells_what_differs_from_the_base_and_nothing_else(tmp_path: Path) -> None:
    variants = """base: {lr: 0.5, balance_weight: 0.02}
variants:
  - {name: a, last: [0, 1], lr: [0.5, 0.25], top_k: 2, routing: token}
  - {name: b, last: 0, model_args: {embed_dim: 32}}
  - {name: c, last: 0, initial_checkpoint: some/where}
"""
    found = names(tmp_path, variants)
    assert found[:4] == [
        *("seed0/dense", "seed0/dense-lr=0.25", "seed0/N8-L1-shared-k2-token", "seed0/N8-L1-shared-k2-token-lr=0.25")
    ]
    for name in found[4:]:
        assert len(name) == len("seed0/dense-123456")
    assert len(set(found)) == 6
    assert names(tmp_path, variants) == found


def test_baselines_that_freeze_by_themselves_stand_beside_runs_with_a_frozen_trunk(tmp_path: Path) -> None:
    variants = """base: {freeze: trunk, cache_features: memory, feature_views: 2, dataset: digits}
variants:
  - {name: dense, last: 1, baseline: dense}
  - {name: head, baseline: linear, freeze: ""}
  - {name: lora, last: 1, baseline: lora, freeze: "", cache_features: "", feature_views: 1}
"""
    assert names(tmp_path, variants) == ["seed0/dense-L1", "seed0/linear", "seed0/lora-L1-feature_views=1"]


def test_where_the_study_lies_and_what_it_runs_on_changes_no_name(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    here = list_runs(read_study(tmp_path / "tiny.yaml", tmp_path / "here"))
    there = list_runs(read_study(tmp_path / "tiny.yaml", tmp_path / "there", device="cuda"))
    assert [run.name for run in here] == [run.name for run in there]


def test_differing_fields_are_those_of_the_fine_tunings(tmp_path: Path) -> None:
    runs = list_runs(study(tmp_path, TINY))
    assert differing_fields(runs) == ("last", "num_experts", "shared_expert")
    assert differing_fields([replace(run, setting="start") for run in runs[:1]]) == ()


def test_models_to_start_from_are_told_apart_and_those_of_the_study_are_not(tmp_path: Path) -> None:
    variants = "variants: [{name: a, last: 1, initial_checkpoint: [some/where, else/where]}]"
    assert differing_fields(list_runs(study(tmp_path, variants))) == ("initial_checkpoint",)
    variants = "start: {epochs: 1}\nseeds: [0, 1]\nvariants: [{name: a, last: [0, 1]}]"
    assert differing_fields(list_runs(study(tmp_path, variants))) == ("last",)


@pytest.mark.parametrize(
    ("variants", "line"),
    [
        ("{name: a, last: [two]}", "variant 'a': last must be a whole number, got 'two'"),
        ("{name: a, preset: [papr]}", "variant 'a': preset must be one of 'preserve', 'paper', got 'papr'"),
        ("{name: a, epochs: [null]}", "variant 'a': "),
        ("{name: a, lst: 2}", "variant 'a': unknown recipe key 'lst', did you mean 'last'?"),
        ("{name: a, epochs: 0}", "variant 'a': epochs must be at least 1, got 0"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_variant(variants: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line) as caught:
        names(tmp_path, f"variants: [{variants}]")
    assert "\n" not in str(caught.value)


def test_a_mistake_in_the_base_names_the_base(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="base: unknown recipe key 'epohcs', did you mean 'epochs'"):
        names(tmp_path, "base: {epohcs: 3}\nvariants: [{name: a}]")


def test_planning_imports_no_torch() -> None:
    code = "import sys, vimoe.study.grid; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_file_is_valid_and_starts_with_its_command_cost_and_expected_result(path: Path) -> None:
    runs = list_runs(read_study(path, Path("runs")))
    assert len({run.name for run in runs}) == len(runs)
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert len({run.recipe.seed for run in runs}) >= 3 or "one seed" in " ".join(head)
    assert head[0].startswith(f"# vimoe study -c configs/studies/{path.name}")
    assert any("Cost:" in line for line in head)
    assert any("Expected:" in line for line in head)
