"""The trained model as a checkpoint folder like EmbeddingGemma's, in bfloat16."""

import shutil
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from make_checkpoint import SMALL, Blocks, write_json, write_modules, write_tokenizer, write_trunk
from model import Nano
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from gemma_np.config import read_config
from gemma_np.weights.names import trunk_shapes


def trunk_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json, from the configuration of the training."""
    model = dict(config["model"])
    del model["heads"]
    layers = [f"{kind}_attention" for kind in model.pop("layers").split()]
    return {
        **SMALL,
        **model,
        "dtype": "bfloat16",
        "layer_types": layers,
        "num_hidden_layers": len(layers),
        "query_pre_attn_scalar": model["head_dim"],
        "vocab_size": config["tokenizer"]["pieces"],
    }


def export(model: Nano, tokenizer: Tokenizer, config: dict[str, Any], out: Path) -> None:
    """Write the folder `out`, which appears only when it is complete."""
    tensors = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))

    def head_weights(number: int, shapes: dict[str, tuple[int, ...]]) -> Blocks:
        return ((name, np.ascontiguousarray(tensors[f"dense.{number}.weight"])) for name in shapes)

    try:
        write_json(folder / "config.json", trunk_config(config))
        parsed = read_config(folder)
        write_tokenizer(folder, tokenizer, parsed.max_positions)
        widths = [parsed.D, *config["model"]["heads"]]
        dense = [(i, o, False, "Identity") for i, o in pairwise(widths)]
        write_modules(folder, parsed.D, dense, head_weights, "bfloat16")
        shapes = trunk_shapes(parsed)
        write_trunk(folder, shapes, ((name, tensors[name]) for name in shapes), "bfloat16")
        folder.chmod(0o755)  # mkdtemp's folders are for the owner alone
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def read_export(folder: Path) -> dict[str, Tensor]:
    """The state of a model, from the folder that `export` wrote of it: the same but for the rounding to bfloat16."""
    tensors = load_file(folder / "model.safetensors")
    for number, name in enumerate(("2_Dense", "3_Dense")):
        tensors[f"dense.{number}.weight"] = load_file(folder / name / "model.safetensors")["linear.weight"]
    return {name: tensor.float() for name, tensor in tensors.items()}
