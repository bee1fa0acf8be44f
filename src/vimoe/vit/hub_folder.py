"""Model folders on the Hugging Face Hub, named as in timm: `hf-hub:user/name`, or `hf-hub:user/name@revision`."""

import sys
from functools import cache
from pathlib import Path
from typing import Any

from vimoe.errors import UserError, first_line

PREFIX = "hf-hub:"
# Stands for a model's name in a card that is not on the Hub yet.
ANYWHERE = f"{PREFIX}USER/NAME"
# What a model folder is made of. Nothing else is downloaded, and nothing of it is ever run.
FILES = ("config.json", "*.safetensors")
# Seconds until the Hub counts as out of reach.
PATIENCE = 5.0


@cache
def fetch(name: str) -> Path:
    """The local copy of a model folder; without a network the last one downloaded.

    Raises UserError if the Hub has no such model, or is out of reach and there is no copy.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    repo, _, revision = name.removeprefix(PREFIX).partition("@")
    try:
        hub_info(repo, revision or None)
        if not sys.stderr.isatty():
            disable_progress_bars()
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(FILES)))
    except NotOnHubError:
        raise
    except UserError as unreachable:
        try:
            found = snapshot_download(
                repo, revision=revision or None, allow_patterns=list(FILES), local_files_only=True
            )
        except Exception:
            raise unreachable from None
        return Path(found)
    except Exception as error:  # the client's own are many
        raise UserError(f"cannot download {name}: {first_line(error)}") from error


def hub_info(repo: str, revision: str | None = None) -> Any:
    """What the Hub says of a model (`huggingface_hub.ModelInfo`).

    Raises UserError if there is no answer in a few seconds, and a `NotOnHubError` where the Hub knows none.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return HfApi().repo_info(repo, revision=revision, timeout=PATIENCE)
    except HFValidationError as error:
        raise UserError(f"a model on the Hub is named user/name, got {repo!r}") from error
    except RevisionNotFoundError as error:
        raise NotOnHubError(f"{repo} on the Hub has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise NotOnHubError(f"the Hub has no model {repo!r}, or it is private and needs `hf auth login`") from error
    except Exception as error:  # the client's own are many
        raise UserError(f"cannot reach the Hugging Face Hub for {repo}: {first_line(error)}") from error


class NotOnHubError(UserError):
    """The Hub is there, and the model is not."""
