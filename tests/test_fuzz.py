"""Hostile files: what fuzz.py once found, by name, and a hundred new ones for each reader."""

import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

if not Path("/proc/self/statm").exists():
    pytest.skip("fuzz.py limits memory as only Linux can", allow_module_level=True)
from fuzz_mutate import gguf_fields, gguf_with
from fuzz_targets import TARGETS, TINY, bundle_folders, gguf_files, pieces_file, tiny, tiny_tokenizer

FUZZ = Path(__file__).with_name("fuzz.py")


def changed(name: str, content: bytes | None = None, kind: str = "", folder: bytes = b"") -> bytes:
    """The small checkpoint's folder, with one file or none of that name in place of its own."""
    parts = (folder or tiny()).split(b"\n=== ")
    kept = [part for part in parts if not part.startswith(name.encode() + b"\n")]
    new = [] if content is None and not kind else [f"{name}{kind}\n".encode() + (content or b"")]
    return b"\n=== ".join(kept + new)


def of(name: str) -> bytes:
    """A file of the small checkpoint."""
    (found,) = (part for part in tiny().split(b"\n=== ") if part.startswith(name.encode() + b"\n"))
    return found.partition(b"\n")[2]


def config(**changes: Any) -> bytes:
    return json.dumps({**TINY, **changes}).encode()


def with_modules(*entries: dict[str, str]) -> bytes:
    return changed("modules.json", json.dumps([*json.loads(of("modules.json")), *entries]).encode())


def with_tensor(name: str) -> bytes:
    return changed("model.safetensors", save({**load(of("model.safetensors")), name: np.ones((2, 2), np.float32)}))


def tokenizer(part: str, value: Any, **more: Any) -> bytes:
    content = json.loads(tiny_tokenizer())
    content[part] = {**(content[part] or {}), **value} if isinstance(value, dict) else value
    return json.dumps({**content, **more}).encode()


def indexed(file: str) -> bytes:
    return b"\n=== model.safetensors.index.json\n" + json.dumps({"weight_map": {"a": file}}).encode()


def with_arrays(**arrays: Any) -> bytes:
    """The small tokenizer.safetensors, with other arrays."""
    own = load(pieces_file()[0])
    return save({**own, **{name: np.asarray(array, own[name].dtype) for name, array in arrays.items()}})


def gguf(key: str, value: bytes) -> bytes:
    """The small model's GGUF file, with another value, in front of which stands its type."""
    data = gguf_files()[0]
    _, values, end = gguf_fields(data)
    place = data.index(key.encode()) + len(key)
    (found,) = (value for value in values if value[0] == place)
    return gguf_with(data, *found, end, value)


