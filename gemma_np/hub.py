"""Where models come from: a folder, or the Hugging Face hub through `huggingface_hub`."""

import os
import re
from pathlib import Path

from gemma_np.errors import CheckpointError, HubError

FULL_MODEL = "google/embeddinggemma-300m"

# All that the engine reads, so that nothing else is downloaded. Modules live in folders such as 2_Dense.
FILES = [
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "[0-9]_*/*.json",
    "[0-9]_*/model.safetensors",
]


def locate(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of a model: `model` itself if it is one, else the hub's, downloaded where it is not in the cache.

    A hub id looks like "google/embeddinggemma-300m". With local_files_only, or HF_HUB_OFFLINE=1 in the environment,
    the network is never used.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(
            f"{path} is a file, expected the folder of a checkpoint (with config.json in it) or a hub id"
        )
    name = os.fspath(model)
    if not _is_hub_id(name):
        raise CheckpointError(
            f"{name!r} is neither a folder nor a hub id; expected a path that exists, or a name such as {FULL_MODEL}"
        )
    return _snapshot(name, revision, token, cache_folder, local_files_only)


def _is_hub_id(name: str) -> bool:
    """ "owner/name", and nothing that looks like a path."""
    return name.count("/") == 1 and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name, re.ASCII) is not None


def _snapshot(
    name: str,
    revision: str | None,
    token: str | bool | None,
    cache_folder: str | os.PathLike[str] | None,
    local_files_only: bool,
) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        folder = snapshot_download(
            name,
            revision=revision,
            token=token,
            cache_dir=None if cache_folder is None else Path(cache_folder),
            local_files_only=local_files_only,
            allow_patterns=FILES,
        )
    except errors.GatedRepoError:
        raise HubError(
            f"{name} is gated: accept its licence at https://huggingface.co/{name} with your account, then log in with "
            "`hf auth login` (or set HF_TOKEN) and try again"
        ) from None
    except errors.RevisionNotFoundError:
        raise HubError(f"{name} has no revision {revision!r}; see https://huggingface.co/{name}/commits") from None
    except errors.RepositoryNotFoundError:
        raise HubError(
            f"{name}: there is no such folder here, and no such model on the hub that you may see; check the name, and "
            "for a private or gated model log in with `hf auth login` (or set HF_TOKEN)"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise HubError(
            f"{name}: there is no such folder here, it is not in the cache, and the hub cannot be asked (offline); "
            "connect once to download it, or pass the path of a folder"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        if status in (401, 403):
            raise HubError(
                f"{name}: the hub refuses access ({status}). Accept the licence at https://huggingface.co/{name}, then "
                "log in with `hf auth login` (or set HF_TOKEN) and try again"
            ) from None
        raise HubError(f"{name}: the hub answers with status {status}; try again later") from None
    except OSError as error:
        raise HubError(f"{name} cannot be downloaded: {error.strerror or type(error).__name__}; try again") from None
    return Path(folder)
