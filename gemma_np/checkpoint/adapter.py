"""A LoRA adapter's folder, as PEFT and sentence-transformers save it, opened: merged into its base as it is loaded.

    adapter_config.json         see lora.py
    adapter_model.safetensors   base_model.model.layers.{i}.self_attn.q_proj.lora_A.weight [r, I] and .lora_B.weight
                                [O, r], for any of a layer's seven matrices; one more `model.` before `layers` where
                                PEFT was given a language model
    modules.json, 2_Dense, ...  modules, prompts, tokenizer

sentence-transformers saves the latter in full, with Dense heads that may be trained, too: they win over the base's. A
folder of PEFT's own has none of them.
"""

import os
import re
from functools import partial
from pathlib import Path, PurePosixPath

from gemma_np.checkpoint.defaults import read_defaults, read_max_seq_length
from gemma_np.checkpoint.folder import SETTINGS_FILES, dense_tensors, is_adapter, open_folder, pieces_of, settings_files
from gemma_np.checkpoint.lora import Lora, read_lora
from gemma_np.checkpoint.source import Settings, Source, Watch, unwatched
from gemma_np.errors import CheckpointError, ConfigError, WeightsError
from gemma_np.files.safetensors import Tensor, open_safetensors
from gemma_np.modules import Modules, check_widths, resolve_modules
from gemma_np.tokens.package import TOKENIZER_JSON
from gemma_np.tokens.pieces import FILE
from gemma_np.tokens.tokenizer import Tokenizer
from gemma_np.weights.blocks import PackedTensor
from gemma_np.weights.derived import MergedTensor, PartTensor
from gemma_np.weights.loading import Stored
from gemma_np.weights.names import FUSED, IN_TURN, check_floats, layer_tensors, tensor_name

WEIGHTS = "adapter_model.safetensors"
KEY = re.compile(
    r"base_model\.model\.((?:model\.)?layers\.\d+\.(?:self_attn|mlp)\.[a-z]+_proj)\.lora_([AB])\.weight", re.A
)


def open_adapter(path: Path, base: Path, watch: Watch = unwatched) -> Source:
    """Open an adapter's folder on its base, a checkpoint's folder or a quantised one.

    watch   see checkpoint.source.Watch

    Raises CheckpointError, ConfigError and WeightsError.
    """
    lora = read_lora(path)
    check_places(path, base)
    changes = open_safetensors(path / WEIGHTS)
    watch(changes)
    under = open_folder(base)
    own = os.path.isfile(path / "modules.json")
    modules = resolve_modules(path) if own else under.modules
    if own and modules.trunk:
        raise ConfigError(f"{path / 'modules.json'}: the trunk lies in {modules.trunk!r}, but the adapter beside it")
    full_dim = check_widths(under.config, modules, path)
    prompts = os.path.isfile(path / "config_sentence_transformers.json")
    defaults = read_defaults(path) if prompts else under.defaults
    length = under.max_seq_length
    if os.path.isfile(path / "sentence_bert_config.json"):
        length = read_max_seq_length(path, under.config)
    settings = Settings(path.absolute(), under.config, modules, full_dim, defaults, length, base=base.absolute())
    watch(settings)
    tensors = merged(plain(under), changes, lora, under)
    if own:
        trunk = {name: tensor for name, tensor in tensors.items() if "/" not in name}
        tensors = trunk | dense_tensors(path, modules)
    watch(tensors)
    pieces = path if any(os.path.isfile(path / name) for name in (FILE, TOKENIZER_JSON)) else under.tokenizer
    assert pieces is not None
    return Source(
        **vars(settings),
        tensors=tensors,
        quantization=None,
        files=both_files(path, modules, under, own),
        tokenizer=pieces,
        pieces=partial(pieces_of, pieces),
        open_tokenizer=partial(Tokenizer, pieces, under.config),
    )


def check_places(path: Path, base: Path) -> None:
    """CheckpointError for an adapter that is not alone or not whole, or whose base is no checkpoint."""
    if any(os.path.isfile(path / name) for name in ("model.safetensors", "model.safetensors.index.json")):
        raise CheckpointError(
            f"{path} has both an adapter and a whole model's weights, and they may not mean the same; remove "
            "adapter_config.json to use the model, or model.safetensors to use the adapter"
        )
    if not os.path.isfile(path / WEIGHTS) and os.path.isfile(path / "adapter_model.bin"):
        raise CheckpointError(
            f"{path} has its weights in a pickle file (adapter_model.bin), which can run any code when it is opened; "
            f"save the adapter as {WEIGHTS}"
        )
    if not os.path.isdir(base):
        raise CheckpointError(f"{path}: its base, {base}, is one file; an adapter's base is the folder of a checkpoint")
    if is_adapter(base):
        raise CheckpointError(
            f"{path}: its base, {base}, is an adapter, too; merge that one first: `gemma-np dequantize {base} -o DIR`"
        )
    if not os.path.isfile(path / "modules.json") and (heads := sorted(path.glob("*_Dense"))):
        raise CheckpointError(
            f"{path} has {heads[0].name}, but no modules.json that says how it is used; copy that, too"
        )


