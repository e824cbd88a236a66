"""sentence-transformers' keywords that have no place here: harmless values pass, others are refused with the reason."""

from collections.abc import Mapping

from gemma_np.errors import InputError

NO_TORCH = "gemma_np runs on NumPy, without torch"
ONE_PROCESS = "one process uses all cores here; choose their number with threads="

# keyword -> (values that change nothing here, why the others are refused); None: any value passes, (): none does
ENCODE: dict[str, tuple[tuple[object, ...] | None, str]] = {
    "convert_to_numpy": ((True, None), f"vectors are always NumPy arrays: {NO_TORCH}"),
    "convert_to_tensor": (
        (False, None),
        f"vectors are always NumPy arrays: {NO_TORCH}; wrap them with torch.from_numpy",
    ),
    "device": ((None, "cpu"), f"{NO_TORCH}, and only on the CPU"),
    "pool": ((None,), ONE_PROCESS),
    "chunk_size": (None, ONE_PROCESS),
    "task": ((None, "query", "document"), "choose a task by its prompt: prompt_name="),
    "processing_kwargs": ((None, {}), "set model.max_seq_length instead"),
    "task_type": ((), "choose a task by its prompt: prompt_name='retrieval_query', for example"),
    "output_dim": ((), "the keyword is truncate_dim="),
    "output_dimensionality": ((), "the keyword is truncate_dim="),
    "dimensions": ((), "the keyword is truncate_dim="),
}
CONSTRUCTOR: dict[str, tuple[tuple[object, ...] | None, str]] = {
    "device": ENCODE["device"],
    "backend": ((None, "torch"), "there is one backend here, our own"),
    "trust_remote_code": (None, "a model's own code is never run"),
    "model_kwargs": ((None, {}), f"{NO_TORCH}; it always computes in float32"),
    "processor_kwargs": ((None, {}), "set model.max_seq_length instead"),
    "tokenizer_kwargs": ((None, {}), "set model.max_seq_length instead"),
    "config_kwargs": ((None, {}), "edit config.json instead"),
    "model_card_data": (None, "there is no model card"),
    "modules": ((None,), "pass the folder or hub id of a saved model"),
    "use_auth_token": ((None,), "the keyword is token="),
    "model_name_or_path": ((), "pass the model as the first argument, or as model="),
    "output_dim": ENCODE["output_dim"],
}


def refuse(
    call: str, keywords: Mapping[str, object], known: Mapping[str, tuple[tuple[object, ...] | None, str]]
) -> None:
    """InputError for a keyword whose value cannot be honoured, TypeError for one that nobody knows."""
    for name, value in keywords.items():
        if name not in known:
            raise TypeError(f"{call}() got an unexpected keyword argument {name!r}")
        harmless, reason = known[name]
        if harmless is not None and value not in harmless:
            raise InputError(f"{call}({name}={value!r}) is not served: {reason}")
