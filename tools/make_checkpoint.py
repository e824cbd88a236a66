"""Make a checkpoint folder like EmbeddingGemma's, of any size, with synthetic weights.

    python tools/make_checkpoint.py OUT                                       small, with its own tokenizer
    python tools/make_checkpoint.py OUT --size full --tokenizer DIR --report  the real shape and tokenizer

sentence-transformers loads the folder too. Nothing in it comes from the real model but the shape and, where DIR is
given, the files that are no weights. The same arguments give the same weights.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import synthetic_weights
from gemma_np.kernels.plan import FORMATS
from small_tokenizer import small_tokenizer
from tokenizers import Tokenizer
from tqdm import tqdm

from gemma_np import GemmaError
from gemma_np.arrays import AnyArray, Float32
from gemma_np.config import read_config
from gemma_np.files.safetensors import to_float32
from gemma_np.modules import Dense
from gemma_np.prompts import DOCUMENT, SEARCH
from gemma_np.weights.names import dense_shapes, trunk_shapes
from gemma_np.weights.quantize import quantized_rows

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
SHORT = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
Blocks = Iterator[tuple[str, Float32]]  # tensors by name
Head = tuple[int, int, bool, str]  # a Dense module: inputs, outputs, bias, activation

SMALL: dict[str, Any] = {
    "architectures": ["Gemma3TextModel"],
    "attention_bias": False,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 64,
    "intermediate_size": 96,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    "max_position_embeddings": 2048,
    "model_type": "gemma3_text",
    "num_attention_heads": 2,
    "num_hidden_layers": 6,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 32,
    "rms_norm_eps": 1e-6,
    "rope_local_base_freq": 10_000.0,
    "rope_theta": 1_000_000.0,
    "sliding_window": 32,
    "use_bidirectional_attention": True,
    "vocab_size": 1024,
}
FULL: dict[str, Any] = {
    **SMALL,
    "head_dim": 256,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "layer_types": SMALL["layer_types"] * 4,
    "num_attention_heads": 3,
    "num_hidden_layers": 24,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "vocab_size": 262_144,
}
PROMPTS = {
    "query": SEARCH,
    "document": DOCUMENT,
    "Retrieval-query": SEARCH,
    "Retrieval-document": DOCUMENT,
    "Classification": "task: classification | query: ",
    "Clustering": "task: clustering | query: ",
    "InstructionRetrieval": "task: code retrieval | query: ",
    "STS": "task: sentence similarity | query: ",
    "Summarization": "task: summarization | query: ",
}


def make_checkpoint(
    out: Path,
    config: dict[str, Any] = SMALL,
    *,
    seed: int = 0,
    dtype: str = "float32",
    on_grid: str | None = None,
    weights: str = "plain",
    tokenizer: Path | None = None,
    dense: Sequence[Head] | None = None,
    normalize: bool = True,
    include_prompt: bool = True,
    prefix: str = "",
    shards: int = 1,
    replace: bool = False,
    progress: bool = False,
) -> Path:
    """Write a checkpoint folder and return its path.

    out             appears only when it is complete; must not exist, or be an empty folder, unless `replace`
    config          what config.json shall say, word for word
    dtype           of the tensors: "float32", "bfloat16" or "float16"
    on_grid         "q4_0" or "q8_0": every matrix has values of that format, which loses nothing by it, as checkpoints
                    trained for a format do (Google's QAT)
    weights         "plain": all activations near 1; "realistic": with the real model's outliers
    tokenizer       a folder whose files other than weights and config.json are copied; None: a small BPE
    dense           the Dense modules; None: D to 4 D and back, without bias, as in EmbeddingGemma
    normalize       whether a Normalize module ends the chain
    include_prompt  what 1_Pooling says
    prefix          put before each tensor's name: "model." in some files
    shards          number of files for the trunk
    """
    if on_grid and dtype != "float32":
        raise GemmaError(f"{out}: values of {on_grid} have more bits than {dtype} holds; expected float32 with on_grid")

    def snapped(name: str, values: Float32) -> Float32:
        return quantized_rows(values, on_grid, name) if on_grid and values.ndim == 2 else values

    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        write_json(folder / "config.json", {**config, "dtype": dtype})
        parsed = read_config(folder)
        if tokenizer is None:
            write_tokenizer(folder, small_tokenizer(), parsed.max_positions)
        else:
            copy_descriptions(tokenizer, folder)
        if dense is None:
            dense = [(parsed.D, 4 * parsed.D, False, "Identity"), (4 * parsed.D, parsed.D, False, "Identity")]

        def head_weights(number: int, shapes: dict[str, tuple[int, ...]]) -> Blocks:
            rng = np.random.default_rng((seed, 1_000_000 + number))
            return ((name, snapped(name, synthetic_weights.dense(rng, shape))) for name, shape in shapes.items())

        write_modules(folder, parsed.D, dense, head_weights, dtype, normalize, include_prompt)
        if weights == "realistic":
            blocks = synthetic_weights.realistic(
                parsed, seed, lambda values: to_float32(stored(snapped("weights", values), dtype))
            )
        else:
            blocks = synthetic_weights.plain(parsed, seed)
        blocks = ((name, snapped(name, values)) for name, values in blocks)
        write_trunk(folder, trunk_shapes(parsed), blocks, dtype, prefix, shards, progress)
        folder.chmod(0o755)  # mkdtemp's folders are for the owner alone
        if out.is_dir():
            shutil.rmtree(out) if replace else out.rmdir()  # rmdir refuses a folder that is not empty
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return out


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def write_tokenizer(folder: Path, tokenizer: Tokenizer, max_positions: int) -> None:
    """The tokenizer with its settings, the limit in tokens and the prompts."""
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GemmaTokenizer",
            "add_bos_token": True,
            "add_eos_token": True,
            "model_max_length": max_positions,
            "padding_side": "right",
            **special,
        },
    )
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_positions, "do_lower_case": False})
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": PROMPTS, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )


def copy_descriptions(source: Path, folder: Path) -> None:
    """The real tokenizer, prompts and limits; config.json and modules are written here."""
    if not (source / "tokenizer.json").is_file():
        raise GemmaError(f"{source} has no tokenizer.json; expected a folder with a checkpoint's files")
    for path in source.glob("*.json"):
        if path.name not in ("config.json", "config.resaved.json", "modules.json", "model.safetensors.index.json"):
            shutil.copyfile(path, folder / path.name)


def write_modules(
    folder: Path,
    width: int,
    dense: Sequence[Head],
    weights: Callable[[int, dict[str, tuple[int, ...]]], Blocks],
    dtype: str,
    normalize: bool = True,
    include_prompt: bool = True,
) -> None:
    """modules.json and the folders that it names; weights(number, shapes) yields the tensors of a Dense module."""
    modules = ["Transformer", "Pooling", *["Dense"] * len(dense), *["Normalize"] * normalize]
    paths = ["", *(f"{i}_{name}" for i, name in enumerate(modules[1:], 1))]
    rows = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(zip(modules, paths, strict=True))
    ]
    write_json(folder / "modules.json", rows)
    modes = ("cls_token", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True, "include_prompt": include_prompt}
    write_json(folder / "1_Pooling" / "config.json", {**pooling, **{f"pooling_mode_{mode}": False for mode in modes}})
    for number, (path, (inputs, outputs, bias, activation)) in enumerate(zip(paths[2:], dense, strict=False)):
        kind = {"Identity": "linear.Identity", "Tanh": "activation.Tanh"}[activation]
        settings = {"in_features": inputs, "out_features": outputs, "bias": bias}
        write_json(folder / path / "config.json", {**settings, "activation_function": f"torch.nn.modules.{kind}"})
        shapes = dense_shapes(Dense(path, inputs, outputs, bias, activation))
        write_trunk(folder / path, shapes, weights(number, shapes), dtype)


def write_trunk(
    folder: Path,
    shapes: dict[str, tuple[int, ...]],
    blocks: Blocks,
    dtype: str,
    prefix: str = "",
    shards: int = 1,
    progress: bool = False,
) -> None:
    """Stream tensors, block by block in the order of `shapes`, into one safetensors file or several with an index."""
    names = list(shapes)
    parts = [names[i * len(names) // shards : (i + 1) * len(names) // shards] for i in range(shards)]
    width = f"-of-{shards:05d}.safetensors"
    files = ["model.safetensors"] if shards == 1 else [f"model-{i:05d}{width}" for i in range(1, shards + 1)]
    place: dict[str, IO[bytes]] = {}
    size = np.dtype(np.float32).itemsize if dtype == "float32" else 2
    total = sum(int(np.prod(shape)) for shape in shapes.values()) * size
    with ExitStack() as stack:
        for name, part in zip(files, parts, strict=True):
            file = stack.enter_context((folder / name).open("wb"))
            header, end = {}, 0
            for tensor in part:
                begin, end = end, end + int(np.prod(shapes[tensor])) * size
                header[prefix + tensor] = {
                    "dtype": DTYPES[dtype],
                    "shape": shapes[tensor],
                    "data_offsets": [begin, end],
                }
                place[tensor] = file
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)  # so that tensors are aligned
            file.write(len(text).to_bytes(8, "little") + text)
        with tqdm(total=total, unit="B", unit_scale=True, desc="Writing weights", disable=not progress) as bar:
            for tensor, values in blocks:
                data = stored(values, dtype)
                place[tensor].write(data.data)
                bar.update(data.nbytes)
    if shards > 1:
        weight_map = {prefix + tensor: name for name, part in zip(files, parts, strict=True) for tensor in part}
        write_json(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


def stored(values: Float32, dtype: str) -> AnyArray:
    """float32 -> the file's elements, rounded to the nearest, ties to even; bfloat16 as uint16."""
    if dtype != "bfloat16":
        return np.ascontiguousarray(values, dtype={"float32": "<f4", "float16": "<f2"}[dtype])
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Make a checkpoint folder like EmbeddingGemma's, with synthetic weights.",
        epilog="example:  python tools/make_checkpoint.py demo && gemma-np info demo",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the new folder")
    parser.add_argument("--size", choices=["small", "full"], default="small", help="full: EmbeddingGemma-300m's shape")
    parser.add_argument(
        "--dtype",
        type=lambda name: SHORT.get(name, name),
        choices=list(DTYPES),
        default="float32",
        help="or f32, bf16, f16",
    )
    parser.add_argument(
        "--on-grid", choices=FORMATS[1:], help="matrices have values of this format alone, which then loses nothing"
    )
    parser.add_argument(
        "--weights", choices=["plain", "realistic"], help="default: realistic for full, plain for small"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="folder of a checkpoint whose tokenizer is copied"
    )
    parser.add_argument("--report", action="store_true", help="print the statistics next to the real model's")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    arguments = parser.parse_args()
    out: Path = arguments.out
    try:
        if out.exists() and not (out.is_dir() and not os.listdir(out)) and not arguments.force:
            raise GemmaError(f"{out} exists; remove it, or pass --force to replace it")
        make_checkpoint(
            out,
            FULL if arguments.size == "full" else SMALL,
            seed=arguments.seed,
            dtype=arguments.dtype,
            on_grid=arguments.on_grid,
            weights=arguments.weights or ("realistic" if arguments.size == "full" else "plain"),
            tokenizer=arguments.tokenizer,
            replace=arguments.force,
            progress=sys.stderr.isatty(),
        )
    except (GemmaError, OSError) as error:
        print(f"make_checkpoint: error: {error}", file=sys.stderr)
        return 1
    if arguments.report:
        from weight_report import report

        return report(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
