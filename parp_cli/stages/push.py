"""Upload an exported folder to a model hub."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from parp_cli.errors import ResourceError, UsageError
from parp_cli.exporters.card import CARD
from parp_cli.models.sources import huggingface

_FILES = ("*.json", "*.safetensors", "*.txt", CARD)
_NEEDED = (huggingface.CONFIG, huggingface.WEIGHTS, CARD)


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """Where a folder was uploaded to: its repository's page, and the commit."""

    url: str
    commit: str
    files: tuple[str, ...]


def push(
    folder: Path, repository: str, *, private: bool = True, message: str | None = None, endpoint: str | None = None
) -> Pushed:
    """Upload what `parp export --to hf` wrote, and no other files there; a repository that does not exist is created.

    Args:
        repository: OWNER/NAME.
        private: whether a new repository is; one that exists stays as it is.
        message: of the commit.
        endpoint: the hub's address, by default what huggingface_hub is set to.

    Raises:
        UsageError: huggingface_hub is not installed, the folder is no export, or the hub refuses the name or the token.
        ResourceError: the hub cannot be reached, or fails.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UsageError("parp push needs the package huggingface_hub", hint="pip install 'parp-cli[hub]'")
    if not huggingface.HUB_NAME.fullmatch(repository):
        raise UsageError(f"{repository} names no repository", hint="give OWNER/NAME")
    if missing := [name for name in _NEEDED if not (folder / name).is_file()]:
        raise UsageError(
            f"{folder} is no exported folder: it has no {missing[0]}", hint="make one with `parp export --to hf`"
        )
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = huggingface_hub.HfApi(endpoint=endpoint)
    try:
        page = api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(_FILES),
            commit_message=message or "Upload a model exported by parp",
        )
    except (HFValidationError, LocalTokenNotFoundError) as error:
        raise UsageError(f"{repository} cannot be uploaded to", details=str(error).splitlines()[:3]) from error
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise UsageError(
                f"the hub does not let you write to {repository}",
                hint="log in with `hf auth login`, or set HF_TOKEN to a token that may write",
            ) from error
        raise ResourceError(f"the hub failed on {repository}", details=str(error).splitlines()[:3]) from error
    except Exception as error:  # of its HTTP library, whichever that is
        if isinstance(error, OSError) or "http" in type(error).__module__:
            raise ResourceError(
                "the hub cannot be reached", details=str(error).splitlines()[:1], hint="check the network"
            ) from error
        raise
    files = sorted({path.name for pattern in _FILES for path in folder.glob(pattern)})
    return Pushed(url=str(page), commit=str(done.oid), files=tuple(files))
