"""adapter_config.json, as PEFT writes it: the rank and scale of a LoRA adapter, and the model that it changes.

What would compute anything but W + scale B A is refused by name. Source: PEFT 0.21, tuners/lora/config.py (the keys),
layer.py and model.py (what they do).
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_np.checkpoint.folder import ADAPTER_CONFIG
from gemma_np.config import positive_int
from gemma_np.errors import ConfigError
from gemma_np.files.mapped import read_json_object

MAX_PATTERNS = 300  # a name for each matrix of 24 layers makes 168
Patterns = tuple[tuple[re.Pattern[str], float], ...]
# Keys that are read here, and those that only say how the adapter was trained, or which program wrote it.
READ = {"peft_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "use_rslora", "bias"}
READ |= {"rank_pattern", "alpha_pattern", "init_lora_weights"}
TRAINING = {"auto_mapping", "ensure_weight_tying", "exclude_modules", "inference_mode", "layers_pattern"}
TRAINING |= {"layers_to_transform", "lora_dropout", "peft_version", "runtime_config", "target_modules", "task_type"}
TRAINING |= {"megatron_config", "megatron_core", "corda_config", "eva_config", "loftq_config", "lora_ga_config"}
TRAINING |= {"qalora_group_size", "fan_in_fan_out"}  # the latter is about Conv1D: PEFT ignores it for linear layers
PLAIN_START = (True, False, None, "gaussian", "eva", "orthogonal")  # other ways to begin change W itself
MERGE = (
    "Merge it where it was trained (PEFT: PeftModel.from_pretrained(...).merge_and_unload().save_pretrained(...)), and "
    "open what that gives"
)


@dataclass(frozen=True)
class Lora:
    """What adapter_config.json says.

    path           that file
    base           the path or hub id of the model that the adapter changes, and its revision; None: unsaid
    rank, alpha    of every matrix, but for those whose names a pattern fits
    stabilised     whether the scale is alpha / sqrt(rank), instead of alpha / rank
    """

    path: Path
    base: str | None
    revision: str | None
    rank: int
    alpha: float
    stabilised: bool
    ranks: Patterns
    alphas: Patterns

    def rank_of(self, module: str) -> int:
        """Of the matrix of a module, named as in the model: "layers.0.self_attn.q_proj"."""
        return int(first_fitting(self.ranks, module, self.rank))

    def scale_of(self, module: str) -> float:
        rank = self.rank_of(module)
        return first_fitting(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.stabilised else rank)


def read_lora(folder: Path) -> Lora:
    """Read and check `folder/adapter_config.json`; ConfigError names what is not plain LoRA."""
    path = folder / ADAPTER_CONFIG
    settings = read_json_object(path)
    _refuse_unserved(path, settings)
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    for key, value in (("base_model_name_or_path", base), ("revision", revision)):
        if not isinstance(value, str | None):
            raise ConfigError(f"{path}: {key} = {value!r}, expected a string or null")
    return Lora(
        path,
        base or None,
        revision,
        positive_int(path, "r", settings.get("r", 8)),
        _number(path, "lora_alpha", settings.get("lora_alpha", 8)),
        settings.get("use_rslora") is True,
        _patterns(path, settings, "rank_pattern", positive_int),
        _patterns(path, settings, "alpha_pattern", _number),
    )


def _refuse_unserved(path: Path, settings: dict[str, Any]) -> None:
    """ConfigError for an adapter of another kind."""
    if (kind := settings.get("peft_type")) != "LORA":
        raise ConfigError(f"{path}: peft_type = {kind!r} is not served; expected 'LORA'. {MERGE}")
    if settings.get("use_rslora") not in (True, False, None):
        raise ConfigError(f"{path}: use_rslora = {settings['use_rslora']!r}, expected true or false")
    if (start := settings.get("init_lora_weights")) not in PLAIN_START:
        raise ConfigError(f"{path}: init_lora_weights = {start!r} may have changed the base, too. {MERGE}")
    if (bias := settings.get("bias", "none")) != "none":
        raise ConfigError(f"{path}: bias = {bias!r} is not served; expected 'none'. {MERGE}")
    for key, value in settings.items():
        if key not in READ | TRAINING and value not in (None, False, 0, "", [], {}):
            raise ConfigError(f"{path}: {key} = {value!r}: this is no plain LoRA, and is not served. {MERGE}")


def _number(path: Path, key: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not -1e30 < value < 1e30:
        raise ConfigError(f"{path}: {key} = {value!r}, expected a number")
    return float(value)


def _patterns(path: Path, settings: dict[str, Any], key: str, number: Callable[[Path, str, object], float]) -> Patterns:
    """Numbers for some modules, by patterns of their names: regular expressions, most often plain names.

    ConfigError for those that could take long to match, which nobody writes but to harm.
    """
    patterns = settings.get(key) or {}
    if not isinstance(patterns, dict):
        raise ConfigError(f"{path}: {key} = {patterns!r}, expected an object in braces")
    found = []
    for pattern, value in patterns.items():
        involved = len(re.findall(r"[*+{]", pattern)) > 2 or re.search(r"\)[*+?{]|\(\?|\\[1-9]", pattern)
        if involved or len(pattern) > 1000 or len(patterns) > MAX_PATTERNS:
            raise ConfigError(f"{path}: {key} is too involved: {pattern[:100]!r}; name the modules instead")
        try:
            compiled = re.compile(pattern)
        except (re.error, RecursionError, OverflowError):
            raise ConfigError(f"{path}: {key} has {pattern!r}, which is no regular expression") from None
        found.append((compiled, number(path, f"{key}[{pattern!r}]", value)))
    return tuple(found)


def first_fitting(patterns: Patterns, module: str, default: float) -> float:
    """The number of the first pattern that fits a module's name, or the end of it behind a dot, as PEFT has it."""
    starts = [0, *(match.end() for match in re.finditer(r"\.", module))]
    return next((number for fit, number in patterns if any(fit.fullmatch(module, start) for start in starts)), default)
