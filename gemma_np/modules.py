"""modules.json -> what follows the trunk: mean pooling, then any chain of Dense and Normalize.

Both generations of sentence-transformers' files are read: `pooling_mode_mean_tokens: true` and 6.2's
`pooling_mode: "mean"`, `sentence_transformers.models.Dense` and `sentence_transformers.base.modules.dense.Dense`.
"""

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gemma_np.config import Config
from gemma_np.errors import ConfigError
from gemma_np.files.mapped import read_json, read_json_object

POOLING_MODES = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
MAX_MODULES = 100  # each has its own file, or all have the same large one


@dataclass(frozen=True)
class Dense:
    """activation(x @ linear.weight.T + linear.bias); sentence-transformers' Dense.

    name             the module's folder, `2_Dense`
    inputs, outputs  widths
    has_bias         whether linear.bias exists
    activation       "Identity" or "Tanh"
    """

    name: str
    inputs: int
    outputs: int
    has_bias: bool
    activation: str


@dataclass(frozen=True)
class Normalize:
    """x / |x|; sentence-transformers' Normalize."""

    name: str


@dataclass(frozen=True)
class Modules:
    """A checkpoint's modules.

    trunk            folder of config.json and model.safetensors inside the checkpoint, "" for its root
    pooling          the Pooling module's folder
    include_prompt   whether the prompt's tokens count in the mean
    heads            what follows the pooling, in order
    """

    trunk: str
    pooling: str
    include_prompt: bool
    heads: tuple[Dense | Normalize, ...]

    @property
    def dense(self) -> tuple[Dense, ...]:
        """The Dense modules, in order."""
        return tuple(head for head in self.heads if isinstance(head, Dense))

    @property
    def normalizes(self) -> bool:
        """Whether vectors leave the model with length 1."""
        return bool(self.heads) and isinstance(self.heads[-1], Normalize)


def read_modules(folder: Path) -> list[dict[str, Any]]:
    """The entries of modules.json as {"type": class name, "path": folder}, checked."""
    path = folder / "modules.json"
    if not os.path.isfile(path):  # os.path: False for a path that cannot be
        raise ConfigError(
            f"{path} is missing: without it pooling and Dense heads are unknown. A folder saved by transformers alone "
            "lacks it; copy modules.json, 1_Pooling, 2_Dense, 3_Dense and 4_Normalize from the model it came from"
        )
    entries = read_json(path)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{path}: expected a list of modules, each an object with type and path")
    if len(entries) > MAX_MODULES:
        raise ConfigError(f"{path} lists {len(entries):,} modules, expected at most {MAX_MODULES}")
    modules = []
    for entry in entries:
        kind, where = entry.get("type"), entry.get("path")
        if not isinstance(kind, str) or not isinstance(where, str):
            raise ConfigError(f"{path}: {entry!r} has no type and path")
        if PurePosixPath(where).is_absolute() or ".." in PurePosixPath(where).parts or "\\" in where or "\0" in where:
            raise ConfigError(f"{path}: {where!r} leads out of the checkpoint's folder")
        if len(where.encode()) > 255:
            raise ConfigError(f"{path}: {where[:40]!r}... is longer than a folder's name can be")
        if not kind.startswith("sentence_transformers."):
            raise ConfigError(f"{path}: {kind} is code of the model's own, which is never run")
        modules.append({"type": kind.rpartition(".")[2], "path": where})
    return modules


def resolve_modules(folder: Path) -> Modules:
    """Read modules.json and the config of each module; ConfigError names what is not served."""
    path = folder / "modules.json"
    entries = read_modules(folder)
    kinds = [entry["type"] for entry in entries]
    for kind in kinds:
        if kind not in ("Transformer", "Pooling", "Dense", "Normalize"):
            raise ConfigError(
                f"{path}: the module {kind} is not served; expected Transformer, Pooling, Dense, Normalize"
            )
    if kinds[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & set(kinds[2:]):
        raise ConfigError(
            f"{path}: modules are {', '.join(kinds)}; expected Transformer, Pooling, then Dense, Normalize"
        )
    with_weights = [PurePosixPath(entry["path"]) for entry in entries if entry["type"] in ("Transformer", "Dense")]
    if len(set(with_weights)) < len(with_weights):
        raise ConfigError(f"{path}: two modules have their weights in the same folder; expected one for each")
    trunk, pooling = entries[0]["path"], entries[1]["path"]
    heads = tuple(
        _dense(folder, entry["path"]) if entry["type"] == "Dense" else _normalize(folder, entry["path"])
        for entry in entries[2:]
    )
    return Modules(trunk, pooling, _include_prompt(folder / pooling), heads)


def check_widths(config: Config, modules: Modules, folder: Path) -> int:
    """The size of the model's vectors; ConfigError where one module's outputs are not the next one's inputs."""
    width = config.D
    for head in modules.dense:
        if head.inputs != width:
            raise ConfigError(
                f"{folder / head.name / 'config.json'}: in_features = {head.inputs}, but it is given {width}"
            )
        width = head.outputs
    return width


def _include_prompt(folder: Path) -> bool:
    path = folder / "config.json"
    settings = read_json_object(path)
    mode = settings.get("pooling_mode")
    if mode is None:
        active = [name for name in POOLING_MODES if settings.get(f"pooling_mode_{name}")]
        mode = ["mean" if name == "mean_tokens" else name for name in active] or "mean"
    if mode not in ("mean", ["mean"]):
        raise ConfigError(f"{path}: pooling mode {mode!r} is not served; expected 'mean'")
    include_prompt = settings.get("include_prompt", True)
    if not isinstance(include_prompt, bool):
        raise ConfigError(f"{path}: include_prompt = {include_prompt!r}, expected true or false")
    return include_prompt


def _dense(folder: Path, name: str) -> Dense:
    path = folder / name / "config.json"
    settings = read_json_object(path)
    inputs, outputs = (settings.get(key) for key in ("in_features", "out_features"))
    if type(inputs) is not int or type(outputs) is not int or not (0 < inputs < 2**31 and 0 < outputs < 2**31):
        raise ConfigError(f"{path}: in_features, out_features = {inputs!r}, {outputs!r}, expected positive integers")
    activation = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    kind = activation.rpartition(".")[2] if isinstance(activation, str) and activation.startswith("torch.nn.") else ""
    if kind not in ("Identity", "Tanh"):
        raise ConfigError(f"{path}: activation_function = {activation!r}; torch.nn's Identity and Tanh are served")
    if settings.get("use_residual"):
        raise ConfigError(f"{path}: use_residual = true is not served")
    _refuse_rerouting(path, settings)
    has_bias = settings.get("bias", True)
    if not isinstance(has_bias, bool):
        raise ConfigError(f"{path}: bias = {has_bias!r}, expected true or false")
    return Dense(name, inputs, outputs, has_bias, kind)


def _normalize(folder: Path, name: str) -> Normalize:
    path = folder / name / "config.json"  # 6.2 writes one; before there was none, often not even the folder
    if os.path.isfile(path):
        _refuse_rerouting(path, read_json_object(path))
    return Normalize(name)


def _refuse_rerouting(path: Path, settings: dict[str, Any]) -> None:
    """Modules may be told to read or write another array than the sentence's; none of ours does."""
    for key in ("module_input_name", "module_output_name"):
        if settings.get(key, "sentence_embedding") not in ("sentence_embedding", None):
            raise ConfigError(f"{path}: {key} = {settings[key]!r} is not served; expected 'sentence_embedding'")
