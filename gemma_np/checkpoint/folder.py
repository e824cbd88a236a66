"""A checkpoint's folder, as Hugging Face saves it: its weights are found and mapped, its settings read and checked."""

import os
from pathlib import Path

from gemma_np.config import Config
from gemma_np.errors import CheckpointError
from gemma_np.files.mapped import read_json_object
from gemma_np.files.safetensors import Tensor, open_safetensors
from gemma_np.modules import Dense, Modules
from gemma_np.weights.names import check_floats, check_tensors, dense_shapes, trunk_shapes, without_prefix


def open_checkpoint(folder: Path) -> dict[str, Tensor]:
    """Map `model.safetensors`, or all the files that `model.safetensors.index.json` names, into one table."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if os.path.isfile(single) or not os.path.isfile(index):  # os.path: False for a path that cannot be
        if not os.path.isfile(single) and any(folder.glob("*.bin")):
            raise CheckpointError(
                f"{folder} has its weights in pickle files (*.bin), which can run any code when they are opened; "
                "save the model as model.safetensors"
            )
        return open_safetensors(single)

    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to file names; download it again")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:
            raise CheckpointError(f"{index} names {file!r}, which is not a plain file name beside it")
        for name, tensor in open_safetensors(folder / file).items():
            if weight_map.get(name) == file:  # the index decides where a name occurs in several files
                tensors[name] = tensor
    if absent := sorted(weight_map.keys() - tensors.keys()):
        raise CheckpointError(f"{folder / weight_map[absent[0]]} lacks {absent[0]}, which {index.name} places there")
    return tensors


def checkpoint_tensors(folder: Path, config: Config, modules: Modules) -> dict[str, Tensor]:
    """All tensors of a checkpoint, checked: the trunk's by their names, a Dense module's as `2_Dense/linear.weight`."""
    trunk = folder / modules.trunk
    tensors = without_prefix(open_checkpoint(trunk))
    check_tensors(tensors, trunk_shapes(config), trunk / "config.json")
    check_floats(tensors, trunk_shapes(config))
    found = {name: tensors[name] for name in trunk_shapes(config)}  # others may have any name and shape
    return found | dense_tensors(folder, modules)


def dense_tensors(folder: Path, modules: Modules) -> dict[str, Tensor]:
    """The Dense modules' tensors of a checkpoint, checked."""
    found: dict[str, Tensor] = {}
    for head in modules.heads:
        if isinstance(head, Dense):
            parts = open_safetensors(folder / head.name / "model.safetensors")
            check_tensors(parts, dense_shapes(head), folder / head.name / "config.json")
            check_floats(parts, dense_shapes(head))
            found |= {f"{head.name}/{name}": parts[name] for name in dense_shapes(head)}
    return found
