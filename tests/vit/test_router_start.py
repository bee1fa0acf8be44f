import pytest
import torch
from torch.nn import functional as F

import vimoe
from tests.vit.families import make, make_images, run
from vimoe.vit.blocks import moe_layers
from vimoe.vit.router_start import LOGIT, spherical_kmeans, start_routers_at_centroids


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_clusters_are_found_where_there_are_some() -> None:
    centres = F.normalize(torch.randn(5, 16, generator=generator()), dim=1)
    rows = centres.repeat(40, 1) + 0.02 * torch.randn(200, 16, generator=generator(1))
    found = spherical_kmeans(3 * rows, 5, generator(2))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))
    assert (found @ centres.T).amax(0).min() > 0.99


def test_more_clusters_than_different_rows_are_still_directions() -> None:
    found = spherical_kmeans(torch.ones(7, 4), 6, generator())
    assert found.isfinite().all()
    torch.testing.assert_close(found.norm(dim=1), torch.ones(6))


def test_routers_start_at_the_centroids_of_their_inputs_and_the_model_computes_what_it_did() -> None:
    model = vimoe.upcycle(make(), last=2, num_experts=3, routing="token")
    images = make_images(model, 16)
    before, mode = run(model, images), model.training
    start_routers_at_centroids(model, images, generator())
    torch.testing.assert_close(run(model, images), before, rtol=0, atol=1e-5)
    assert model.training is mode
    for layer in moe_layers(model).values():
        assert layer.last_selection is not None  # of `run`
        logits = layer.last_selection.logits
        assert layer.last_selection.expert_ids.unique().numel() == 3
        assert 0.3 * LOGIT < logits.amax(1).mean() < 1.5 * LOGIT


def test_the_same_seed_starts_them_alike() -> None:
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        model = vimoe.upcycle(make(), last=1, num_experts=3)
        start_routers_at_centroids(model, make_images(model, 8), generator(seed))
        weights.append(moe_layers(model)[2].router.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(("top_k", "rows"), [(2, 4), (4, 1)])
def test_slices_of_one_ffn_get_a_centroid_each_or_stay_alike_where_all_are_chosen(top_k: int, rows: int) -> None:
    model = vimoe.upcycle(make(), last=1, num_experts=4, init="split", top_k=top_k, routing="token")
    images = make_images(model, 16)
    before = run(model, images)
    start_routers_at_centroids(model, images, generator())
    assert len(moe_layers(model)[2].router.weight.unique(dim=0)) == rows
    if top_k == 4:
        torch.testing.assert_close(run(model, images), before, rtol=0, atol=1e-5)


def test_slices_of_a_copy_share_its_centroid() -> None:
    model = vimoe.upcycle(make(), last=1, num_experts=3, granularity=2, routing="token")
    start_routers_at_centroids(model, make_images(model, 16), generator())
    weight = moe_layers(model)[2].router.weight
    assert len(weight) == 6
    assert weight[::2].equal(weight[1::2])
    assert len(weight.unique(dim=0)) == 3
