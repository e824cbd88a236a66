"""A GGUF file here and in llama.cpp, and both against float64: how alike are the vectors?

    python tools/compare_gguf.py CHECKPOINT FILE.gguf [FILE.gguf ...] [--no-dense] [--no-float64]

    FILE.gguf: 19 texts of 7 to 730 tokens, avx512vnni, float32
      here and llama.cpp                cosine 0.9999978 on average, 0.9999822 at least

The checkpoint is the one that the file was made from: its tokenizer gives the ids for both, and the float64 reference
computes with the file's values under its settings. "here, exact" are the same weights without rounded activations.
Needs the extra `peers` (llama-cpp-python). With several files llama.cpp's vectors for the first are compared with those
for the others, too.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from peers import LlamaCpp
from reference_float64 import Reference
from sentences import PARAGRAPH, sentences

from gemma_np.config import read_config
from gemma_np.pipeline import Pipeline
from gemma_np.tokens.tokenizer import Tokenizer

TEXTS = [*sentences()[::3], 3 * PARAGRAPH, 7 * PARAGRAPH]  # the last ones are longer than the window
Array = np.ndarray[Any, Any]


class OneFile(LlamaCpp):
    """llama.cpp with a file as it is, and each text alone."""

    maker = None
    packed = 1


class Table:
    """The embedding table for the float64 reference, read by rows."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        return int(self.tensor.shape[0])

    def __getitem__(self, ids: list[int]) -> Array:
        rows: Array = self.tensor.rows(np.array(ids))
        return rows


def here(file: Path, ids: list[Array], dense: Any, kernels: str | None) -> tuple[Pipeline, Array]:
    if kernels:
        os.environ["GEMMA_NP_KERNELS"] = kernels
    model = Pipeline(file, dense=dense)
    os.environ.pop("GEMMA_NP_KERNELS", None)
    return model, model.embed_ids(ids)


def float64(checkpoint: Path, model: Pipeline, ids: list[Array]) -> Array:
    tensors = model.source.tensors
    weights = {name: Table(t) if name == "embed_tokens.weight" else t.float32() for name, t in tensors.items()}
    reference = Reference(checkpoint, weights)
    if len(model.modules.heads) == 1:
        reference.modules = [module for module in reference.modules if module[0] != "Dense"]
    return np.stack([reference.embed(tokens.tolist()) for tokens in ids])


def report(what: str, a: Array, b: Array) -> None:
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    print(f"  {what:<32}  cosine {cosines.mean():.7f} on average, {cosines.min():.7f} at least", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--no-dense", dest="dense", action="store_false", default=None)
    parser.add_argument("--no-float64", dest="float64", action="store_false")
    arguments = parser.parse_args()
    config = read_config(arguments.checkpoint)
    ids, _ = Tokenizer(arguments.checkpoint, config).encode(TEXTS, config.max_positions)
    lengths = [len(tokens) for tokens in ids]
    first: Array | None = None
    for file in arguments.files:
        model, ours = here(file, ids, arguments.dense, None)
        _, exact = here(file, ids, arguments.dense, "numpy")
        theirs = OneFile(file, file.parent, 2).embed(ids)
        column = model.kernels.name if model.kernels else "numpy"
        texts = f"{len(ids)} texts of {min(lengths)} to {max(lengths)} tokens"
        print(f"{file.name}: {texts}, {column}, {model.quantization or 'float32'}")
        report("here and llama.cpp", ours, theirs)
        report("here, exact, and llama.cpp", exact, theirs)
        if arguments.float64:
            truth = float64(arguments.checkpoint, model, ids)
            report("here and float64", ours, truth)
            report("here, exact, and float64", exact, truth)
            report("llama.cpp and float64", theirs, truth)
        if first is not None:
            same = "the same bits" if np.array_equal(first, theirs) else "other bits"
            report(f"llama.cpp, first file ({same})", first, theirs)
        first = theirs if first is None else first
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
