"""What fuzz.py tries: for every reader valid files, how they are changed, and what is done with what was read.

An input is one file's bytes, or a whole folder as text:

    === config.json                     a file, its content in the lines below
    === 1_Pooling/config.json
    === tokenizer.json -> config.json   a symbolic link
    === modules.json fifo               a pipe that nobody writes to; `dir`: a folder
"""

import json
import os
import random
import re
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO, StringIO
from pathlib import Path

import adapters
import numpy as np
from safetensors.numpy import save
from tokenizers import Tokenizer as Package
from tokenizers.models import BPE

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from fuzz_mutate import mutate_folder, mutate_gguf, mutate_json, mutate_safetensors
from gguf_files import Parts, as_ollama, in_types
from gguf_files import read as read_gguf
from gguf_files import write as write_gguf
from make_checkpoint import SMALL, make_checkpoint
from small_tokenizer import gemma_layout
from test_bpe import Checked

from gemma_np import EmbeddingGemma, GemmaError, InputError
from gemma_np.checkpoint.bundle import damaged_files
from gemma_np.checkpoint.defaults import read_defaults, read_max_seq_length
from gemma_np.checkpoint.folder import open_checkpoint
from gemma_np.checkpoint.saving import save as save_model
from gemma_np.cli.description import print_info
from gemma_np.config import Config, read_config
from gemma_np.files.safetensors import FLOATS, Tensor, open_safetensors
from gemma_np.gguf.export import export
from gemma_np.gguf.file import Texts, open_gguf
from gemma_np.modules import check_widths, resolve_modules
from gemma_np.opening import open_source
from gemma_np.tokens.json_file import Inexpressible, from_tokenizer_json, write_tokenizer_json
from gemma_np.tokens.pieces import FILE as PIECES
from gemma_np.tokens.pieces import open_pieces, save_pieces
from gemma_np.tokens.tokenizer import Tokenizer
from gemma_np.weights.names import trunk_shapes

Mutate = Callable[[random.Random, bytes], bytes]


@dataclass(frozen=True)
class Target:
    """One reader.

    seeds    valid inputs
    mutate   a changed input
    use      reads the files of a folder, and uses what it read
    file     the file that an input is; "": a folder
    """

    seeds: Callable[[], list[bytes]]
    mutate: Mutate
    use: Callable[[Path], None]
    file: str = ""

    def write(self, data: bytes, folder: Path) -> None:
        if self.file:
            (folder / self.file).write_bytes(data)
        else:
            unpack(data, folder)


# ---- folders -----------------------------------------------------------------------------------------------------


def pack(folder: Path, leave: str | tuple[str, ...] = "-") -> bytes:
    """A folder as text, without the files whose names end so."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(leave))
    return b"".join(b"\n=== %s\n%s" % (str(path.relative_to(folder)).encode(), path.read_bytes()) for path in paths)


def unpack(data: bytes, folder: Path) -> None:
    """What `pack` wrote, but nothing outside the folder: the text may say anything."""
    for part in data.split(b"\n=== ")[1:]:
        head, _, content = part.partition(b"\n")
        name, _, kind = head.decode("latin-1").partition(" ")
        steps = name.split("/")
        path = folder / name
        plain = all(re.fullmatch(r"[A-Za-z0-9_.-]{1,200}", step) and step.strip(".") for step in steps)
        if not plain or len(name) > 1000 or os.path.lexists(path) or any(map(os.path.islink, path.parents)):
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "fifo":
                os.mkfifo(path)
            elif kind == "dir":
                path.mkdir()
            elif re.fullmatch(r"-> ([A-Za-z0-9_.-]+|\.\.|/dev/(zero|null|full|random))", kind):
                path.symlink_to(kind[3:])
            else:
                path.write_bytes(content)
        except OSError:  # a folder where a file is
            continue


# ---- readers -----------------------------------------------------------------------------------------------------


def use_tensors(tensors: dict[str, Tensor]) -> None:
    """Read every tensor, every element."""
    for tensor in tensors.values():
        if tensor.dtype in FLOATS or len(tensors) == 1:
            values = tensor.float32()
            assert values.shape == tensor.shape
            values.view(np.uint32).sum()
            if values.ndim == 2 and len(values):
                last = len(values) - 1
                np.testing.assert_array_equal(tensor.rows(np.array([last, 0, last])), values[[last, 0, last]])


def tensor_files() -> list[bytes]:
    rng = np.random.default_rng(0)
    floats, halves = rng.standard_normal((3, 4), np.float32), rng.standard_normal((2, 5)).astype(np.float16)
    arrays = {
        "a": floats,
        "b.weight": halves,
        "none": np.empty((0, 4), np.float32),
        "i": np.arange(3),
        "0d": floats[0, 0],
    }
    bfloat = json.dumps({"x": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}).encode()
    return [
        save({name: np.asarray(array) for name, array in arrays.items()}, {"format": "pt"}),
        struct.pack("<Q", len(bfloat)) + bfloat + bytes(range(12)),
        save({"a": floats}),
    ]


TINY = {**SMALL, "hidden_size": 8, "head_dim": 4, "intermediate_size": 8, "num_hidden_layers": 2, "sliding_window": 4}
TINY |= {"layer_types": ["sliding_attention", "full_attention"], "vocab_size": 270, "max_position_embeddings": 64}
CONFIG = Config(270, 8, 8, 64, (), frozenset({2}), frozenset({1}))
TEXTS = ["a", "", "ab aab  b", "<eos>a<bos>", "\u2581\x00é👍\n", "ab" * 500, " " * 500]


def tiny_tokenizer() -> str:
    """Gemma's layout, and five pieces more than it must have."""
    learner = Package(BPE({"a": 0, "b": 1, "▁": 2, "ab": 3, "aab": 4}, [("a", "b"), ("a", "ab")]))
    text: str = gemma_layout(learner).to_str()
    return text


