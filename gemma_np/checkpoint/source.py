"""A model on disk, opened: its settings are read, its tensors mapped and checked, and nothing is loaded yet."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.arrays import Float32
from gemma_np.checkpoint.defaults import Defaults
from gemma_np.config import Config
from gemma_np.files.safetensors import Tensor
from gemma_np.modules import Modules
from gemma_np.tokens.pieces import Pieces
from gemma_np.tokens.tokenizer import Tokenizer
from gemma_np.weights.blocks import BlockTensor
from gemma_np.weights.loading import Stored, table_of

TABLE_ROWS = 4096  # of the embedding table, at a time


@dataclass(frozen=True)
class Settings:
    """What a model's files say of it.

    path            the folder or file
    full_dim        the size of its vectors
    defaults        prompts and the like
    max_seq_length  the longest text in tokens, BOS and EOS included
    base            of an adapter: the folder of the model that it changes
    """

    path: Path
    config: Config
    modules: Modules
    full_dim: int
    defaults: Defaults
    max_seq_length: int
    base: Path | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Source(Settings):
    """What a model is loaded from.

    tensors         by the checkpoint's names, see weights.loading.load_weights
    quantization    what its matrices are rounded to already, one of quantize.QUANTIZATIONS; None: they are not
    files           the JSON files that say how it is used, by their names in a folder; none where it is one file
    tokenizer       the folder with the tokenizer's files; None where it is in the model's one file
    pieces          reads the tokenizer as arrays. Raises json_file.Inexpressible where these cannot say what it does
    open_tokenizer  reads the tokenizer; `run` is its compiled kernel, see tokenizer.Tokenizer
    """

    tensors: Mapping[str, Stored]
    quantization: str | None
    files: Mapping[str, Path]
    tokenizer: Path | None
    pieces: Callable[[], Pieces]
    open_tokenizer: Callable[..., Tokenizer]

    @property
    def table(self) -> Tensor | BlockTensor:
        """The embedding table, [V, D]."""
        return table_of(self.tensors)

    def table_parts(self) -> Iterator[range]:
        """The numbers of the embedding table's rows, TABLE_ROWS at a time: as a whole it may have gigabytes."""
        for start in range(0, self.config.V, TABLE_ROWS):
            yield range(start, min(start + TABLE_ROWS, self.config.V))

    def table_rows(self) -> Iterator[Float32]:
        """The embedding table as float32 [rows, D], TABLE_ROWS at a time."""
        for rows in self.table_parts():
            yield self.table.rows(np.arange(rows.start, rows.stop))


Watch = Callable[[Settings | Mapping[str, Any]], None]
"""Shown what becomes known of a model while it is opened: its settings; its tensors as they are found, by their names
in the file; and the checked ones, by the checkpoint's names. A model that cannot be opened has shown all up to its
fault."""


def unwatched(_: Settings | Mapping[str, Any]) -> None:
    """Nobody watches."""
