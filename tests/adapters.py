"""LoRA adapters as PEFT and sentence-transformers save them, and checkpoints with the same change merged, in NumPy."""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from gemma_np.arrays import Float32
from gemma_np.files.mapped import read_json_object

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
ALL = (*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
# As PEFT 0.21.2 writes it.
CONFIG: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": "",
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 8,
    "lora_bias": False,
    "lora_dropout": 0.0,
    "lora_ga_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "monteclora_config": None,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": 4,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["q_proj", "v_proj"],
    "target_parameters": None,
    "task_type": "FEATURE_EXTRACTION",
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
    "velora_config": None,
}
BESIDE = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "tokenizer.json")


def halves(
    base: Path, modules: Sequence[str] = ALL, rank: Callable[[str], int] = lambda module: 4, seed: int = 0
) -> dict[str, Float32]:
    """lora_A and lora_B of a checkpoint's modules, named as in the model, as large as what they change."""
    rng, found = np.random.default_rng(seed), {}
    for name, w in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module.endswith(tuple(modules)):
            r = rank(module)
            found[f"{module}.lora_A"] = rng.normal(0, w.std(), (r, w.shape[1])).astype(np.float32)
            found[f"{module}.lora_B"] = rng.normal(0, 0.5, (w.shape[0], r)).astype(np.float32)
    return found


def write(
    folder: Path,
    base: Path | str,
    changes: Mapping[str, Any],
    prefix: str = "base_model.model.",
    **config: Any,
) -> Path:
    """PEFT's folder of an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**CONFIG, "base_model_name_or_path": str(base), **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2))
    tensors = {f"{prefix}{name}.weight": np.ascontiguousarray(array) for name, array in changes.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def beside(base: Path, folder: Path) -> Path:
    """What sentence-transformers saves beside an adapter: modules in full, and the tokenizer."""
    for name in BESIDE:
        shutil.copy(base / name, folder)
    for module in sorted(base.glob("[1-9]_*")):
        shutil.copytree(module, folder / module.name)
    return folder


def merged(base: Path, folder: Path, changes: Mapping[str, Float32], scale: Callable[[str], float]) -> Path:
    """A checkpoint with W + scale B A, added up in float64."""
    shutil.copytree(base, folder)
    tensors = {name: w.astype(np.float64) for name, w in load_file(base / "model.safetensors").items()}
    for name, a in changes.items():
        if name.endswith(".lora_A"):
            module = name.removesuffix(".lora_A")
            tensors[f"{module}.weight"] += scale(module) * (np.float64(changes[f"{module}.lora_B"]) @ np.float64(a))
    save_file({name: w.astype(np.float32) for name, w in tensors.items()}, folder / "model.safetensors")
    return folder


def plain_scale(module: str) -> float:
    return CONFIG["lora_alpha"] / CONFIG["r"]


def stabilised_scale(module: str) -> float:
    return CONFIG["lora_alpha"] / math.sqrt(CONFIG["r"])


def edit(path: Path, **changes: Any) -> None:
    """Change a JSON file's entries."""
    path.write_text(json.dumps({**read_json_object(path), **changes}))
