import pytest
import torch
import torch.distributed as dist

from vimoe.distributed import (
    all_gather,
    all_reduce_numbers,
    all_reduce_sum,
    barrier,
    is_distributed,
    is_network_error,
    process_group,
    rank,
    world_size,
)
from vimoe.errors import UserError


def test_one_process_knows_only_itself() -> None:
    with process_group("cpu"):
        assert (is_distributed(), rank(), world_size()) == (False, 0, 1)
        tensor = torch.ones(2)
        all_reduce_sum(tensor)
        assert tensor.tolist() == [1, 1]
        assert all_reduce_numbers(1, 2.5) == [1, 2.5]
        assert all_gather("text") == ["text"]
        barrier()


@pytest.mark.parametrize(
    ("error", "network"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc] Connection closed by peer"), True),
        (dist.DistNetworkError("refused"), True),
        (RuntimeError("CUDA error: an illegal memory access"), False),
        (ValueError("gloo"), False),
    ],
)
def test_only_what_the_network_says_means_that_another_process_died(error: Exception, network: bool) -> None:
    assert is_network_error(error) == network


def test_an_error_of_this_process_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", lambda backend: None)
    with pytest.raises(RuntimeError, match="CUDA error"), process_group("cpu"):
        raise RuntimeError("CUDA error")
    with pytest.raises(UserError, match="another process of this run has died"), process_group("cpu"):
        raise RuntimeError("gloo: connection reset")
