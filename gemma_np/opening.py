"""A path -> a Source: a checkpoint's folder, a quantised folder, a LoRA adapter's folder, or a GGUF file."""

import os
from pathlib import Path
from typing import Literal

from gemma_np.checkpoint.folder import is_adapter, open_folder
from gemma_np.checkpoint.source import Source, Watch, unwatched
from gemma_np.errors import CheckpointError, InputError


def open_source(
    path: Path, dense: Path | Literal[False] | None = None, base: Path | None = None, watch: Watch = unwatched
) -> Source:
    """Open a model. Raises CheckpointError, ConfigError and WeightsError; InputError for what is of another kind.

    dense   for GGUF files, see gguf.source.open_gguf_source
    base    for an adapter's folder: where the model is that it changes, see hub.base_of
    watch   see checkpoint.source.Watch
    """
    if base is not None and not is_adapter(path):
        raise InputError(f"base is for LoRA adapters; {path} has no adapter_config.json")
    if os.path.isfile(path):
        from gemma_np.gguf.source import open_gguf_source

        return open_gguf_source(path, dense, watch)
    if dense is not None:
        raise InputError(f"dense is for GGUF files; {path} is a folder, whose modules.json says what its heads are")
    if not is_adapter(path):
        return open_folder(path, watch)
    from gemma_np.checkpoint.adapter import open_adapter

    if base is None:
        raise CheckpointError(f"{path} holds an adapter, which changes another model; its base must be named")
    return open_adapter(path, base, watch)
