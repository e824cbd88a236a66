"""NumPy arrays to torch's tensors and back, sharing memory, for callers who have torch. Nothing else imports it."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from numpy.typing import ArrayLike

from gemma_np.arrays import AnyArray
from gemma_np.errors import InputError

Form = Callable[[AnyArray], Any]


def form_of(convert_to_numpy: object, convert_to_tensor: object) -> Form:
    """What gives an array the form that a caller asks for: the array itself, or a tensor where sentence-transformers'
    two keywords mean one. Raises InputError where that needs torch and there is none."""
    if not convert_to_tensor and (convert_to_numpy or convert_to_numpy is None):
        return lambda array: array
    torch = _torch("convert_to_tensor=True" if convert_to_tensor else f"convert_to_numpy={convert_to_numpy!r}")
    return lambda array: torch.from_numpy(array)


def _torch(asked: str) -> Any:
    try:
        return import_module("torch")
    except ImportError:
        raise InputError(
            f"{asked} needs torch, which cannot be imported: pip install torch, or take the NumPy arrays that come "
            "without it"
        ) from None


def loaded_torch() -> Any:
    """torch, if the caller's program has imported it; else None."""
    return sys.modules.get("torch")


def is_tensor(value: object) -> bool:
    """Whether it is one of torch's tensors."""
    torch = loaded_torch()
    return torch is not None and isinstance(value, getattr(torch, "Tensor", ()))


def device_of(*values: Any) -> Any:
    """The device of the first tensor among the values, or in a list that is one of them; None: there is no tensor."""
    for value in values:
        for item in value[:1] if isinstance(value, list | tuple) else [value]:
            if is_tensor(item):
                return item.device
    return None


def as_array(value: Any) -> ArrayLike:
    """A tensor, or a list of tensors, as NumPy has it; anything else as it is. InputError where a gradient is lost."""
    if isinstance(value, list | tuple) and value and is_tensor(value[0]):
        return [as_array(item) for item in value]  # type: ignore[return-value]
    if not is_tensor(value):
        return value  # type: ignore[no-any-return]
    if value.requires_grad:
        raise InputError(
            "these vectors are tensors that require a gradient, and there are none here; pass vectors.detach(), or "
            "compute the similarity with torch"
        )
    value = value.cpu()
    return value.float().numpy() if value.is_floating_point() else value.numpy()  # type: ignore[no-any-return]


def like(device: Any, array: AnyArray) -> Any:
    """An array as a tensor on a device; None: the array itself."""
    return array if device is None else _torch("a tensor").from_numpy(array).to(device)
