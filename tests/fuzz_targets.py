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
import struct
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache, partial
from io import StringIO
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from tokenizers import Tokenizer as Package
from tokenizers.models import BPE

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from make_checkpoint import SMALL, make_checkpoint
from small_tokenizer import gemma_layout
from test_bpe import Checked

from gemma_np import EmbeddingGemma
from gemma_np.bundle import damaged_files
from gemma_np.checkpoint import FLOATS, Tensor, open_checkpoint, open_safetensors
from gemma_np.config import Config, read_config
from gemma_np.errors import GemmaError, InputError
from gemma_np.info import report
from gemma_np.modules import check_widths, read_defaults, read_max_seq_length, resolve_modules
from gemma_np.pieces import FILE as PIECES
from gemma_np.pieces import open_pieces, save_pieces
from gemma_np.saving import save as save_model
from gemma_np.source import open_source
from gemma_np.tokenizer import Tokenizer
from gemma_np.tokenizer_json import Inexpressible, from_tokenizer_json, write_tokenizer_json
from gemma_np.weights import trunk_shapes

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


# ---- changes -----------------------------------------------------------------------------------------------------

POWERS = [2**n + more for n in (7, 8, 15, 16, 24, 31, 32, 48, 53, 60, 62, 63, 64) for more in (-1, 0, 1)]
NUMBERS = [*range(-3, 12), *POWERS, *(-power for power in POWERS), 10**30]
HOSTILE = [  # as JSON
    *(str(number).encode() for number in NUMBERS),
    *b"-0 0.0 -0.0 1.5 1e999 -1e999 1e-400 5e-324 1e5 2E0 NaN Infinity -Infinity true false null 00 +1 0x1".split(),
    *(b"9" * n for n in (19, 20, 309, 4300, 4301, 100_000)),
    *(b'""', b"[]", b"{}", b"[{}]", b"[null]", b'{"a":1}', b'"\\u0000"', b'"\\ud800"', b'"\\udfff\\ud800"', b'"\xff"'),
    *(
        b'"a\xe2\x96\x81"',
        b'"..',
        b'"."',
        b'".."',
        b'"../x"',
        b'"/etc/passwd"',
        b'"/dev/zero"',
        b'"a/b"',
        b'"a\\u0000b"',
    ),
    *(b'"%s"' % (b"x" * n) for n in (256, 5000)),
    *(b"[" * n + b"]" * n for n in (64, 500, 900, 960, 980, 990, 5000)),
    *(b'{"a":' * n + b"1" + b"}" * n for n in (64, 900, 980, 5000)),
    *(b"[" + b"[]," * n + b"1]" for n in (64, 3000)),
]
TOKEN = re.compile(rb'\n=== .*|"(?:[^"\\]|\\.)*"|[\w.+-]+|\s+|[^\w]')


def closing(tokens: list[bytes], i: int) -> int:
    """Where the value ends that begins at i: behind the bracket that closes it; with its value, if it is a name."""
    depth, rest = 0, i
    while rest < len(tokens):
        token = tokens[rest]
        depth += (token in (b"[", b"{")) - (token in (b"]", b"}"))
        rest += 1
        if depth <= 0 and not (rest < len(tokens) and (tokens[rest] == b":" or token == b":" or token.isspace())):
            break
    return rest


