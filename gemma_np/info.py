"""`gemma-np info`: what a checkpoint is, its tensors, the memory it takes, which kernels run and why.

Of the weights only headers are read; the tokenizer is opened, which takes a second for Gemma's. It answers also for a
checkpoint that the engine refuses.
"""

import math
import re
from contextlib import suppress
from pathlib import Path

from gemma_np import kernels
from gemma_np.checkpoint import Tensor, open_checkpoint, open_safetensors
from gemma_np.config import Config, read_config
from gemma_np.errors import GemmaError
from gemma_np.kernels.team import usable_cores
from gemma_np.modules import Dense, Modules, check_widths, read_defaults, read_max_seq_length, resolve_modules
from gemma_np.pipeline import chosen
from gemma_np.prompts import known_prompts
from gemma_np.quantize import BITS, format_of
from gemma_np.tokenizer import Tokenizer
from gemma_np.weights import check_tensors, dense_shapes, trunk_shapes, without_prefix


def report(folder: Path, quantization: str | None = None, threads: int | None = None) -> None:
    """Print all that is known of a checkpoint; then raise the reason, if it cannot be run.

    quantization   the formats that it would be loaded with
    threads        how many would compute; None: as many as the cores that this process may use
    """
    print(f"checkpoint   {folder}")
    tensors: dict[str, Tensor] = {}
    try:
        config = read_config(folder) if (folder / "config.json").is_file() else None
        modules = resolve_modules(folder)
        config = config if config and not modules.trunk else read_config(folder / modules.trunk)
        print_model(folder, config, modules)
        tensors = open_checkpoint(folder / modules.trunk)
        print_kernels(config, modules, threads)
        print_tensors(tensors)
        everything = dict(tensors)
        check_tensors(without_prefix(tensors), trunk_shapes(config), folder / modules.trunk / "config.json")
        for head in modules.heads:
            if isinstance(head, Dense):
                parts = open_safetensors(folder / head.name / "model.safetensors")
                named = {f"{head.name}/{name}": tensor for name, tensor in parts.items()}
                print_tensors(named)
                check_tensors(parts, dense_shapes(head), folder / head.name / "config.json")
                everything |= named
        print_memory(everything, quantization)
        Tokenizer(folder / modules.trunk, config)
    except GemmaError:
        with suppress(GemmaError):  # the first reason counts
            print_tensors({} if tensors else open_checkpoint(folder))
        print("can run      no")
        raise
    print("can run      yes")


def print_model(folder: Path, config: Config, modules: Modules) -> None:
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
    print(f"layers       {L} of width {config.D}, feed-forward {config.F}; {window}")
    print(f"attention    {layer.N} query heads, {layer.K} key/value heads of size {layer.H}")
    print(f"output       {heads}: {check_widths(config, modules, folder)} dimensions")
    print(f"texts        up to {read_max_seq_length(folder / modules.trunk, config):,} tokens of {config.V:,}")
    prompts = read_defaults(folder).prompts
    print(f"prompts      {', '.join(known_prompts(prompts)) or 'none'}")


def print_memory(tensors: dict[str, Tensor], quantization: str | None) -> None:
    """The embedding table stays in the file; matrices are held as `quantization` says, vectors as float32."""
    layers = {name: tensor for name, tensor in tensors.items() if not name.endswith("embed_tokens.weight")}
    parameters = sum(math.prod(tensor.shape) for tensor in tensors.values())
    dtypes = sorted({tensor.dtype for tensor in tensors.values()})
    size = 0.0
    for name, tensor in layers.items():
        bits = BITS[format_of(quantization, name)] if len(tensor.shape) == 2 else 32
        size += math.prod(tensor.shape) * bits / 8
    print(f"parameters   {parameters:,} in {', '.join(dtypes)}")
    print(
        f"memory       {size / 1e6:,.0f} MB of weights in {quantization or 'float32'}; "
        "the embedding table stays in the file, rows are read"
    )


def print_kernels(config: Config, modules: Modules, threads: int | None) -> None:
    column, why = chosen(config, modules)
    print(f"kernels      {column.name if column else kernels.NUMPY}: {why}")
    print(f"threads      {threads or f'{usable_cores()}, the cores that this process may use'}")


def print_tensors(tensors: dict[str, Tensor]) -> None:
    """One line per kind of tensor, not per layer; a layer that differs has a line of its own."""
    kinds: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
    for name, tensor in tensors.items():
        match = re.search(r"(?<=layers\.)\d+(?=\.)", name)
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
