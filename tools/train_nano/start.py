"""The static start: each piece begins with the teacher's vector of it, weighted by rarity."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_tokenizer import OWN, SPACE
from teacher import teach
from tokenizers import Tokenizer
from torch import Tensor

RARE = 1e-3  # pieces of this frequency weigh half (smooth inverse frequency, Arora et al. 2017)


def piece_vectors(tokenizer: Tokenizer, teacher: Path, out: Path, device: str) -> np.ndarray[Any, Any]:
    """The teacher's vectors [V, 384] of the pieces, each read as one text."""
    pieces = [tokenizer.id_to_token(id).replace(SPACE, " ").strip() for id in range(tokenizer.get_vocab_size())]
    return teach(pieces, np.arange(len(pieces)), teacher, out, device)


def start_embeddings(
    tokenizer: Tokenizer, texts: Sequence[str], vectors: np.ndarray[Any, Any], axes: Tensor, width: int
) -> Tensor:
    """[V, width]: width - 1 principal coordinates, shorter for frequent pieces, and one that makes each row's length 1.

    The last norm gives every token the same length; the extra coordinate takes what a frequent piece lacks, so that
    it weighs less in the mean. Special pieces and bytes begin with nothing else.
    """
    ids = np.concatenate([encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))])
    frequency = np.bincount(ids, minlength=len(vectors)) / len(ids)
    weight = torch.from_numpy(RARE / (RARE + frequency)).float()
    weight[:OWN] = 0
    rows = torch.from_numpy(vectors.astype(np.float32)) @ axes.cpu()
    rows = rows[:, : width - 1] * weight[:, None]
    rest = (1 - rows.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
    return torch.cat([rows, rest], 1)
