"""A model on disk, opened: its settings are read, its tensors mapped and checked, and nothing is loaded yet."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from gemma_np.checkpoint.bundle import bundle_tensors, is_bundle, read_manifest
from gemma_np.checkpoint.defaults import Defaults, read_defaults, read_max_seq_length
from gemma_np.checkpoint.folder import checkpoint_tensors
from gemma_np.config import Config, read_config
from gemma_np.errors import CheckpointError, InputError
from gemma_np.modules import Modules, check_widths, resolve_modules
from gemma_np.tokens.tokenizer import Tokenizer
from gemma_np.weights.loading import Stored


@dataclass(frozen=True)
class Source:
    """What a model is loaded from.

    path            the folder or file
    full_dim        the size of its vectors
    defaults        prompts and the like
    max_seq_length  the longest text in tokens, BOS and EOS included
    tensors         see weights.load_weights
    quantization    what its matrices are rounded to already, one of quantize.QUANTIZATIONS; None: they are not
    open_tokenizer  reads the tokenizer; `run` is its compiled kernel, see tokenizer.Tokenizer
    """

    path: Path
    config: Config
    modules: Modules
    full_dim: int
    defaults: Defaults
    max_seq_length: int
    tensors: Mapping[str, Stored]
    quantization: str | None
    open_tokenizer: Callable[..., Tokenizer]


def open_source(path: Path, dense: Path | Literal[False] | None = None) -> Source:
    """Open a checkpoint's folder, a bundle or a GGUF file. Raises CheckpointError, ConfigError and WeightsError.

    dense   for GGUF files, see gguf_source.open_gguf_source
    """
    if os.path.isfile(path):
        from gemma_np.gguf.source import open_gguf_source

        return open_gguf_source(path, dense)
    if dense is not None:
        raise InputError(f"dense is for GGUF files; {path} is a folder, whose modules.json says what its heads are")
    if not os.path.isfile(path / "config.json") and not os.path.isfile(path / "modules.json"):
        raise CheckpointError(f"{path} has no config.json; expected the folder of a checkpoint")
    root = read_config(path) if os.path.isfile(path / "config.json") else None  # first: it says what model this is
    modules = resolve_modules(path)
    trunk = path / modules.trunk
    config = root if root and trunk == path else read_config(trunk)
    bundled = is_bundle(path)
    return Source(
        path.absolute(),
        config,
        modules,
        check_widths(config, modules, path),
        read_defaults(path),
        read_max_seq_length(trunk, config),
        bundle_tensors(path, config, modules) if bundled else checkpoint_tensors(path, config, modules),
        read_manifest(path)[0] if bundled else None,
        partial(Tokenizer, trunk, config),
    )
