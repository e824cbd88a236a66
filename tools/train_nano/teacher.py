"""The teacher's vectors: all-MiniLM-L6-v2 reads each English text that training asks for once, in bfloat16."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import AutoModel

MAX_TOKENS = 256  # as in the teacher's sentence_bert_config.json
TOKENS_PER_BATCH = 3072  # more leave the caches: on 2 cores 16,384 are half as fast


def teach(
    texts: Sequence[str], wanted: NDArray[np.int64], teacher: Path, out: Path, device: str
) -> NDArray[np.float16]:
    """float16 [texts, 384], kept in the file `out`; begun again, it goes on where it was stopped.

    The rows `wanted` are of length 1, the others 0 (the file system does not even store them). Texts go in order of
    their length, so that each batch has one length: no padding and no mask.
    """
    dimensions = json.loads((teacher / "config.json").read_text())["hidden_size"]
    vectors = np.lib.format.open_memmap(
        out,
        "r+" if out.exists() else "w+",
        dtype=np.float16,
        shape=None if out.exists() else (len(texts), dimensions),
    )
    if len(vectors) != len(texts):
        raise SystemExit(f"{out} has {len(vectors)} rows for {len(texts)} texts: made from other data; remove it")
    left = wanted[~vectors[wanted].any(1)]
    if not len(left):
        return vectors

    tokenizer = Tokenizer.from_file(str(teacher / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    ids = [np.array(encoding.ids, np.int32) for encoding in tokenizer.encode_batch_fast([texts[row] for row in left])]
    order = np.argsort([len(row) for row in ids], kind="stable")
    model = AutoModel.from_pretrained(teacher, dtype=torch.bfloat16).eval().to(device)
    done = 0
    with torch.inference_mode(), tqdm(total=len(left), desc="Teacher", unit="text") as bar:
        while done < len(left):
            length = len(ids[order[done]])
            rows = order[done : done + max(1, TOKENS_PER_BATCH // length)]
            rows = rows[[len(ids[row]) == length for row in rows]]
            states = model(input_ids=torch.from_numpy(np.stack([ids[row] for row in rows])).to(device))
            pooled = states.last_hidden_state.float().mean(1)
            vectors[left[rows]] = torch.nn.functional.normalize(pooled).half().cpu().numpy()
            done += len(rows)
            bar.update(len(rows))
    vectors.flush()
    return vectors
