"""An EmbeddingGemma in one GGUF file, opened: llama.cpp's names and keys to ours.

What a file leaves out is as llama.cpp reads it, or Ollama, where the file is in its way (names.OLLAMA). Source:
llama.cpp, src/models/gemma-embedding.cpp and llama-model.cpp (keys and their defaults), conversion/gemma.py (what is
written).
"""

import logging
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gemma_np.checkpoint.bundle import is_bundle
from gemma_np.checkpoint.defaults import Defaults, read_defaults
from gemma_np.checkpoint.folder import dense_tensors, open_folder
from gemma_np.checkpoint.source import Settings, Source, Watch, unwatched
from gemma_np.config import MAX_LAYERS, Config, Layer, positive_float, positive_int, radius_of
from gemma_np.errors import FULL_MODEL, CheckpointError, ConfigError, InputError, WeightsError
from gemma_np.files.safetensors import Tensor
from gemma_np.gguf.file import GGUF, Texts, open_gguf
from gemma_np.gguf.names import ARCHITECTURE, FIELDS, LLAMA_CPP, MEAN, OLLAMA, PATTERN, TRUNK_ALONE, Dialect
from gemma_np.gguf.tensors import RoundedTensor, stored
from gemma_np.gguf.tokenizer import gguf_pieces, open_tokenizer
from gemma_np.modules import Dense, Modules, Normalize, check_widths, resolve_modules
from gemma_np.prompts import PUBLISHED
from gemma_np.weights.loading import Stored, formats_held
from gemma_np.weights.names import EMBED, layer_tensors

log = logging.getLogger("gemma_np")
# Settings that change the result, with the only values that we serve; those of HEAD_SIZES must be attention.key_length.
SERVED: dict[str, tuple[Any, ...]] = {
    "attention.causal": (False,),
    "pooling_type": (MEAN,),
    "rope.scaling.type": ("none", "linear"),
    "rope.scaling.factor": (0.0, 1.0),
    "rope.scale_linear": (0.0, 1.0),
    "rope.freq_scale": (1.0,),
}
HEAD_SIZES = (
    "attention.value_length",
    "rope.dimension_count",
    "attention.key_length_swa",
    "attention.value_length_swa",
    "rope.dimension_count_swa",
)


def dialect_of(file: GGUF) -> Dialect:
    """In which program's way the file says what its model is. ConfigError for another model."""
    found, metadata = file.metadata.get("general.architecture"), file.metadata
    if isinstance(found, str) and found == ARCHITECTURE:
        return LLAMA_CPP
    if isinstance(found, str) and found == OLLAMA.architecture:
        causal = metadata.get(f"{found}.attention.causal")
        if causal is False or any(f"{name}.weight" in file.tensors for name in OLLAMA.heads.values()):
            return OLLAMA
        raise ConfigError(
            f"{file.source.path}: general.architecture = {found!r} without Dense heads: a Gemma 3 language model, no "
            f"EmbeddingGemma encoder, whose files have {ARCHITECTURE!r} there, or in Ollama's way dense.0 and dense.1"
        )
    raise ConfigError(
        f"{file.source.path}: general.architecture = {found!r}; gemma_np runs EmbeddingGemma and models of its "
        f"architecture, in GGUF files {ARCHITECTURE!r}"
    )


