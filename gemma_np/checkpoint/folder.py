"""A model in a folder, opened: a checkpoint as Hugging Face saves it, or a quantised model (bundle.py)."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from gemma_np.checkpoint.bundle import bundle_tensors, is_bundle, read_manifest
from gemma_np.checkpoint.defaults import read_defaults, read_max_seq_length
from gemma_np.checkpoint.source import Settings, Source, Watch, unwatched
from gemma_np.config import Config, read_config
from gemma_np.errors import CheckpointError
from gemma_np.files.mapped import read_json_object
from gemma_np.files.safetensors import Tensor, open_safetensors
from gemma_np.modules import Modules, check_widths, resolve_modules
from gemma_np.tokens.json_file import from_tokenizer_json
from gemma_np.tokens.package import TOKENIZER_JSON
from gemma_np.tokens.pieces import Pieces, folder_pieces
from gemma_np.tokens.tokenizer import Tokenizer
from gemma_np.weights.foreign import refuse_quantized
from gemma_np.weights.loading import Stored
from gemma_np.weights.names import check_floats, check_tensors, dense_shapes, trunk_shapes, without_prefix

ADAPTER_CONFIG = "adapter_config.json"
# A checkpoint's settings: what the engine reads, and what a quantised folder keeps for the way back to float32.
SETTINGS_FILES = [
    "config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a LoRA adapter, see adapter.py."""
    return os.path.isfile(folder / ADAPTER_CONFIG)


def open_folder(path: Path, watch: Watch = unwatched) -> Source:
    """Open a checkpoint's folder or a quantised one. Raises CheckpointError, ConfigError and WeightsError.

    watch   see Watch
    """
    if not os.path.isfile(path / "config.json") and not os.path.isfile(path / "modules.json"):
        raise CheckpointError(f"{path} has no config.json; expected the folder of a checkpoint")
    root = read_config(path) if os.path.isfile(path / "config.json") else None  # first: it says what model this is
    modules = resolve_modules(path)
    trunk = path / modules.trunk
    config = root if root and trunk == path else read_config(trunk)
    full_dim = check_widths(config, modules, path)
    defaults = read_defaults(path)
    settings = Settings(path.absolute(), config, modules, full_dim, defaults, read_max_seq_length(trunk, config))
    watch(settings)
    quantization = read_manifest(path)[0] if is_bundle(path) else None
    tensors = (
        bundle_tensors(path, config, modules) if quantization else checkpoint_tensors(path, config, modules, watch)
    )
    watch(tensors)
    return Source(
        **vars(settings),
        tensors=tensors,
        quantization=quantization,
        files=settings_files(path, modules),
        tokenizer=trunk,
        pieces=partial(pieces_of, trunk),
        open_tokenizer=partial(Tokenizer, trunk, config),
    )


def settings_files(folder: Path, modules: Modules) -> dict[str, Path]:
    """The JSON files in a checkpoint's folders that say how it is used, by their names in it."""
    places = dict.fromkeys(["", modules.trunk, modules.pooling, *(head.name for head in modules.heads)])
    names = [(PurePosixPath(place) / name).as_posix() for place in places for name in SETTINGS_FILES]
    return {name: folder / name for name in names if os.path.isfile(folder / name)}  # a device would fill a disk


def pieces_of(trunk: Path) -> Pieces:
    """A folder's tokenizer as arrays: tokenizer.safetensors, else made of tokenizer.json."""
    pieces = folder_pieces(trunk)
    return from_tokenizer_json(trunk / TOKENIZER_JSON) if pieces is None else pieces


def open_checkpoint(folder: Path) -> dict[str, Tensor]:
    """Map `model.safetensors`, or all the files that `model.safetensors.index.json` names, into one table."""
    index = folder / "model.safetensors.index.json"
    if os.path.isfile(folder / "model.safetensors") or not os.path.isfile(index):
        return open_safetensors(weights_file(folder))
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to file names; download it again")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:
            raise CheckpointError(f"{index} names {file!r}, expected the plain name of a file in the same folder")
        for name, tensor in open_safetensors(folder / file).items():
            if weight_map.get(name) == file:  # the index decides where a name occurs in several files
                tensors[name] = tensor
    if absent := sorted(weight_map.keys() - tensors.keys()):
        raise CheckpointError(f"{folder / weight_map[absent[0]]} lacks {absent[0]}, which {index.name} places there")
    return tensors


def checkpoint_tensors(
    folder: Path, config: Config, modules: Modules, watch: Watch = unwatched
) -> Mapping[str, Stored]:
    """All tensors of a checkpoint, checked: the trunk's by their names, a Dense module's as `2_Dense/linear.weight`."""
    trunk = folder / modules.trunk
    tensors = open_checkpoint(trunk)
    watch(tensors)
    tensors = without_prefix(tensors)
    refuse_quantized(tensors, trunk_shapes(config))
    check_tensors(tensors, trunk_shapes(config), trunk / "config.json")
    check_floats(tensors, trunk_shapes(config))
    found = {name: tensors[name] for name in trunk_shapes(config)}  # others may have any name and shape
    return found | dense_tensors(folder, modules)


def dense_tensors(folder: Path, modules: Modules) -> dict[str, Tensor]:
    """The Dense modules' tensors of a checkpoint, checked."""
    found: dict[str, Tensor] = {}
    for head in modules.dense:
        parts = open_safetensors(weights_file(folder / head.name))
        refuse_quantized(parts, dense_shapes(head))
        check_tensors(parts, dense_shapes(head), folder / head.name / "config.json")
        check_floats(parts, dense_shapes(head))
        found |= {f"{head.name}/{name}": parts[name] for name in dense_shapes(head)}
    return found


def weights_file(folder: Path) -> Path:
    """A folder's model.safetensors; CheckpointError where there are pickles in its place."""
    single = folder / "model.safetensors"
    if not os.path.isfile(single) and any(folder.glob("*.bin")):
        raise CheckpointError(
            f"{folder} has its weights in pickle files (*.bin), which can run any code when they are opened; "
            "save the model as model.safetensors"
        )
    return single
