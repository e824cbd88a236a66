"""EmbeddingGemma: texts in, vectors out, with sentence-transformers' names and meanings."""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from gemma_np import hub, keywords, similarity
from gemma_np.arrays import AnyArray, Float32
from gemma_np.batches import chunked, expected_number, gathered, paired, split, strings
from gemma_np.checkpoint.defaults import Defaults
from gemma_np.errors import GemmaWarning, InputError
from gemma_np.pipeline import Pipeline, prompted
from gemma_np.prompts import prompt_named, titled

Texts = str | Iterable[str]


class EmbeddingGemma(Pipeline):
    """A model, loaded and ready.

    model                folder of a checkpoint, a hub id, a GGUF file, or "nano", the small model inside the package;
                         None: what the environment variable GEMMA_NP_MODEL names, else nano, with a line on stderr
    quantization         None: as the files are, float32 for a checkpoint. "q8_0": int8, "q4_0": int4, "mixed": int8 for
                         attention, int4 for the rest; rounded while the checkpoint is read, see quantize.py.
                         `save_pretrained` keeps the result, so that it need not be rounded again
    dense                for GGUF files that have no Dense heads: the folder or hub id of a checkpoint that has them, or
                         False, to have the trunk's vectors without them, as llama.cpp gives them
    truncate_dim         default size of the vectors; EmbeddingGemma is trained for 768, 512, 256 and 128
    threads              how many threads compute; None: as many as the cores that this process may use
    prompts              prompts by name, beside or instead of the checkpoint's
    default_prompt_name  the prompt of calls that name none
    revision, token, cache_folder, local_files_only    for the hub, as in huggingface_hub
    similarity_fn_name   "cosine", "dot", "euclidean" or "manhattan"; None: as the checkpoint says

    Raises CheckpointError, ConfigError or WeightsError when the files are not a model that we can run, HubError when
    they cannot be fetched, InputError for an argument that cannot be honoured. Computes in float32 whatever the file's
    dtype. A pickle holds where the model comes from and its settings, not its weights, and never the token.

    >>> model = EmbeddingGemma("path/to/checkpoint")
    >>> model.encode(["a text", "another"]).shape
    (2, 768)
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        quantization: str | None = None,
        dense: str | os.PathLike[str] | Literal[False] | None = None,
        truncate_dim: int | None = None,
        threads: int | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_folder: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        similarity_fn_name: str | None = None,
        **other: Any,
    ) -> None:
        keywords.refuse("EmbeddingGemma", other, keywords.CONSTRUCTOR)
        source = hub.default_model() if model is None else model
        in_hub: dict[str, Any] = {
            "revision": revision,
            "token": token,
            "cache_folder": cache_folder,
            "local_files_only": local_files_only,
        }
        folder = hub.locate(source, **in_hub)
        heads = dense if dense is None or dense is False else hub.locate(dense, **in_hub, files=hub.HEADS)
        super().__init__(folder, threads, quantization, heads)
        self._dense = heads
        self._source: tuple[str, dict[str, Any]] = str(self.folder), {}
        if not os.path.exists(os.path.expanduser(source)):
            # A folder of the hub's cache is named after its commit: a pickle's copy elsewhere shall be of the same one.
            commit = folder.name if folder.parent.name == "snapshots" else revision
            in_cache = {"revision": commit, "cache_folder": cache_folder, "local_files_only": local_files_only}
            self._source = os.fspath(source), in_cache
        defaults = self.source.defaults
        self.prompts: dict[str, str] = {"query": "", "document": "", **defaults.prompts, **(prompts or {})}
        self.default_prompt_name = default_prompt_name or defaults.default_prompt_name
        if self.default_prompt_name is not None:
            prompt_named(self.default_prompt_name, self.prompts)
        self.truncate_dim = defaults.truncate_dim if truncate_dim is None else truncate_dim
        self._checked_dim(self.truncate_dim)
        self.similarity_fn_name = similarity_fn_name or defaults.similarity_fn_name

    def __repr__(self) -> str:
        format = self.quantization or "float32"
        return f"EmbeddingGemma({str(self.folder)!r}: {self.get_embedding_dimension()} dimensions, {format})"

    def __reduce__(self) -> tuple[Any, ...]:
        model, in_cache = self._source
        settings = {
            **in_cache,
            "threads": self.threads,
            "quantization": self.quantization,
            "dense": self._dense,
            "prompts": self.prompts,
            "default_prompt_name": self.default_prompt_name,
            "truncate_dim": self.truncate_dim,
            "similarity_fn_name": self.similarity_fn_name,
        }
        return _reopened, (model, self.max_seq_length, settings)

    def stream(
        self,
        texts: Iterable[str],
        prompts: str | Iterable[str] = "",
        *,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str = "sentence_embedding",
        precision: str = "float32",
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        truncate: bool = True,
        ranges: ArrayLike | None = None,
    ) -> Iterator[Any]:
        """`encode`, batch by batch: yields [b, dim] arrays (lists of [T, D] arrays for "token_embeddings").

        prompts   the prompt itself, for all or one for each text; `resolve_prompt` finds it by name
        """
        if type(batch_size) is not int or batch_size < 1:
            raise InputError(f"batch_size = {batch_size!r}, expected a positive integer")
        if output_value not in ("sentence_embedding", "token_embeddings"):
            raise InputError(
                f"output_value = {output_value!r}, expected 'sentence_embedding' or 'token_embeddings'; for the tokens "
                "themselves call tokenize()"
            )
        if output_value == "token_embeddings" and precision != "float32":
            raise InputError(f"precision = {precision!r} is for sentence embeddings; token embeddings are float32")
        each = strings(texts, "inputs")
        dim = self.truncate_dim if truncate_dim is None else truncate_dim
        self.finish(np.empty((0, self.full_dim), np.float32), dim, normalize_embeddings, precision, ranges)  # check now
        doubled: list[int] = []
        cut: list[int] = []
        first = 0
        bar = _progress(show_progress_bar, expected_number(texts))
        with bar:
            for chunk, chunk_prompts in chunked(paired(each, prompts), batch_size):
                ids, truncated = self.prepare(chunk, chunk_prompts, truncate=truncate, first=first)
                cut += truncated
                doubled += [
                    i
                    for i, (text, prompt) in enumerate(zip(chunk, chunk_prompts, strict=True), first)
                    if prompt.strip() and text.startswith(prompt.rstrip())
                ]
                for part in split(ids):
                    if output_value == "token_embeddings":
                        yield [self.token_embeddings(tokens) for tokens in ids[part]]
                    else:
                        vectors = self.embed_ids(ids[part], self.prompt_lengths(chunk_prompts[part]))
                        yield self.finish(vectors, dim, normalize_embeddings, precision, ranges)
                    bar.update(len(ids[part]))
                first += len(chunk)
        self._warn(cut, doubled)

    def encode(
        self,
        inputs: Texts | None = None,
        prompt_name: str | None = None,
        prompt: str | Sequence[str] | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str = "sentence_embedding",
        precision: str = "float32",
        *,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        truncate: bool = True,
        ranges: ArrayLike | None = None,
        sentences: Texts | None = None,
        **other: Any,
    ) -> Any:
        """Texts -> vectors.

        inputs                a string, or any iterable of strings, a generator too; `sentences` is its old name
        prompt_name           a task: the checkpoint's names (`prompts`) and friendly ones such as retrieval_query
        prompt                the prompt itself, for all texts or one for each; wins over prompt_name
        batch_size            texts per batch; a batch also ends at 1,024 tokens
        show_progress_bar     True, False, or None: on a terminal, once it takes more than two seconds
        output_value          "sentence_embedding", or "token_embeddings": a [T, D] array for each text
        precision             "float32", "int8", "uint8", "binary" or "ubinary", see output.quantize
        normalize_embeddings  bring vectors to length 1 although the model does not
        truncate_dim          how many dimensions to keep; None: the model's `truncate_dim`
        truncate              False: an error for a text over max_seq_length, instead of a warning and a cut
        ranges                [2, dim], the int8 range of each dimension instead of the fixed one
        returns               [dim] for one string, else [B, dim] in the order of the inputs, (0, dim) for none
        """
        keywords.refuse("encode", other, keywords.ENCODE)
        texts = sentences if inputs is None else inputs
        one = isinstance(texts, str)
        batches = self.stream(
            [texts] if isinstance(texts, str) else texts,  # type: ignore[arg-type]  # stream refuses None
            self.resolve_prompt(prompt_name, prompt),
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            output_value=output_value,
            precision=precision,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            truncate=truncate,
            ranges=ranges,
        )
        if output_value == "token_embeddings":
            arrays = [array for batch in batches for array in batch]
            return arrays[0] if one else arrays
        dim = self.truncate_dim if truncate_dim is None else truncate_dim
        empty = self.finish(np.empty((0, self.full_dim), np.float32), dim, normalize_embeddings, precision, ranges)
        vectors = gathered(batches, empty, 1 if one else expected_number(texts))
        return vectors[0] if one else vectors

    def encode_query(
        self,
        inputs: Texts | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *args: Any,
        **options: Any,
    ) -> Any:
        """`encode` with the query prompt, unless another is named. Arguments as in `encode`."""
        if prompt_name is None and prompt is None:
            prompt_name = "query"
        return self.encode(inputs, prompt_name, prompt, *args, **options)

    def encode_document(
        self,
        inputs: Texts | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *args: Any,
        titles: str | Sequence[str | None] | None = None,
        **options: Any,
    ) -> Any:
        """`encode` with the document prompt, unless another is named. Arguments as in `encode`, and

        titles   the documents' titles, one for each text (None where there is none), or one string for one text
        """
        if prompt_name is None and prompt is None:
            prompt_name = "document"
        if titles is None:
            return self.encode(inputs, prompt_name, prompt, *args, **options)
        document = self.resolve_prompt(prompt_name, prompt)
        every = [titles] if isinstance(titles, str) else strings(titles, "titles")
        each = [titled(document, title, i) for i, title in enumerate(every)]
        return self.encode(inputs, None, each, *args, **options)

    def resolve_prompt(self, prompt_name: str | None = None, prompt: Any = None) -> Any:
        """The prompt of a call: `prompt` itself, else the one named, else the default one, else none ("")."""
        if prompt is not None:
            return prompt
        name = self.default_prompt_name if prompt_name is None else prompt_name
        return "" if name is None else prompt_named(name, self.prompts)

    def similarity(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> Float32:
        """[A, dim], [B, dim] -> [A, B], by `similarity_fn_name`: an array, where sentence-transformers has a tensor."""
        return similarity.similarity(self.similarity_fn_name, embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> Float32:
        """[A, dim], [A, dim] -> [A]: the first with the first, the second with the second."""
        return similarity.similarity_pairwise(self.similarity_fn_name, embeddings1, embeddings2)

    def tokenize(self, texts: Texts) -> dict[str, AnyArray]:
        """Texts, without a prompt -> {"input_ids", "attention_mask"}: int64 [B, T], padded with zeros on the right."""
        ids, _ = self.prepare([texts] if isinstance(texts, str) else list(strings(texts, "texts")))
        width = max(map(len, ids), default=0)
        input_ids = np.zeros((len(ids), width), dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, mask, tokens in zip(input_ids, attention_mask, ids, strict=True):
            row[: len(tokens)] = tokens
            mask[: len(tokens)] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def count_tokens(self, texts: Texts, prompt_name: str | None = None, prompt: str | None = None) -> Any:
        """How many tokens a text has, prompt, BOS and EOS included, before any cut: an int, or a list for a list."""
        each = [texts] if isinstance(texts, str) else list(strings(texts, "texts"))
        _, lengths = self.tokenizer.encode(prompted(each, self.resolve_prompt(prompt_name, prompt)))
        return lengths[0] if isinstance(texts, str) else lengths

    def save_pretrained(
        self,
        path: str | os.PathLike[str],
        *,
        format: str | None = None,
        show_progress_bar: bool | None = None,
    ) -> None:
        """Write the model to a new folder, which EmbeddingGemma opens again, with prompts and settings as they are now.

        path    the folder; it appears when all is written
        format  None: as the model is now. "q8_0", "q4_0" or "mixed": quantised, opened in an instant and with little
                memory, by gemma_np alone. "float32": a checkpoint for sentence-transformers too, with the values of
                the files that the model was opened from; those of a quantised folder stay as they were rounded

        InputError: the folder exists, or a quantised model is asked for in another quantised format.
        """
        from gemma_np.checkpoint.saving import save

        save(
            self.source,
            Path(os.path.expanduser(path)),
            format or self.quantization or "float32",
            defaults=Defaults(self.prompts, self.default_prompt_name, self.similarity_fn_name, self.truncate_dim),
            max_seq_length=self.max_seq_length,
            show_progress=show_progress_bar,
        )

    def get_max_seq_length(self) -> int:
        """`max_seq_length`."""
        return self.max_seq_length

    def get_embedding_dimension(self) -> int:
        """The size of the vectors that `encode` gives: `truncate_dim`, or the model's full size."""
        return self.full_dim if self.truncate_dim is None else self.truncate_dim

    get_sentence_embedding_dimension = get_embedding_dimension

    @property
    def similarity_fn_name(self) -> str:
        """The similarity that `similarity` computes. Can be set."""
        return self._similarity_fn_name

    @similarity_fn_name.setter
    def similarity_fn_name(self, value: str) -> None:
        if value not in similarity.NAMES:
            raise InputError(f"similarity_fn_name = {value!r}, expected one of {', '.join(similarity.NAMES)}")
        self._similarity_fn_name = value

    def _warn(self, cut: list[int], doubled: list[int]) -> None:
        if cut:
            warnings.warn(
                f"{len(cut)} of the texts ({_listed(cut)}) had more than {self.max_seq_length:,} tokens and were cut "
                "there; truncate=False raises an error instead",
                GemmaWarning,
                stacklevel=3,
            )
        if doubled:
            warnings.warn(
                f"{len(doubled)} of the texts ({_listed(doubled)}) begin with the prompt already; now it stands there "
                "twice",
                GemmaWarning,
                stacklevel=3,
            )


def _reopened(model: str, max_seq_length: int, settings: dict[str, Any]) -> EmbeddingGemma:
    """What a pickle calls."""
    reopened = EmbeddingGemma(model, **settings)
    reopened.max_seq_length = max_seq_length
    return reopened


def _progress(show: bool | None, total: int | None) -> "tqdm[Any]":
    """A bar on stderr. None: only on a terminal (tqdm's own meaning), and only for work of more than two seconds."""
    return tqdm(
        total=total,
        desc="Embedding",
        unit="text",
        disable=None if show is None else not show,
        delay=2 if show is None else 0,
    )


def _listed(numbers: list[int]) -> str:
    return "numbers " + ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