@cache
def tiny(shards: int = 1, leave: str | tuple[str, ...] = "-") -> bytes:
    """A complete checkpoint's folder, some thousand bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        dense = ((8, 6, True, "Tanh"), (6, 8, False, "Identity"))
        folder = make_checkpoint(Path(scratch) / "tiny", TINY, dense=dense, shards=shards)
        (folder / "tokenizer.json").write_text(tiny_tokenizer())
        return pack(folder, leave)


def config_file() -> list[bytes]:
    newer = {
        **TINY,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in TINY["layer_types"]},
    }
    older = {**TINY, "layer_types": None, "sliding_window_pattern": 2, "eos_token_id": [1, 106], "rope_scaling": None}
    return [json.dumps(settings).encode() for settings in (TINY, newer, older)]


def index_folder() -> list[bytes]:
    files = {"1.safetensors": save({"a": np.ones(3, np.float32)}), "2.safetensors": save({"b": np.ones(2, np.float16)})}
    index = json.dumps({"metadata": {"total_size": 16}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})
    parts = {"model.safetensors.index.json": index.encode(), **files}
    return [b"".join(b"\n=== %s\n%s" % (name.encode(), content) for name, content in parts.items())]


def use_modules(folder: Path) -> None:
    modules = resolve_modules(folder)
    read_defaults(folder)
    read_max_seq_length(folder / modules.trunk, CONFIG)
    check_widths(CONFIG, modules, folder)


def use_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(folder, CONFIG)
    for limit in (None, 5):
        for text in TEXTS:
            with suppress(InputError):
                ((ids,), _) = tokenizer.encode([text], limit)
                assert ids.size == 0 or 0 <= ids.min() <= ids.max() < CONFIG.V
    tokenizer.prompt_length("ab: ")
    with suppress(Inexpressible):
        Tokenizer(folder, CONFIG, from_tokenizer_json(folder / "tokenizer.json")).encode(TEXTS)


def pieces_file() -> list[bytes]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "tokenizer.json").write_text(tiny_tokenizer())
        save_pieces(from_tokenizer_json(folder / "tokenizer.json"), folder / PIECES)
        return [(folder / PIECES).read_bytes()]


def use_pieces(folder: Path) -> None:
    """As Python, and by the kernel as Python, which sees its own arrays alone."""
    pieces = open_pieces(folder / PIECES)
    assert Tokenizer(folder, CONFIG, pieces).encode(TEXTS)
    for ids in Checked(pieces).encode(["ab aab", "<eos>é\n", "ab" * 10]):
        assert 0 <= ids.min(initial=0) <= ids.max(initial=0) < len(pieces)
    write_tokenizer_json(pieces, folder / "tokenizer.json")


BUNDLED = {**TINY, "hidden_size": 32, "head_dim": 16, "intermediate_size": 32}


@cache
def bundle_folders() -> list[bytes]:
    """One of each kind of format."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_checkpoint(Path(scratch) / "float", BUNDLED, dense=((32, 32, True, "Tanh"),))
        (folder / "tokenizer.json").write_text(tiny_tokenizer())
        made = []
        for quantization in ("q8_0", "mixed"):
            save_model(open_source(folder), Path(scratch) / quantization, quantization)
            made.append(pack(Path(scratch) / quantization))
        return made


def use_bundle(folder: Path) -> None:
    damaged_files(folder)
    use_model(folder)
    with suppress(InputError):
        export(open_source(folder), BytesIO(), None, show_progress=False)
    save_model(open_source(folder), folder / "out", "float32", show_progress=False)


def use_model(folder: Path) -> None:
    with suppress(GemmaError), redirect_stdout(StringIO()):
        print_info(folder)
    model = EmbeddingGemma(folder)
    model.encode(["a text"], prompt_name="query")


