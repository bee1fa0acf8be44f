"""Pretrained weights without a network: known within seconds, not after minutes of retries."""

import threading
from collections.abc import Callable
from contextlib import suppress
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import timm
from huggingface_hub import constants, try_to_load_from_cache

from vimoe.errors import UserError

# Seconds that the hub has to answer; a name that does not resolve can take longer than any socket's limit.
PATIENCE = 6.0
_FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")


def check_hub(model: str, answers: Callable[[], bool] | None = None) -> None:
    """Raise UserError if a timm model's weights are neither in the cache nor to be had; the cache needs no network."""
    known = timm.get_pretrained_cfg(model, allow_unregistered=True)
    hub_id = getattr(known, "hf_hub_id", None)
    if not hub_id or known.file:
        return  # timm has them from elsewhere
    repository = hub_id if "/" in hub_id else f"timm/{hub_id}"
    names = [name for name in (known.hf_hub_filename, *_FILES) if name]
    if any(isinstance(try_to_load_from_cache(repository, name), str) for name in names):
        return
    if constants.HF_HUB_OFFLINE or not (answers or _hub_answers)():
        raise UserError(
            f"the weights of {model} are not in the cache, and {constants.ENDPOINT} does not answer: connect, give "
            "weights with --initial-checkpoint, or train from nothing with --defaults scratch"
        )


def _hub_answers() -> bool:
    """Whether the hub answers in time, through a proxy where one is set."""
    answered = threading.Event()

    def ask() -> None:
        with suppress(OSError):
            with suppress(HTTPError):  # an answer, too
                urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=PATIENCE).close()
            answered.set()

    threading.Thread(target=ask, daemon=True).start()
    return answered.wait(PATIENCE)
