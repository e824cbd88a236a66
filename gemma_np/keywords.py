"""sentence-transformers' keywords: what changes nothing here passes, the rest is refused with the reason."""

from collections.abc import Callable, Mapping
from typing import Any

from gemma_np.errors import InputError

CPU_ONLY = "gemma_np computes on the CPU, in float32, with NumPy and its own kernels"
DTYPE = (
    f"{CPU_ONLY}: as exact as sentence-transformers in float32, whatever the file's dtype; leave it out, or round the "
    "weights with quantization='q8_0'"
)
LENGTH = "set model.max_seq_length instead"

Harmless = Callable[[Any], bool]


def _anything(_: Any) -> bool:
    return True


def _nothing(value: Any) -> bool:
    return value is None or value == {}


def one_of(*values: object) -> Harmless:
    return lambda value: any(value is known or (type(value) is type(known) and value == known) for known in values)


def on_cpu(device: Any) -> bool:
    """Whether a device, or each of several, is a CPU: None, "cpu", "cpu:0", torch.device("cpu")."""
    each = device if isinstance(device, list | tuple) else [device]
    return all(one is None or str(one).partition(":")[0] == "cpu" for one in each)


def is_float32(dtype: Any) -> bool:
    """Whether a dtype is float32: None, "auto", "float32", torch.float32, np.float32."""
    return dtype is None or getattr(dtype, "__name__", str(dtype)).rpartition(".")[2] in ("auto", "float32")


# What model_kwargs may hold.
OF_TRANSFORMERS: dict[str, tuple[Harmless, str]] = {
    "torch_dtype": (is_float32, DTYPE),
    "dtype": (is_float32, DTYPE),
    "attn_implementation": (_anything, ""),
    "device_map": (lambda value: on_cpu(value) or value == "auto", CPU_ONLY),
    "low_cpu_mem_usage": (_anything, ""),
    "use_safetensors": (one_of(None, True), "weights are read from safetensors or GGUF files"),
    "trust_remote_code": (_anything, ""),
}


def _served_by_model(kwargs: Any) -> bool:
    return _nothing(kwargs) or (
        isinstance(kwargs, Mapping)
        and all(name in OF_TRANSFORMERS and OF_TRANSFORMERS[name][0](value) for name, value in kwargs.items())
    )


# keyword -> (which values change nothing here, why the others are refused)
ENCODE: dict[str, tuple[Harmless, str]] = {
    "device": (on_cpu, CPU_ONLY),
    "task": (one_of(None, "query", "document"), "choose a task by its prompt: prompt_name="),
    "processing_kwargs": (_nothing, LENGTH),
    "task_type": (_nothing, "choose a task by its prompt: prompt_name='retrieval_query', for example"),
    "output_dim": (_nothing, "the keyword is truncate_dim="),
    "output_dimensionality": (_nothing, "the keyword is truncate_dim="),
    "dimensions": (_nothing, "the keyword is truncate_dim="),
}
CONSTRUCTOR: dict[str, tuple[Harmless, str]] = {
    "device": ENCODE["device"],
    "backend": (one_of(None, "torch"), "there is one backend here, our own"),
    "trust_remote_code": (_anything, ""),
    "model_kwargs": (
        _served_by_model,
        f"of these, {', '.join(OF_TRANSFORMERS)} are read, and none may ask for another device or dtype: {CPU_ONLY}",
    ),
    "torch_dtype": OF_TRANSFORMERS["torch_dtype"],
    "dtype": OF_TRANSFORMERS["dtype"],
    "attn_implementation": OF_TRANSFORMERS["attn_implementation"],
    "config_kwargs": (_nothing, "edit config.json instead"),
    "model_card_data": (_anything, ""),
    "modules": (_nothing, "pass the folder or hub id of a saved model"),
    "output_dim": ENCODE["output_dim"],
}
HARMLESS_TEXT_SETTINGS = {"padding_side": "right", "padding": True, "truncation": True, "use_fast": True}


def refuse(call: str, keywords: Mapping[str, object], known: Mapping[str, tuple[Harmless, str]]) -> None:
    """InputError for a keyword whose value cannot be honoured, TypeError for one that nobody knows."""
    for name, value in keywords.items():
        if name not in known:
            raise TypeError(f"{call}() got an unexpected keyword argument {name!r}")
        harmless, reason = known[name]
        if not harmless(value):
            raise InputError(f"{call}({name}={value!r}) is not served: {reason}")


def second_name(name: str, value: Any, second: str, keywords: dict[str, Any]) -> Any:
    """An argument that sentence-transformers calls otherwise: `value`, or what `keywords` holds under the second name,
    which is taken out of them. InputError for both."""
    other = keywords.pop(second, None)
    if value is not None and other is not None:
        raise InputError(f"{name}= and {second}= are two names of one argument; pass one of them")
    return value if other is None else other


def max_length_of(keywords: dict[str, Any]) -> Any:
    """The longest text that tokenizer_kwargs or processor_kwargs ask for; None: they do not. Both are taken out of
    `keywords`. InputError for what would change a text's ids."""
    length = None
    for name in ("tokenizer_kwargs", "processor_kwargs"):
        asked = keywords.pop(name, None)
        if asked is not None and not isinstance(asked, Mapping):
            raise InputError(f"{name} is {type(asked).__name__}, expected names with values")
        for key, value in (asked or {}).items():
            if key == "model_max_length":
                length = value
            elif value is not None and HARMLESS_TEXT_SETTINGS.get(key) != value:
                raise InputError(f"{name}={{{key!r}: {value!r}}} is not served; model_max_length is")
    return length
