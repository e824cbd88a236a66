"""What `gemma-np info` prints: what a checkpoint is, its tensors, the memory it takes, which kernels run and why.

Of the weights only headers are read; the tokenizer is opened, which takes a second for Gemma's. It answers also for a
checkpoint that the engine refuses.
"""

import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from gemma_np.checkpoint.bundle import damaged_files, is_bundle
from gemma_np.checkpoint.fingerprint import fingerprint
from gemma_np.checkpoint.folder import open_checkpoint
from gemma_np.checkpoint.source import Settings
from gemma_np.config import Config
from gemma_np.errors import CheckpointError, GemmaError, InputError
from gemma_np.files.safetensors import FLOATS
from gemma_np.kernels.choice import NUMPY
from gemma_np.kernels.cores import usable_cores
from gemma_np.modules import Dense, Modules
from gemma_np.opening import open_source
from gemma_np.pipeline import chosen
from gemma_np.prompts import known_prompts
from gemma_np.weights.loading import Stored, formats_held
from gemma_np.weights.quantize import BITS


def print_info(
    path: Path,
    quantization: str | None = None,
    threads: int | None = None,
    check: bool = False,
    dense: Path | Literal[False] | None = None,
    base: Path | None = None,
) -> None:
    """Print all that is known of a model; then raise the reason, if it cannot be run.

    path           a folder or a GGUF file
    quantization   the formats that a float checkpoint would be loaded with
    threads        how many would compute; None: as many as the cores that this process may use
    check          compare a quantised folder's files with their checksums, too, and print the model's fingerprint
    dense          for GGUF files, see gguf.source.open_gguf_source
    base           for LoRA adapters, see hub.base_of
    """
    print(f"{'GGUF file   ' if os.path.isfile(path) else 'checkpoint  '} {path}")
    printer = Printer(path, threads)
    try:
        if check:
            check_files(path)
        source = open_source(path, dense, base, printer)
        print_memory(source.tensors, quantization if source.quantization is None else None, source.quantization)
        source.open_tokenizer(run=None)
        source.defaults.check_prompt(source.defaults.all_prompts)
    except GemmaError:
        if not printer.printed and os.path.isdir(path):
            with suppress(GemmaError):  # the first reason counts
                printer(open_checkpoint(path))
        print("can run      no")
        raise
    if check:
        print(f"fingerprint  {fingerprint(source, source.quantization, source.defaults.all_prompts)}")
    print("can run      yes")


class Printer:
    """Watches a model being opened, and prints what becomes known of it."""

    def __init__(self, path: Path, threads: int | None) -> None:
        self.path, self.threads = path, threads
        self.printed: set[tuple[Path, int | str]] = set()

    def __call__(self, found: Settings | Mapping[str, Any]) -> None:
        if isinstance(found, Settings):
            print_model(found)
            print_kernels(found.config, found.modules, self.threads)
            return
        new = {name: tensor for name, tensor in found.items() if self._place(name, tensor) not in self.printed}
        self.printed |= {self._place(name, tensor) for name, tensor in found.items()}
        print_tensors(new)

    def _place(self, name: str, tensor: Any) -> tuple[Path, int | str]:
        """Where a tensor is: it is shown under its name in the file, and then under the checkpoint's."""
        return getattr(tensor, "path", self.path), getattr(tensor, "offset", name)


def check_files(folder: Path) -> None:
    """CheckpointError for a bundle whose files are not what was written."""
    if not is_bundle(folder):
        raise InputError(f"{folder} has no checksums to check; folders that `gemma-np quantize` wrote have them")
    if wrong := damaged_files(folder):
        raise CheckpointError(f"{folder}: {'; '.join(wrong)}. Copy the folder again, or quantise again")
    print("checksums    all files are as they were written")


