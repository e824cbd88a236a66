"""A path -> a Source: a checkpoint's folder, a quantised folder, or a GGUF file."""

import os
from pathlib import Path
from typing import Literal

from gemma_np.checkpoint.folder import open_folder
from gemma_np.checkpoint.source import Source, Watch, unwatched
from gemma_np.errors import InputError


def open_source(path: Path, dense: Path | Literal[False] | None = None, watch: Watch = unwatched) -> Source:
    """Open a model. Raises CheckpointError, ConfigError and WeightsError.

    dense   for GGUF files, see gguf.source.open_gguf_source
    watch   see checkpoint.source.Watch
    """
    if os.path.isfile(path):
        from gemma_np.gguf.source import open_gguf_source

        return open_gguf_source(path, dense, watch)
    if dense is not None:
        raise InputError(f"dense is for GGUF files; {path} is a folder, whose modules.json says what its heads are")
    return open_folder(path, watch)