class Keys:
    """The file's settings by llama.cpp's keys, without the architecture's name before them."""

    def __init__(self, file: GGUF) -> None:
        self.path, self.metadata, self.dialect = file.source.path, file.metadata, dialect_of(file)

    def named(self, key: str) -> str:
        """The key with the architecture's name before it."""
        return f"{self.dialect.architecture}.{key}"

    def setting(self, key: str, default: Any = None) -> Any:
        """A setting; one value for each layer, where all are equal, is one value."""
        default = self.dialect.defaults.get(key, default)
        if older := self.dialect.older.get(key):
            default = self.metadata.get(self.named(older), default)
        value = self.metadata.get(self.named(key), default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if value is None:
            raise ConfigError(f"{self.path}: {self.named(key)} is missing; convert the model again")
        if isinstance(value, np.ndarray | Texts):
            raise ConfigError(f"{self.path}: {self.named(key)} has {len(value)} values, expected one for all layers")
        return value

    def count(self, key: str, default: Any = None) -> int:
        return positive_int(self.path, self.named(key), self.setting(key, default))

    def number(self, key: str) -> float:
        value = positive_float(self.path, self.named(key), self.setting(key))
        return float(str(np.float32(value)))  # 1e-6 is stored as 9.999999974752427e-07

    def refuse_unserved(self, H: int) -> None:
        """ConfigError for a setting that would change the result."""
        for key, values in {**SERVED, **dict.fromkeys(HEAD_SIZES, (H,))}.items():
            if (value := self.setting(key, values[0])) not in values:
                raise ConfigError(
                    f"{self.path}: {self.named(key)} = {value!r} would change the result and is not served; "
                    f"expected {values[0]!r}"
                )


def gguf_config(file: GGUF) -> Config:
    """The trunk's settings. ConfigError names what is missing or not served."""
    path, keys = file.source.path, Keys(file)
    D, L, N = keys.count("embedding_length"), keys.count("block_count"), keys.count("attention.head_count")
    K, H = keys.count("attention.head_count_kv", N), keys.count("attention.key_length", D // N)
    if L > MAX_LAYERS:
        raise ConfigError(f"{path}: {keys.named('block_count')} = {L}, expected at most {MAX_LAYERS}")
    if N % K or H % 2:
        raise ConfigError(
            f"{path}: {N} query heads, {K} key/value heads of size {H}; expected a multiple, and an even size"
        )
    keys.refuse_unserved(H)
    radius = radius_of(path, keys.count("attention.sliding_window"))
    slides = sliding_layers(keys, L)
    theta, local_theta = keys.number("rope.freq_base"), keys.number("rope.freq_base_swa")
    scale, eps = 1 / math.sqrt(H), keys.number("attention.layer_norm_rms_epsilon")
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise WeightsError(f"{path}: token_embd.weight, the embedding table, is missing or no matrix")
    layers = tuple(Layer(radius if s else None, local_theta if s else theta, N, K, H, scale, eps) for s in slides)
    return Config(table.shape[0], D, keys.count("feed_forward_length"), keys.count("context_length"), layers)


def sliding_layers(keys: Keys, L: int) -> list[bool]:
    """Which layers have the window: one entry each, or of so many layers all but the last; 0: all."""
    key = keys.named("attention.sliding_window_pattern")
    pattern = keys.metadata.get(key, PATTERN)
    if isinstance(pattern, np.ndarray) and pattern.dtype.kind in "biu" and len(pattern) == L:
        return [bool(slides) for slides in pattern]
    if type(pattern) is not int or pattern < 0:
        raise ConfigError(f"{keys.path}: {key} is neither a number nor {L} truth values")
    return [not pattern or (i + 1) % pattern != 0 for i in range(L)]


def gguf_heads(file: GGUF) -> Modules | None:
    """The Dense heads in the file, None if there are none."""
    heads: list[Dense | Normalize] = []
    for name, prefix in dialect_of(file).heads.items():
        if info := file.tensors.get(f"{prefix}.weight"):
            if len(info.shape) != 2:
                raise WeightsError(f"{file.source.path}: {info.name} has shape {info.shape}, expected a matrix")
            heads.append(Dense(name, info.shape[1], info.shape[0], has_bias=False, activation="Identity"))
    return Modules("", "1_Pooling", True, (*heads, *TRUNK_ALONE.heads)) if heads else None


def gguf_tensors(file: GGUF, config: Config, modules: Modules) -> dict[str, Stored]:
    """The file's tensors by the checkpoint's names, checked. WeightsError for what is missing or misshapen."""
    path, dialect = file.source.path, dialect_of(file)
    norm = next((name for name in dialect.norms if name in file.tensors), dialect.norms[0])
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {
        EMBED: ("token_embd.weight", (config.V, config.D)),
        "norm.weight": (norm, (config.D,)),
    }
    for i in range(len(config.layers)):
        for field, (name, shape) in layer_tensors(config, i).items():
            wanted[name] = f"blk.{i}.{FIELDS[field]}.weight", shape
    for head in modules.dense:
        wanted[f"{head.name}/linear.weight"] = f"{dialect.heads[head.name]}.weight", (head.outputs, head.inputs)
    found: dict[str, Stored] = {}
    for name, (stored_name, shape) in wanted.items():
        info = file.tensors.get(stored_name)
        if info is None or info.shape != shape:
            what = "is missing" if info is None else f"has shape {info.shape}"
            raise WeightsError(
                f"{path}: {stored_name} {what}, expected {shape} from the file's settings. `gemma-np info {path}` "
                "lists the tensors"
            )
        found[name] = stored(info, name, file.source)
    used = {stored_name for stored_name, _ in wanted.values()}
    if unknown := sorted(file.tensors.keys() - used - {f"{prefix}.weight" for prefix in dialect.heads.values()}):
        log.warning("%s: %d tensors are not used: %s", path, len(unknown), ", ".join(unknown[:5]))
    return found


def borrowed(folder: Path, modules: Modules) -> dict[str, Stored]:
    """The Dense modules' tensors of a checkpoint, or of a quantised folder."""
    if not is_bundle(folder):
        return dict(dense_tensors(folder, modules))
    return {name: tensor for name, tensor in open_folder(folder).tensors.items() if "/" in name}


def rounded_to(tensors: Mapping[str, Stored]) -> str | None:
    """What the layers' matrices are held in, one of quantize.QUANTIZATIONS; None: float32."""
    held = {format for name, format in formats_held(tensors, None).items() if name != EMBED}
    if held == {"f32"}:
        return None
    return held.pop() if len(held) == 1 else "mixed"


def heads_like_the_trunk(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """The same; Dense heads of a rounded trunk that would be held in float32 are to be rounded too, so that kernels run
    them all."""
    if rounded_to({name: tensor for name, tensor in tensors.items() if "/" not in name}) is None:
        return tensors
    found = dict(tensors)
    for name, tensor in tensors.items():
        if "/" in name and len(tensor.shape) == 2 and isinstance(tensor, Tensor):
            found[name] = RoundedTensor(name, tensor.dtype, tensor.shape, tensor.source, tensor.offset, tensor)
    return found


def open_gguf_source(path: Path, dense: Path | Literal[False] | None = None, watch: Watch = unwatched) -> Source:
    """Open a GGUF file.

    dense   None: the Dense heads of the file. A checkpoint's folder: its heads instead, for files that have none, and
            its prompts with them. False: no Dense heads, the trunk's mean at length 1, as llama.cpp gives it
    watch   see checkpoint.source.Watch

    Raises CheckpointError, ConfigError and WeightsError.
    """
    file = open_gguf(path)
    watch(file.tensors)
    config, own = gguf_config(file), gguf_heads(file)
    if dense is None and own is None:
        raise CheckpointError(
            f"{path} has no Dense heads (dense_2.weight, dense_3.weight), without which the vectors are not "
            "EmbeddingGemma's; most files were converted so. Take the heads from the checkpoint: --dense "
            f"{FULL_MODEL} (or its folder; in Python dense=...), or ask for the trunk's own vectors with --no-dense "
            "(dense=False)"
        )
    if dense and own:
        raise InputError(f"{path} has its own Dense heads; leave dense out")
    modules = resolve_modules(dense) if dense else TRUNK_ALONE if dense is False or own is None else own
    full_dim = check_widths(config, modules, dense or path)
    defaults = read_defaults(dense) if dense else Defaults(PUBLISHED, None, "cosine", None)
    settings = Settings(path.absolute(), config, modules, full_dim, defaults, config.max_positions)
    watch(settings)
    tensors = gguf_tensors(file, config, Modules("", modules.pooling, True, ()) if dense else modules)
    if dense:
        tensors |= borrowed(dense, modules)
    tensors = heads_like_the_trunk(tensors)
    watch(tensors)
    return Source(
        **vars(settings),
        tensors=tensors,
        quantization=rounded_to(tensors),
        files={},
        tokenizer=None,
        pieces=partial(gguf_pieces, file, config),
        open_tokenizer=partial(open_tokenizer, file, config),
    )