MODULES = json.loads(of("modules.json"))
NORMALIZE = {"type": "sentence_transformers.models.Normalize", "path": "x" * 300}
TWO, NONE = struct.pack("<IIQII", 9, 4, 2, 1, 2), struct.pack("<IIQ", 9, 4, 0)
UNUSED = struct.pack("<IIQ270i", 9, 5, 270, *[5] * 270)
TEXTS, TINY_BASE = struct.pack("<IIQQB", 9, 8, 1, 1, 97), struct.pack("<Id", 12, 1e-300)
DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
TEMPLATE = {"type": "TemplateProcessing", "special_tokens": {}}
REGEX = {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated", "invert": False}
SPECIAL = json.loads(tiny_tokenizer())["post_processor"]["special_tokens"]
MANY = {"ids": [2] * 50_000, "tokens": ["<bos>"] * 50_000}
VOCABULARY = json.loads(tiny_tokenizer())["model"]["vocab"]

# What fuzz.py found, and what it led to. Name: target, input, what is said now.
FOUND: dict[str, tuple[str, Callable[[], bytes], str]] = {
    # a pipe that nobody writes to: the reader waited for ever
    "a pipe as config.json": (
        "model",
        lambda: changed("config.json", kind=" fifo"),
        "config.json cannot be read: it is no",
    ),
    "a pipe as a module's config.json": (
        "modules",
        lambda: changed("2_Dense/config.json", kind=" fifo"),
        "it is no regular",
    ),
    "a pipe as model.safetensors": ("index", lambda: b"\n=== model.safetensors fifo\n", "it is no regular file"),
    "a pipe as a file of an index": (
        "index",
        lambda: indexed("a") + b"\n=== a fifo\n",
        "a cannot be read: it is no regular",
    ),
    # MemoryError
    "an endless device as config.json": (
        "model",
        lambda: changed("config.json", kind=" -> /dev/zero"),
        "it is no regular",
    ),
    "an endless device that would be copied": (
        "bundle",
        lambda: changed("other.json", kind=" -> /dev/zero", folder=bundle_folders()[0]),
        "success",
    ),
    "a folder that would be copied": (
        "bundle",
        lambda: changed("o.json", kind=" dir", folder=bundle_folders()[0]),
        "success",
    ),
    # messages that could not be printed
    "a lone surrogate as a file of an index": ("index", lambda: indexed("\ud800"), "is not valid JSON .*surrogates"),
    "a lone surrogate as a setting of RoPE": (
        "config",
        lambda: config(rope_scaling={"\udfff": 1}),
        "is not valid JSON",
    ),
    "a lone surrogate as a module": (
        "modules",
        lambda: with_modules({**NORMALIZE, "path": "\ud800"}),
        "is not valid JSON",
    ),
    # OSError: File name too long
    "a module's path that no system can have": ("modules", lambda: with_modules(NORMALIZE), "longer than"),
    "a link that no system can follow": (
        "index",
        lambda: b"\n=== model.safetensors.index.json -> " + b"x" * 300,
        "model.safetensors is missing",
    ),
    # FileExistsError when it is dequantised
    "two modules in one folder": (
        "bundle",
        lambda: changed("modules.json", json.dumps([*MODULES[:3], *MODULES[2:]]).encode(), folder=bundle_folders()[0]),
        "have their weights in the same folder",
    ),
    # each reads its config.json: seconds for a hundred kilobytes
    "ten thousand modules": (
        "modules",
        lambda: with_modules(*[{**NORMALIZE, "path": ""}] * 10_000),
        "expected at most 100",
    ),
    # KeyError
    "a matrix of another model": ("model", lambda: with_tensor("x.q_proj.weight"), "success"),
    # the tokenizers package: memory beyond bounds (which ends the process), panics, ids beyond int32, Exception
    "a normalizer that doubles a text 40 times": (
        "tokenizer",
        lambda: tokenizer("normalizer", {"type": "Sequence", "normalizers": [DOUBLE] * 40}),
        "the normalizer Sequence is not served",
    ),
    "a normalizer that makes one letter a thousand": (
        "tokenizer",
        lambda: tokenizer("normalizer", {**DOUBLE, "content": "a" * 1000}),
        "a normalizer that lengthens texts",
    ),
    "a pre-tokenizer with a regular expression": (
        "tokenizer",
        lambda: tokenizer("pre_tokenizer", REGEX),
        "with the pattern",
    ),
    "a text three thousand times": (
        "tokenizer",
        lambda: tokenizer("post_processor", {"single": [{"Sequence": {"id": "A", "type_id": 0}}] * 3000}),
        "takes a text several times",
    ),
    "a template with an unknown token": (
        "tokenizer",
        lambda: tokenizer("post_processor", TEMPLATE),
        "(tokenises nothing|not a)",
    ),
    "a prefix of pieces that is longer than a piece": (
        "tokenizer",
        lambda: tokenizer("model", {"continuing_subword_prefix": "▁" * 1000}),
        "CheckpointError",
    ),
    "a prefix of fifty thousand ids": (
        "tokenizer",
        lambda: tokenizer("post_processor", {"special_tokens": {**SPECIAL, "<bos>": {**SPECIAL["<bos>"], **MANY}}}),
        "puts 50,001 ids around each text",
    ),
    "an id beyond int32": (
        "tokenizer",
        lambda: tokenizer("model", {"vocab": {**VOCABULARY, "a": 2**32 - 1}}),
        "success",  # opened; what has the id is refused
    ),
    # ValueError from comparing arrays; a base that float32 cannot hold: ZeroDivisionError
    "an array as the architecture": ("gguf", lambda: gguf("general.architecture", TWO), "general.architecture = array"),
    "an array as a setting": ("gguf", lambda: gguf("gemma-embedding.pooling_type", TWO), "pooling_type has 2 values"),
    "an empty array as a setting": (
        "gguf",
        lambda: gguf("gemma-embedding.pooling_type", NONE),
        "pooling_type has 0 values",
    ),
    "texts as the architecture": (
        "gguf",
        lambda: gguf("general.architecture", TEXTS),
        "general.architecture = <gemma_np",
    ),
    "a base that is zero in float32": (
        "gguf",
        lambda: gguf("gemma-embedding.rope.freq_base", TINY_BASE),
        "expected a positive",
    ),
    "an unused piece that is no UTF-8": (
        "gguf",
        lambda: gguf("tokenizer.ggml.token_type", UNUSED).replace(b"aab", b"\xd4ab"),
        "success",
    ),
    # UnicodeDecodeError; and a kernel that would search the whole table for each pair
    "pieces that are no UTF-8": (
        "pieces",
        lambda: with_arrays(text=load(pieces_file()[0])["text"] | 0x80),
        "is no UTF-8",
    ),
    "a hash table without gaps": ("pieces", lambda: with_arrays(slots=[0] * 8191 + [-1]), "8,191 slots without a gap"),
    "a model without its unknown piece": (
        "tokenizer",
        lambda: tokenizer("model", {"byte_fallback": False, "unk_token": "?"}),
        "CheckpointError",
    ),
}


def fuzzed(*arguments: str | Path) -> str:
    done = subprocess.run([sys.executable, FUZZ, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each input leads to, in a process of its own."""
    folder = tmp_path_factory.mktemp("inputs")
    files = {name: f"{target}-{name.replace(' ', '_')}" for name, (target, _, _) in FOUND.items()}
    for name, file in files.items():
        (folder / file).write_bytes(FOUND[name][1]())
    said = dict(line.split(": ", 1) for line in fuzzed(*TARGETS, "--replay", folder).splitlines())
    return {name: said[file] for name, file in files.items()}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_mended(name: str, outcomes: dict[str, str]) -> None:
    assert re.search(FOUND[name][2], outcomes[name]), outcomes[name]


def test_a_hundred_hostile_inputs_for_each_reader(tmp_path: Path) -> None:
    said = fuzzed(*TARGETS, "--inputs", "100", "--seed", "1", "--out", tmp_path)
    assert said.count(" 0 crashes, {'success'") == len(TARGETS), said  # and some are valid, or nothing is tested