def plain(source: Source) -> dict[str, Stored]:
    """A model's tensors by the checkpoint's names, matrices that are packed as parts of what they are packed in."""
    found: dict[str, Stored] = {}
    for name, tensor in source.tensors.items():
        if not isinstance(tensor, PackedTensor):
            found[name] = tensor
        elif not any(f".{fused}." in name for fused in FUSED):
            found[name] = PartTensor(name, tensor.shape, tensor, (tensor.shape[0],), 0, False)
    for i in range(len(source.config.layers)):
        fields = layer_tensors(source.config, i)
        for fused, parts in FUSED.items():
            whole = source.tensors.get(tensor_name(i, fused))
            if isinstance(whole, PackedTensor):
                rows = tuple(fields[part][1][0] for part in parts)
                for k, part in enumerate(parts):
                    name, shape = fields[part]
                    found[name] = PartTensor(name, (shape[0], shape[1]), whole, rows, k, fused in IN_TURN)
    return found


def merged(tensors: dict[str, Stored], changes: dict[str, Tensor], lora: Lora, under: Source) -> dict[str, Stored]:
    """The tensors, those with a change merged. WeightsError for changes that are not plain LoRA, or do not fit."""
    path, found = lora.path.with_name(WEIGHTS), dict(tensors)
    check_floats(changes, changes)
    for module, pair in paired(path, changes).items():
        name, rank = f"{module.removeprefix('model.')}.weight", lora.rank_of(module)
        tensor = found.get(name)
        if not isinstance(tensor, Tensor | PartTensor):
            twice = (
                "is changed twice"
                if tensor
                else f"is no matrix of the base, {under.path}, of {len(under.config.layers)} layers"
            )
            raise WeightsError(f"{path}: {pair['A'].name}: {name} {twice}; is it another model's adapter?")
        outputs, inputs = tensor.shape
        for half, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            if pair[half].shape != shape:
                raise WeightsError(
                    f"{path}: {pair[half].name} has shape {pair[half].shape}, expected {shape}: {lora.path.name} says "
                    f"rank {rank}, and the matrix has shape {tensor.shape} in the base, {under.path}. It is another "
                    "model's adapter, or needs another base (--base, in Python base=)"
                )
        found[name] = MergedTensor(name, (outputs, inputs), tensor, pair["A"], pair["B"], lora.scale_of(module))
    return found


def paired(path: Path, changes: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The two halves of each change by its module's name. WeightsError for what is unknown, or alone."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in changes.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise WeightsError(
                f"{path}: {key} is not served; expected LoRA of the layers' matrices, "
                "base_model.model.layers.0.self_attn.q_proj.lora_A.weight and so on"
            )
        pair = found.setdefault(match[1], {})
        if match[2] in pair:
            raise WeightsError(f"{path}: {key} and {pair[match[2]].name} are both there; expected one")
        pair[match[2]] = tensor
    for module, pair in found.items():
        if len(pair) < 2:
            there = next(iter(pair.values())).name
            missing = there.replace("lora_A", "lora_B") if "A" in pair else there.replace("lora_B", "lora_A")
            raise WeightsError(f"{path}: {module} has {there}, but {missing} is missing; save the adapter again")
    if not found:
        raise WeightsError(f"{path} has no tensors; save the adapter again")
    return found


def both_files(path: Path, modules: Modules, under: Source, own: bool) -> dict[str, Path]:
    """The JSON files of the merged model by their names in a folder: what lies beside the adapter, else the base's."""
    files = settings_files(path, modules) if own else dict(under.files)
    for name in SETTINGS_FILES:
        of_trunk = name not in ("modules.json", "config_sentence_transformers.json")
        here, there = (PurePosixPath(each.trunk if of_trunk else "") / name for each in (modules, under.modules))
        if name != "config.json" and os.path.isfile(path / name):
            files[here.as_posix()] = path / name
        elif there.as_posix() in under.files:
            files[here.as_posix()] = under.files[there.as_posix()]
    return files