@cache
def gguf_files() -> list[bytes]:
    """With tensors of each kind."""
    with tempfile.TemporaryDirectory() as scratch:
        dense = ((32, 32, False, "Identity"), (32, 32, False, "Identity"))
        folder = make_checkpoint(Path(scratch) / "float", {**BUNDLED, "query_pre_attn_scalar": 16}, dense=dense)
        (folder / "tokenizer.json").write_text(tiny_tokenizer())
        made = []
        for format in ("f32", "bf16", "q8_0", "q4_0"):
            file = BytesIO()
            export(open_source(folder), file, format, show_progress=False)
            made.append(file.getvalue())
        typed = [partial(in_types, kinds=kinds) for kinds in (["Q4_1", "Q5_0"], ["Q5_1", "IQ4_NL"])]
        return [*made, *(changed_gguf(made[0], change) for change in (*typed, as_ollama)), wide_file()]


def changed_gguf(data: bytes, change: Callable[[Parts], Parts]) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.gguf"
        path.write_bytes(data)
        return write_gguf(change(read_gguf(path)), path).read_bytes()


def wide_file() -> bytes:
    """In the types that have 256 values to a block."""
    with tempfile.TemporaryDirectory() as scratch:
        sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 128, "query_pre_attn_scalar": 128}
        heads = ((256, 256, False, "Identity"), (256, 256, False, "Identity"))
        config = {**BUNDLED, **sizes, "num_hidden_layers": 1, "layer_types": ["full_attention"]}
        folder = make_checkpoint(Path(scratch) / "float", config, dense=heads)
        (folder / "tokenizer.json").write_text(tiny_tokenizer())
        file = BytesIO()
        export(open_source(folder), file, "f32", show_progress=False)
        return changed_gguf(file.getvalue(), partial(in_types, kinds=["Q4_K", "Q5_K", "Q6_K"]))


def use_gguf(folder: Path) -> None:
    path = folder / "model.gguf"
    for value in open_gguf(path).metadata.values():
        if isinstance(value, Texts):
            assert sum(map(len, value)) < path.stat().st_size
    use_model(path)
    export(open_source(path), BytesIO(), None, show_progress=False)


@cache
def adapter_folders() -> list[bytes]:
    """An adapter and its base side by side: as PEFT saves it, and with modules beside it on a quantised base."""
    with tempfile.TemporaryDirectory() as scratch:
        base = make_checkpoint(Path(scratch) / "float", BUNDLED, dense=((32, 32, True, "Tanh"),))
        (base / "tokenizer.json").write_text(tiny_tokenizer())
        changes = adapters.halves(base)
        patterns = {"rank_pattern": {}, "alpha_pattern": {r"layers\.0\..*_proj": 3}}
        made = []
        for name, quantization in (("peft", None), ("whole", "q8_0")):
            folder = Path(scratch) / name
            adapters.write(folder / "adapter", "base", changes, **patterns)
            if quantization:
                adapters.beside(base, folder / "adapter")
                save_model(open_source(base), folder / "base", quantization, show_progress=False)
            else:
                shutil.copytree(base, folder / "base")
            made.append(pack(folder))
        return made


def use_adapter(folder: Path) -> None:
    adapter, base = folder / "adapter", folder / "base"
    with suppress(GemmaError), redirect_stdout(StringIO()):
        print_info(adapter, base=base)
    model = EmbeddingGemma(adapter, base=base)
    model.encode(["a text"], prompt_name="query")
    model.fingerprint()
    save_model(model.source, folder / "out", "float32", show_progress=False)


TARGETS = {
    "safetensors": Target(
        tensor_files, mutate_safetensors, lambda folder: use_tensors(open_safetensors(folder / "x")), "x"
    ),
    "index": Target(index_folder, mutate_folder, lambda folder: use_tensors(open_checkpoint(folder))),
    "config": Target(config_file, mutate_json, lambda folder: trunk_shapes(read_config(folder)), "config.json"),
    "modules": Target(lambda: [tiny(leave=("safetensors", "tokenizer.json"))], mutate_folder, use_modules),
    "tokenizer": Target(lambda: [tiny_tokenizer().encode()], mutate_json, use_tokenizer, "tokenizer.json"),
    "pieces": Target(pieces_file, partial(mutate_safetensors, content_only=0.7), use_pieces, PIECES),
    "gguf": Target(gguf_files, mutate_gguf, use_gguf, "model.gguf"),
    "adapter": Target(adapter_folders, mutate_folder, use_adapter),
    "bundle": Target(bundle_folders, mutate_folder, use_bundle),
    "model": Target(lambda: [tiny(), tiny(shards=2)], mutate_folder, use_model),
}