def print_model(settings: Settings) -> None:
    config, modules = settings.config, settings.modules
    layer, L = config.layers[0], len(config.layers)
    sliding = [at.radius for at in config.layers if at.radius is not None]
    heads = " -> ".join(
        ["mean" if modules.include_prompt else "mean without prompt"]
        + [
            f"Dense {head.inputs} to {head.outputs} ({head.activation})" if isinstance(head, Dense) else "Normalize"
            for head in modules.heads
        ]
    )
    window = (
        f"{len(sliding)} see {sliding[0]} tokens to each side, {L - len(sliding)} see all" if sliding else "all see all"
    )
    if settings.base is not None:
        print(f"base         {settings.base}, into which the adapter is merged as it is loaded")
    print(f"layers       {L} of width {config.D}, feed-forward {config.F}; {window}")
    print(f"attention    {layer.N} query heads, {layer.K} key/value heads of size {layer.H}")
    print(f"output       {heads}: {settings.full_dim} dimensions")
    print(f"texts        up to {settings.max_seq_length:,} tokens of {config.V:,}")
    print(f"prompts      {', '.join(known_prompts(settings.defaults.prompts)) or 'none'}")


def print_memory(tensors: Mapping[str, Stored], quantization: str | None, stored: str | None = None) -> None:
    """The embedding table stays in the file; matrices are held as `quantization` says, or as they are stored, vectors
    as float32."""
    formats = formats_held(tensors, quantization)
    layers = {name: tensor for name, tensor in tensors.items() if not name.endswith("embed_tokens.weight")}
    parameters = sum(math.prod(tensor.shape) for tensor in tensors.values())
    dtypes = sorted({tensor.dtype for tensor in tensors.values()})
    size = 0.0
    for name, tensor in layers.items():
        bits = BITS[formats[name]] if len(tensor.shape) == 2 else 32
        size += math.prod(tensor.shape) * bits / 8
    print(f"parameters   {parameters:,} in {', '.join(dtypes)}")
    print(
        f"memory       {size / 1e6:,.0f} MB of weights in {quantization or stored or 'float32'}; "
        "the embedding table stays in the file, rows are read"
    )
    print_held(layers, formats)


def print_held(layers: Mapping[str, Stored], formats: Mapping[str, str]) -> None:
    """Which of the file's formats are held as another."""
    held: dict[str, set[str]] = {}
    for name, tensor in layers.items():
        if len(tensor.shape) == 2 and tensor.dtype not in (*FLOATS, formats[name].upper()):
            held.setdefault(formats[name].replace("f32", "float32"), set()).add(tensor.dtype)
    if held:
        each = (f"{', '.join(sorted(dtypes))} as {format}" for format, dtypes in sorted(held.items()))
        print(f"held         {'; '.join(each)}")


def print_kernels(config: Config, modules: Modules, threads: int | None) -> None:
    column, why = chosen(config, modules)
    print(f"kernels      {column.name if column else NUMPY}: {why}")
    cores = usable_cores()
    print(
        f"threads      {threads if threads and threads <= cores else f'{cores}, the cores that this process may use'}"
    )


def print_tensors(tensors: Mapping[str, Any]) -> None:
    """One line per kind of tensor, not per layer; a layer that differs has its own line."""
    kinds: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
    for name, tensor in tensors.items():
        match = re.search(r"(?:(?<=layers\.)|(?<=^blk\.))\d+(?=\.)", name)
        kind = f"{name[: match.start()]}*{name[match.end() :]}" if match else name
        kinds.setdefault((kind, tensor.dtype, tensor.shape), []).extend([int(match[0])] if match else [])
    for (kind, dtype, shape), layers in kinds.items():
        where = f"layers {', '.join(spans(layers))}" if layers else ""
        print(f"tensor       {kind:<46} {dtype:<5} {list(shape)!s:<16} {where}".rstrip())


def spans(numbers: list[int]) -> list[str]:
    """[0, 1, 2, 5] -> ["0-2", "5"]"""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return [f"{a}-{b}" if a < b else f"{a}" for a, b in found]