def mutate_json(rng: random.Random, data: bytes) -> bytes:
    """Values, names and brackets replaced, doubled, removed, moved; mostly still JSON."""
    tokens = TOKEN.findall(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        starts = [i for i, token in enumerate(tokens) if token not in (b",", b":", b"]", b"}") and not token.isspace()]
        if not starts:
            break
        first = i = rng.choice(starts)
        if b":" in tokens[max(i - 2, 0) : i] and starts[0] < i:  # a value: begin at its name
            first = i = starts[starts.index(i) - 1]
        end = closing(tokens, i)
        if b":" in tokens[i + 1 : i + 3] and rng.random() < 0.9:  # a name: go to its value
            i = next((j for j in starts if j > i), i)
        match rng.choice((0, 0, 0, 1, 2, 3, 4, 5, 6, 7)):
            case 0:
                tokens[i:end] = [rng.choice(HOSTILE)]
            case 1:
                del tokens[first:end]
            case 2:  # the same twice; a name, too
                tokens[end:end] = [b",", *tokens[first:end]] * rng.choice((1, 1, 2, 50))
            case 3:
                names = [token for token in (*tokens, *HOSTILE) if token.startswith(b'"')]
                tokens[first : first + 1 if i > first else end] = [rng.choice(names)]
            case 4:
                other = rng.choice(starts)
                value = tokens[other : closing(tokens, other)]
                tokens[i:end] = value if b":" not in value[1:3] else [b"{", *value, b"}"]
            case 5:
                tokens[i:end] = [b"[", *tokens[i:end], b"]"]
            case 6:
                tokens[i] = mutate_bytes(rng, tokens[i])
            case 7 if re.fullmatch(rb"-?\d+", tokens[i]):
                number = int(tokens[i][:30])
                new = rng.choice((number + 1, number - 1, -number, 2 * number, number * 10**6, number << 32))
                tokens[i] = str(new).encode()
    text = b"".join(tokens)
    return re.sub(rb"(?<=[\[{]),|,(?=\s*[,\]}])", b"", text) if rng.random() < 0.9 else text


def mutate_folder(rng: random.Random, data: bytes) -> bytes:
    """One file of a folder changed, by its kind; or its name or nature; or all files as one text."""
    separator = b"\n=== "
    parts = data.split(separator)
    if len(parts) < 2 or rng.random() < 0.05:
        return mutate_json(rng, data)
    for _ in range(rng.choice((1, 1, 2))):
        i = rng.randrange(1, len(parts))
        name, _, content = parts[i].partition(b"\n")
        match rng.randrange(12):
            case 0:
                name = name.partition(b" ")[0] + rng.choice((b" fifo", b" dir", b" -> /dev/zero", b" -> ..", b" -> a"))
            case 1:
                name = name.partition(b" ")[0] + b" -> " + rng.choice(parts[1:]).partition(b"\n")[0].split(b" ")[0]
            case 2:
                content = rng.choice(parts).partition(b"\n")[2]
            case _ if name.endswith(b".safetensors"):
                content = mutate_safetensors(rng, content)
            case _:
                content = mutate_json(rng, content)
        parts[i] = name + b"\n" + content
    return separator.join(parts)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes flipped, overwritten by numbers of either byte order, cut, moved."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(changed) + 1)
        length = rng.choice((1, 2, 4, 8, 16, 64))
        match rng.randrange(7):
            case 0 if changed:
                changed[min(at, len(changed) - 1)] ^= 1 << rng.randrange(8)
            case 1:
                width = rng.choice((1, 2, 4, 8))
                number = rng.choice((*NUMBERS, len(data), len(data) - at, at)) % 256**width
                changed[at : at + width] = number.to_bytes(width, rng.choice(("little", "little", "big")))
            case 2:
                del changed[at : at + length]
            case 3:
                other = rng.randrange(len(changed) + 1)
                changed[at : at + rng.choice((0, length))] = changed[other : other + length]
            case 4:
                changed[at:at] = rng.randbytes(length)
            case 5 if rng.random() < 0.3:
                del changed[at:]
            case _:
                changed[at : at + 1] = rng.randbytes(1)
    return bytes(changed)


def mutate_safetensors(rng: random.Random, data: bytes, content_only: float = 0.1) -> bytes:
    """The header as JSON, its length kept right, mostly; the tensors' bytes; or any bytes."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.1 or 8 + length > len(data):
        return mutate_bytes(rng, data)
    header, content = data[8 : 8 + length], data[8 + length :]
    if rng.random() < content_only:
        changed = mutate_bytes(rng, content)[: len(content)]
        return data[: 8 + length] + changed + content[len(changed) :]
    header = mutate_json(rng, header)
    length = len(header) if rng.random() < 0.95 else rng.choice(NUMBERS) % 2**64
    return struct.pack("<Q", length) + header + content


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
    for ids in Checked(pieces).encode(["ab aab", "<eos>é\n"]):
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
    save_model(open_source(folder), folder / "out", "float32", show_progress=False)


def use_model(folder: Path) -> None:
    with suppress(GemmaError), redirect_stdout(StringIO()):
        report(folder)
    model = EmbeddingGemma(folder)
    model.encode(["a text"], prompt_name="query")


TARGETS = {
    "safetensors": Target(
        tensor_files, mutate_safetensors, lambda folder: use_tensors(open_safetensors(folder / "x")), "x"
    ),
    "index": Target(index_folder, mutate_folder, lambda folder: use_tensors(open_checkpoint(folder))),
    "config": Target(config_file, mutate_json, lambda folder: trunk_shapes(read_config(folder)), "config.json"),
    "modules": Target(lambda: [tiny(leave=("safetensors", "tokenizer.json"))], mutate_folder, use_modules),
    "tokenizer": Target(lambda: [tiny_tokenizer().encode()], mutate_json, use_tokenizer, "tokenizer.json"),
    "pieces": Target(pieces_file, partial(mutate_safetensors, content_only=0.7), use_pieces, PIECES),
    "bundle": Target(bundle_folders, mutate_folder, use_bundle),
    "model": Target(lambda: [tiny(), tiny(shards=2)], mutate_folder, use_model),
}
