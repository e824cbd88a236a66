"""sentence-transformers' other names: what programs call on a model, and one process on the CPU does not need.

What is harmless works alike; what cannot be served says why, and what to do instead.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Self

import numpy as np

from gemma_np import keywords
from gemma_np.arrays import AnyArray
from gemma_np.batches import strings
from gemma_np.checkpoint.defaults import SIMILARITIES
from gemma_np.errors import InputError
from gemma_np.pipeline import Pipeline
from gemma_np.tensors import as_array, device_of, form_of, like, loaded_torch

_ADAPTERS = (
    "an adapter is merged when its folder is opened: EmbeddingGemma(ADAPTER_FOLDER). To train one, use "
    "sentence-transformers with peft"
)
_TRAINING = "gemma_np computes vectors and no gradients; train with sentence-transformers, and open the folder it saves"
_SURGERY = "the modules of a checkpoint are fixed; change its folder with sentence-transformers, and open that"
_FLOAT32 = f"{keywords.CPU_ONLY}; to halve the memory or more, open the model with quantization='q8_0'"
_ROUNDED = "weights in 8 bits come with quantization='q8_0'"
_HUB = "write the folder with save_pretrained(), then upload it: huggingface_hub.HfApi().upload_folder(...)"

# Names of sentence-transformers and torch that are not served, with the reason.
REFUSED: dict[str, str] = {
    **dict.fromkeys(("cuda", "half", "double", "bfloat16", "to_empty", "share_memory"), _FLOAT32),
    **dict.fromkeys(("fit", "old_fit", "smart_batching_collate", "get_sentence_features", "zero_grad"), _TRAINING),
    **dict.fromkeys(("state_dict", "load_state_dict", "requires_grad_"), _TRAINING),
    **dict.fromkeys(("parameters", "named_parameters"), f"model.device says where it computes; {_TRAINING}"),
    **dict.fromkeys(("buffers", "named_modules", "children", "named_children"), f"{_SURGERY}; {_ROUNDED}"),
    **dict.fromkeys(("append", "extend", "insert", "pop", "register_forward_hook"), _SURGERY),
    **dict.fromkeys(("add_adapter", "load_adapter", "set_adapter", "delete_adapter", "active_adapter"), _ADAPTERS),
    **dict.fromkeys(("active_adapters", "enable_adapters", "disable_adapters", "get_adapter_state_dict"), _ADAPTERS),
    "check_peft_compatible_model": _ADAPTERS,
    **dict.fromkeys(("push_to_hub", "save_to_hub", "default_huggingface_organization"), _HUB),
    "merge": "merge checkpoints with sentence-transformers, and open the folder it saves",
    "transformers_model": "no transformers model is inside; gemma_np/model.py is the model",
}


class ModelCard(SimpleNamespace):
    """What evaluators write their figures into; nothing is made of it."""

    def __init__(self) -> None:
        super().__init__(model_name=None, model_id=None, base_model=None, base_model_revision=None)
        self.__dict__.update(language=[], license=None, tags=[], eval_results_dict={})

    def set_evaluation_metrics(self, evaluator: Any, metrics: Mapping[str, Any], *where: Any, **other: Any) -> None:
        """Keep an evaluator's figures, as sentence-transformers' card does."""
        self.eval_results_dict[evaluator] = dict(metrics)


class Interface(type):
    """A type that says whose interface it has. BERTopic and KeyBERT look for this name in `str(type(model))`: without
    it they load another model, without a word; with it they refuse ours, and the adaptor is what to give them."""

    def __repr__(cls) -> str:
        return f"<class '{cls.__module__}.{cls.__qualname__}', with the interface of sentence_transformers>"


class Compatibility(Pipeline, metaclass=Interface):
    """The names that EmbeddingGemma has for programs written for sentence-transformers."""

    SUPPORTED_SIMILARITY_FN_NAMES = SIMILARITIES
    model_type = "SentenceTransformer"
    model_card_data_class = ModelCard
    modalities = ("text",)
    model_card_data: ModelCard
    truncate_dim: int | None

    def __getattr__(self, name: str) -> Any:
        why = REFUSED.get(name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}" + (f": {why}" if why else ""))

    def encode(self, inputs: Any = None, *args: Any, **options: Any) -> Any:
        """See EmbeddingGemma."""
        raise NotImplementedError

    def save_pretrained(self, path: Any, *args: Any, **options: Any) -> None:
        """See EmbeddingGemma."""
        raise NotImplementedError

    @property
    def device(self) -> Any:
        """Where it computes: torch.device("cpu") in a program that has imported torch, else "cpu"."""
        torch = loaded_torch()
        return torch.device("cpu") if torch else "cpu"

    @property
    def dtype(self) -> Any:
        """What it computes in: torch.float32 in a program that has imported torch, else NumPy's."""
        torch = loaded_torch()
        return torch.float32 if torch else np.dtype(np.float32)

    def to(self, *args: Any, **options: Any) -> Self:
        """The model itself, for a CPU and float32; InputError for another device or dtype."""
        for value in (*args, *(value for name, value in options.items() if name in ("device", "dtype"))):
            if not isinstance(value, bool) and not keywords.on_cpu(value) and not keywords.is_float32(value):
                raise InputError(f"to({value!r}) is not served: {_FLOAT32}")
        return self

    def cpu(self) -> Self:
        """The model itself."""
        return self

    def float(self) -> Self:
        """The model itself."""
        return self

    def eval(self) -> Self:
        """The model itself."""
        return self

    def train(self, mode: bool = True) -> Self:
        """The model itself, for train(False); InputError for train(True)."""
        if mode:
            raise InputError(f"train() is not served: {_TRAINING}")
        return self

    training = False

    def compile(self, *args: Any, **options: Any) -> None:
        """Nothing: the kernels are compiled already."""

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None, **options: Any) -> None:
        """Nothing: there are no gradients."""

    def clear_placement_cache(self) -> None:
        """Nothing: the model stays where it is."""

    def get_backend(self) -> str:
        """The backend's name."""
        return "gemma_np"

    def get_model_kwargs(self) -> list[str]:
        """The further keywords of `encode` that this model's modules take: none."""
        return []

    def has_peft_compatible_model(self) -> bool:
        """Whether adapters can be added: no."""
        return False

    def supports(self, modality: Any) -> bool:
        """Whether a modality can be embedded: "text" can."""
        return bool(modality == "text")

    def is_singular_input(self, inputs: Any) -> bool:
        """Whether `encode` takes this for one text."""
        return isinstance(inputs, str)

    def set_pooling_include_prompt(self, include_prompt: bool) -> None:
        """Nothing, if the checkpoint says the same; else InputError."""
        if include_prompt != self.modules.include_prompt:
            raise InputError(f"set_pooling_include_prompt({include_prompt!r}) is not served: {_SURGERY}")

    @classmethod
    def load(cls, input_path: Any) -> Self:
        """The model of a folder, as the constructor."""
        return cls(input_path)

    def save(self, path: Any, *args: Any, **options: Any) -> None:
        """`save_pretrained`."""
        self.save_pretrained(path, *args, **options)

    def evaluate(self, evaluator: Any, output_path: Any = None) -> Any:
        """What one of sentence-transformers' evaluators says of this model."""
        if output_path is not None:
            from pathlib import Path

            Path(output_path).mkdir(parents=True, exist_ok=True)
        return evaluator(self, output_path)

    @contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """While it lasts, `truncate_dim` is another."""
        before, self.truncate_dim = self.truncate_dim, truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    truncate_sentence_embeddings = truncate_embeddings

    def start_multi_process_pool(self, target_devices: Sequence[Any] | None = None) -> dict[str, Any]:
        """A pool for `encode(pool=)` that starts nothing: this process uses all cores already. InputError for devices
        that are no CPU."""
        keywords.refuse("start_multi_process_pool", {"device": target_devices}, keywords.ENCODE)
        return {"input": None, "output": None, "processes": []}

    @staticmethod
    def stop_multi_process_pool(pool: Any) -> None:
        """Nothing: such a pool has no processes."""

    def encode_multi_process(self, sentences: Any, pool: Any, *args: Any, **options: Any) -> AnyArray:
        """`encode`, in this process. The arguments after `pool` are those of sentence-transformers."""
        names = ("prompt_name", "prompt", "batch_size", "chunk_size", "show_progress_bar", "precision")
        given = {**dict(zip((*names, "normalize_embeddings", "truncate_dim"), args, strict=False)), **options}
        return self.encode(sentences, **given)  # type: ignore[no-any-return]

    @property
    def processor(self) -> Any:
        """`tokenizer`, as in models of text."""
        return self.tokenizer

    def tokenize(self, texts: str | Iterable[str], *, return_tensors: str = "np", prompt: str | None = None) -> Any:
        """Texts -> {"input_ids", "attention_mask"}: int64 [B, T], padded with zeros on the right, cut at
        `max_seq_length`.

        prompt          before each text; None: no prompt
        return_tensors  "np": arrays; "pt": torch's tensors
        """
        form = form_of(None, return_tensors == "pt")
        if return_tensors not in ("np", "pt"):
            raise InputError(f"return_tensors = {return_tensors!r}, expected 'np' or 'pt'")
        ids, _ = self.prepare([texts] if isinstance(texts, str) else list(strings(texts, "texts")), prompt or "")
        width = max(map(len, ids), default=0)
        input_ids = np.zeros((len(ids), width), dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, mask, tokens in zip(input_ids, attention_mask, ids, strict=True):
            row[: len(tokens)] = tokens
            mask[: len(tokens)] = 1
        found = {"input_ids": form(input_ids), "attention_mask": form(attention_mask)}
        if prompt and not self.modules.include_prompt:
            found["prompt_length"] = self.prompt_lengths([prompt])[0]
        return found

    preprocess = tokenize

    def forward(self, input: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """What `tokenize` gives, and of each text "token_embeddings" [B, T, D], zeros where it is padded, and
        "sentence_embedding" [B, dim] of full size: arrays, or tensors if the ids are."""
        device = device_of(input["input_ids"])
        rows = np.asarray(as_array(input["input_ids"]))
        mask = np.asarray(as_array(input["attention_mask"])).astype(bool)
        ids = [row[kept].astype(np.int32) for row, kept in zip(rows, mask, strict=True)]
        tokens = np.zeros((*rows.shape, self.config.D), np.float32)
        for row, kept, text in zip(tokens, mask, ids, strict=True):
            row[kept] = self.token_embeddings(text)
        vectors = self.embed_ids(ids, int(input.get("prompt_length", 0)))
        return {**input, "token_embeddings": like(device, tokens), "sentence_embedding": like(device, vectors)}

    __call__ = forward
