"""Where models come from: the package itself, a folder, or the Hugging Face hub through `huggingface_hub`."""

import functools
import os
import re
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gemma_np.checkpoint.folder import SETTINGS_FILES
from gemma_np.errors import FULL_MODEL, CheckpointError, HubError, InputError

NANO = "nano"  # the name of the small model inside the package
NANO_FOLDER = Path(__file__).with_name("nano")

# Nothing else is downloaded. Modules live in folders such as 2_Dense.
FILES = [
    *SETTINGS_FILES,
    "bundle.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer.safetensors",
    "tokenizer.json",
    "[0-9]*_*/*.json",
    "[0-9]*_*/model*.safetensors",
]

# What a GGUF file without Dense heads takes from a checkpoint: a part of FILES.
HEADS = [
    "modules.json",
    "config_sentence_transformers.json",
    "[0-9]*_*/*.json",
    "[0-9]*_*/model*.safetensors",
]


NETWORK = (ConnectionError, TimeoutError, socket.gaierror)  # of the system's errors; the others are about files


def _print(line: str) -> None:
    """To stderr, if it can be: a full or closed one ends no program."""
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr)


def default_model() -> str:
    """The model that runs when none is named: $GEMMA_NP_MODEL, or nano. For nano, stderr says once that it is not the
    full model."""
    chosen = os.environ.get("GEMMA_NP_MODEL")
    if chosen:
        return chosen
    _say_once()
    return NANO


@functools.cache
def _say_once() -> None:
    _print(
        "gemma-np: using nano, the small model that comes with the package; for the full one: "
        f"export GEMMA_NP_MODEL={FULL_MODEL} (GEMMA_NP_MODEL={NANO} silences this line)",
    )


@functools.cache
def _say_which_nano() -> None:
    _print(
        f"gemma-np: {NANO} is the small model that comes with the package; for what has this name in the working "
        f"directory say {os.path.join('.', NANO)}",
    )


def locate(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    files: Sequence[str] = FILES,
) -> Path:
    """The folder of a model, or its GGUF file.

    model    "nano" is the model inside the package, also where the working directory has something of that name, which
             is "./nano" or Path("nano"). Anything else is a path if that exists, else a hub id such as
             "google/embeddinggemma-300m", which is downloaded unless it is in the cache
    files    which files of the hub's folder
    raises   CheckpointError for a path that is no model, HubError when nothing can be downloaded

    With local_files_only, or HF_HUB_OFFLINE=1 in the environment, the network is never used.
    """
    if model == NANO:  # no Path equals it
        if os.path.exists(NANO):
            _say_which_nano()
        return NANO_FOLDER
    path = Path(os.path.expanduser(model))
    if os.path.isdir(path):  # os.path: no errors for paths that cannot be
        return path
    if os.path.isfile(path) and is_gguf(path):
        return path
    if os.path.exists(path):
        raise CheckpointError(
            f"{path} is a file, expected the folder of a checkpoint (with config.json in it), a GGUF file or a hub id"
        )
    name = os.fspath(model)
    if not _is_hub_id(name):
        raise CheckpointError(
            f"{name!r} is neither a folder nor a hub id; expected a path that exists, {NANO}, or a name such as "
            f"{FULL_MODEL}"
        )
    return _snapshot(name, revision, token, cache_folder, local_files_only, files)


def is_gguf(path: Path) -> bool:
    """Whether a file is in llama.cpp's format, by its name or its first bytes."""
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def _is_hub_id(name: str) -> bool:
    """ "owner/name", and nothing that looks like a path."""
    return name.count("/") == 1 and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name, re.ASCII) is not None


def _snapshot(
    name: str,
    revision: str | None,
    token: str | bool | None,
    cache_folder: str | os.PathLike[str] | None,
    local_files_only: bool,
    files: Sequence[str],
) -> Path:
    from huggingface_hub import snapshot_download

    if isinstance(token, str):
        token = token.strip()  # a token that was read from a file ends with a newline
        if re.fullmatch(r"[!-~]+", token) is None:  # the client would log a header that cannot be sent
            raise InputError("token holds characters that no token has (or none at all); copy it again")
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            token=token,
            cache_dir=None if cache_folder is None else Path(cache_folder),
            local_files_only=local_files_only,
            allow_patterns=list(files),
        )
    except Exception as error:  # the client's errors, its HTTP library's and the system's have no other base in common
        raise HubError(f"{name}: {_unkept(cache_folder, error) or _why(name, revision, error)}") from None
    return Path(folder)


def _unkept(cache_folder: str | os.PathLike[str] | None, error: BaseException) -> str | None:
    """What to do when a file cannot be written; None if that is not the error."""
    from huggingface_hub import constants

    if not isinstance(error, OSError) or error.errno is None or isinstance(error, NETWORK):
        return None
    where = error.filename2 or error.filename or f"the cache ({cache_folder or constants.HF_HUB_CACHE})"
    return (
        f"there is no such folder here, and its download cannot be kept: {where}: {error.strerror}; mend this, or "
        "name another place with cache_folder=, or with HF_HOME in the environment"
    )


def _why(name: str, revision: str | None, error: BaseException) -> str:
    """What went wrong and what to do, in our words: an error's own text may hold a token or a page of HTML."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # the hub failed first, then the cache was tried
    login = "log in with `hf auth login` (or set HF_TOKEN) and try again"
    page = f"https://huggingface.co/{name}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError):
        return f"it is gated; accept its licence at {page} with your account, then {login}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"there is no revision {revision!r}; see {page}/commits"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "there is no such folder here, and no such model on the hub that you may see; check the name, and for a "
            f"private or gated model {login}"
        )
    if status in (401, 403):
        return f"the hub refuses access ({status}); accept the licence at {page} with your account, then {login}"
    if status is not None:
        return f"the hub answers with status {status}; try again later"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return (
            "there is no such folder here, it is not (or not completely) in the cache, and the network may not be used "
            "(local_files_only, HF_HUB_OFFLINE); download it once with the network, or pass the path of a folder"
        )
    if isinstance(error, errors.HFValidationError):
        return "there is no such folder here, and no model on the hub can have this name"
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"token=True asks for a stored token, but there is none; {login}"
    system = error.strerror if isinstance(error, OSError) else None
    return (
        f"there is no such folder here, and it cannot be downloaded: {system or type(error).__name__}; check the "
        "connection, and try again"
    )
