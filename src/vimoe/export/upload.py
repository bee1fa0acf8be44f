"""A model folder as a repository on the Hugging Face Hub, in one commit."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from vimoe.errors import UserError, first_line
from vimoe.tasks.model import load_model
from vimoe.vit.hub_folder import ANYWHERE, FILES, PREFIX, NotOnHubError, hub_info

CARD = "README.md"


def push(
    folder: Path, name: str, card: str, images: Mapping[str, bytes] | None = None, *, private: bool = False
) -> str:
    """Upload weights, `config.json`, the text of the card and the images that it shows; gives back the address.

    Other files of the folder stay where they are. A repository that is new is made, `private` if so asked; in one that
    exists files of the same names are replaced.

    Raises UserError if the folder holds no model that can be loaded, or the Hub is out of reach or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    load_model(folder)
    with suppress(NotOnHubError):
        hub_info(name)  # answers, or fails, in a few seconds
    text = card.replace(ANYWHERE, f"{PREFIX}{name}").encode()
    files: dict[str, Path | bytes] = {file.name: file for pattern in FILES for file in sorted(folder.glob(pattern))}
    files |= {CARD: text, **(images or {})}
    try:
        api = HfApi()
        address = api.create_repo(name, private=private, exist_ok=True)
        api.create_commit(
            name,
            [CommitOperationAdd(path_in_repo=path, path_or_fileobj=file) for path, file in files.items()],
            commit_message="Upload a model with vimoe",
        )
    except Exception as error:  # the client's own are many
        why = first_line(error)
        raise UserError(f"cannot push to {name}: {why}; `hf auth login` with a token that may write") from error
    return str(address)
