"""What quantised weights cost: cosines of our formats, and llama.cpp's.

    python bench/formats.py CHECKPOINT ...             ours, to our float32, on 20 texts
    python bench/formats.py CHECKPOINT --peers DIR     ours and llama.cpp's, to a float64 pass over the same values

The first is all that a format costs. The second leaves out what the weights themselves lost: each engine is judged by a
float64 pass (tests/reference_float64.py) over the values that its own matrices have, on token ids of 16, 64 and 256
tokens; what remains is the rounding of activations, and the arithmetic. It needs the extra `peers`, and DIR, where
bench_peers.py keeps converted models, or where they will be made.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import Result, Run, bench_parser, log
from safetensors.numpy import load_file
from tables import show

from gemma_np import EmbeddingGemma
from gemma_np.config import Config, read_config
from gemma_np.weights.names import layer_tensors
from gemma_np.weights.quantize import QUANTIZATIONS, format_of, quantized_rows

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference_float64 import Reference
from sentences import sentences

Array = NDArray[Any]
LENGTHS = (16, 64, 256)
PAIRS = {"gemma_np q8_0": "llama.cpp Q8_0", "gemma_np q4_0": "llama.cpp Q4_0"}


class Rows:
    """A table whose rows get their values as they are read: rows(ids) -> [n, D]."""

    def __init__(self, size: int, rows: Callable[[list[int]], Array]) -> None:
        self.size, self.rows = size, rows

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, ids: list[int]) -> Array:
        return self.rows(ids)


def our_values(checkpoint: Path, quantization: str) -> dict[str, Any]:
    """All matrices by the names that Reference has, with the values of a format."""
    reference = Reference(checkpoint)
    heads = {f"{path.name}/linear.weight": path for kind, path in reference.modules if kind == "Dense"}
    stored = {name: load_file(path / "model.safetensors")["linear.weight"] for name, path in heads.items()}
    values: dict[str, Any] = {}
    for name, tensor in {**reference.tensors, **stored}.items():
        if tensor.ndim == 1:
            continue
        format = format_of(quantization, name)

        def rows(ids: list[int], tensor: Array = tensor, format: str = format) -> Array:
            return quantized_rows(tensor[ids], format)

        lazy = name == "embed_tokens.weight"
        values[name] = Rows(len(tensor), rows) if lazy else quantized_rows(np.array(tensor), format)
    return values


def their_values(file: Path, config: Config, heads: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The same of a GGUF file, norms included, and the type of each tensor."""
    from gguf import GGUFReader, dequantize

    from gemma_np.gguf.names import FIELDS

    names = {"token_embd": "embed_tokens.weight", "output_norm": "norm.weight"}
    names |= {f"dense_{head.split('_')[0]}": f"{head}/linear.weight" for head in heads}
    for i in range(len(config.layers)):
        for field, (name, _) in layer_tensors(config, i).items():
            names[f"blk.{i}.{FIELDS[field]}"] = name
    values: dict[str, Any] = {}
    types: dict[str, str] = {}
    for tensor in GGUFReader(file).tensors:
        name = names[tensor.name.removesuffix(".weight")]
        types[name] = tensor.tensor_type.name
        if name == "embed_tokens.weight":

            def rows(ids: list[int], tensor: Any = tensor) -> Array:
                return np.asarray(dequantize(tensor.data[ids], tensor.tensor_type))

            values[name] = Rows(len(tensor.data), rows)
        else:
            exact = dequantize(tensor.data, tensor.tensor_type)
            values[name] = exact.astype(np.float64) - 1 if exact.ndim == 1 else exact  # GGUF stores norms as 1 + w
    return values, types


def sequences(vocabulary: int, number: int) -> dict[int, list[NDArray[np.int32]]]:
    """Random token ids of each length, between BOS and EOS."""
    rng = np.random.default_rng(0)
    return {
        T: [np.int32([2, *rng.integers(256, min(200_000, vocabulary), T - 2), 1]) for _ in range(number)]
        for T in LENGTHS
    }


def against_float32(checkpoint: Path, threads: int) -> list[Result]:
    texts = sentences()[::2][:20]
    truth = EmbeddingGemma(checkpoint, threads=threads).encode(texts)
    rows = []
    for quantization in QUANTIZATIONS:
        log(f"{checkpoint.name}: {quantization}")
        found = EmbeddingGemma(checkpoint, quantization=quantization, threads=threads).encode(texts)
        cosines = np.einsum("ij,ij->i", found.astype(np.float64), truth)
        rows.append({"weights": checkpoint.name, "format": quantization, "cosines": cosines.tolist()})
    return rows


def against_float64(checkpoint: Path, work: Path, threads: int, number: int) -> tuple[list[Result], list[Result]]:
    """Cosines, and how many matrices have the same values in both engines."""
    import peers
    from peer_models import folder_for

    config = read_config(checkpoint)
    ids = sequences(config.V, number)
    heads = [path.name for kind, path in Reference(checkpoint).modules if kind == "Dense"]
    rows, compared = [], []
    for ours, theirs in PAIRS.items():
        engines = {
            name: peers.NAMED[name](checkpoint, folder_for(checkpoint, work), threads) for name in (ours, theirs)
        }
        values = {ours: our_values(checkpoint, ours.split()[-1])}
        values[theirs], types = their_values(engines[theirs].file, config, heads)
        matrices = {name: w for name, w in values[ours].items() if not isinstance(w, Rows)}
        same = sum(np.array_equal(w, values[theirs][name]) for name, w in matrices.items())
        table = types["embed_tokens.weight"]
        compared.append({"engine": theirs, "matrices": len(matrices), "same": same, "embedding table": table})
        for name, engine in engines.items():
            judge = Reference(checkpoint, values[name])
            for T, texts in ids.items():
                log(f"{name}: {T} tokens")
                cosines = [float(engine.embed([text])[0] @ judge.embed(text.tolist())) for text in texts]
                rows.append({"format": ours.split()[-1], "engine": name, "tokens": T, "cosines": cosines})
    return rows, compared


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="judge by float64, llama.cpp too; see above")
    parser.add_argument("--sequences", type=int, default=8, help="of each length, for --peers; default: 8")
    arguments = parser.parse_args()
    checkpoints = [checkpoint.resolve() for checkpoint in arguments.checkpoints]
    if arguments.peers:
        run = Run("formats_float64", arguments, ("llama-cpp-python", "gguf"))
        rows, compared = against_float64(checkpoints[0], arguments.peers, arguments.threads, arguments.sequences)
        print(show(run.keep(rows, compared=compared)))
    else:
        run = Run("formats", arguments)
        rows = [row for checkpoint in checkpoints for row in against_float32(checkpoint, arguments.threads)]
        print(show(run.keep(rows)))


if __name__ == "__main__":
    main()
