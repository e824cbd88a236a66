"""Where models come from: the package itself, a folder, or the Hugging Face hub through `huggingface_hub`."""

import functools
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from gemma_np.checkpoint.folder import ADAPTER_CONFIG, SETTINGS_FILES, is_adapter
from gemma_np.errors import FULL_MODEL, CheckpointError, ConfigError, HubError, InputError

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
    ADAPTER_CONFIG,
    "adapter_model.safetensors",
]

# What a GGUF file without Dense heads takes from a checkpoint: a part of FILES.
HEADS = [
    "modules.json",
    "config_sentence_transformers.json",
    "[0-9]*_*/*.json",
    "[0-9]*_*/model*.safetensors",
]

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "adapter_model.bin")
# "owner/name", and behind it, of several GGUF files, a type or a file, and a revision. Nothing that looks like a path.
HUB_ID = re.compile(
    r"([\w-][\w.-]*/[\w-][\w.-]*?)(?::([\w.-]+)|/((?:[\w-][\w.-]*/)*[\w-][\w.-]*\.gguf))?(?:@([\w./-]+))?",
    re.ASCII | re.IGNORECASE,
)


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


def _say_which(where: str, name: str, names: Sequence[str], how: str) -> None:
    """Of several GGUF files: which is taken, and how another is named."""
    from gemma_np.gguf import choosing

    if len(names) > 1:
        kinds = sorted({choosing.type_of(other) or other for other in names if other != name})
        _say_file(f"gemma-np: {where}: {name} is taken; there are also {', '.join(kinds)} ({how})")


@functools.cache
def _say_file(line: str) -> None:
    _print(line)


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
             "google/embeddinggemma-300m", which is downloaded unless it is in the cache. Of a folder or a hub's
             repository that holds GGUF files and no other weights, it is one of these: gguf.choosing says which, and
             stderr, where there are several. "owner/name:Q4_0" and "owner/name/FILE.gguf" name another. A hub id may
             end with its revision: "owner/name@REVISION"
    files    which files of the hub's folder
    raises   CheckpointError for a path that is no model, HubError when nothing can be downloaded

    With local_files_only, or HF_HUB_OFFLINE=1 in the environment, the network is never used.
    """
    if model == NANO:  # no Path equals it
        if os.path.exists(NANO):
            _say_which_nano()
        return NANO_FOLDER
    path = Path(os.path.expanduser(model))
    if os.path.exists(path):  # os.path: no errors for paths that cannot be
        return _here(path, files)
    return _in_hub(os.fspath(model), files, revision, token, cache_folder, local_files_only)


def _here(path: Path, files: Sequence[str]) -> Path:
    """A folder, its GGUF file where that is all it holds, or a file."""
    if os.path.isdir(path):
        return path if files is not FILES else _gguf_in(path) or path
    if os.path.isfile(path) and is_gguf(path):
        return path
    raise CheckpointError(
        f"{path} is a file, expected the folder of a checkpoint (with config.json in it), a GGUF file or a hub id"
    )


def _in_hub(name: str, files: Sequence[str], revision: str | None, *reached: Any) -> Path:
    """A repository's folder with some files, or one of its GGUF files: where one is named, or all weights are such."""
    from gemma_np.repository import Repository

    match = HUB_ID.fullmatch(name)
    if match is None:
        raise CheckpointError(
            f"{name!r} is neither a folder nor a hub id; expected a path that exists, {NANO}, or a name such as "
            f"{FULL_MODEL}"
        )
    if match[4] and revision:
        raise InputError(f"{name!r} and revision = {revision!r}: the revision is given twice")
    repository, wanted = Repository(match[1], match[4] or revision, *reached), match[2] or match[3]
    folder = None if wanted else repository.snapshot(files)
    if folder and (files is not FILES or _has_weights(folder)):
        return folder
    names = repository.gguf_files()
    if folder and not names:
        return folder
    file = repository.chosen(names, wanted)
    if not wanted:
        _say_which(repository.name, file, names, f"{repository.name}:TYPE or {repository.name}/FILE.gguf")
    return repository.file(file)


def base_of(path: Path, base: str | os.PathLike[str] | None = None, **in_hub: Any) -> Path | None:
    """Where the model is that a LoRA adapter changes. None for a path that is no adapter's folder.

    base     its path or hub id; None: as adapter_config.json says
    in_hub   as in `locate`; the revision is the one in adapter_config.json
    raises   as `locate`, ConfigError where no base is named, InputError where `path` has no base
    """
    if not is_adapter(path):
        if base is not None:
            raise InputError(f"base is for LoRA adapters; {path} has no adapter_config.json")
        return None
    from gemma_np.checkpoint.lora import read_lora

    lora = read_lora(path)
    name = lora.base if base is None else base
    if name is None:
        raise ConfigError(f"{lora.path} does not name the base; name it: --base MODEL, in Python base=")
    try:
        return locate(name, **{**in_hub, "revision": lora.revision if base is None else None})
    except (CheckpointError, HubError) as error:
        if base is not None:
            raise
        raise type(error)(
            f"{lora.path}: the base: {error}. Another may be named: --base MODEL, in Python base="
        ) from None


def found_again(name: str | os.PathLike[str] | None, path: Path) -> str:
    """What a copy elsewhere must be told to find the same model: "nano", "owner/name@commit" (of a GGUF file
    "owner/name/FILE.gguf@commit"), else its whole path.

    name   with which it was found at `path`; None: it was named elsewhere
    """
    if path == NANO_FOLDER:
        return NANO
    if name is None or not os.path.exists(os.path.expanduser(name)):
        for place in (path, *path.parents):
            if place.parent.name == "snapshots":  # the hub's cache: models--owner--name/snapshots/commit
                repository = place.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
                return f"{(PurePosixPath(repository) / path.relative_to(place)).as_posix()}@{place.name}"
    return str(path.absolute())


def _has_weights(folder: Path) -> bool:
    """Whether a folder holds weights in other files than GGUF's, an adapter's too."""
    places = (folder, *folder.glob("0_*"))  # a trunk may lie in a folder of its own
    return any(any(place.glob(pattern)) for place in places for pattern in WEIGHTS)


def _gguf_in(folder: Path) -> Path | None:
    """The GGUF file of a folder without other weights; None if there is none."""
    names = [path.name for path in folder.glob("*.gguf") if path.is_file()]
    if not names or _has_weights(folder):
        return None
    from gemma_np.gguf import choosing

    try:
        name = choosing.chosen(names)
    except LookupError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    _say_which(str(folder), name, names, "say its path")
    return folder / name


def is_gguf(path: Path) -> bool:
    """Whether a file is in llama.cpp's format, by its name or its first bytes."""
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False
