"""EmbeddingGemma: texts in, vectors out, with sentence-transformers' names and meanings.

The file is long because one class is what people import, and its docstrings are what `help(EmbeddingGemma)` shows.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from gemma_np import hub, keywords, similarity
from gemma_np.arrays import AnyArray, Float32
from gemma_np.batches import chunked, expected_number, gathered, paired, strings
from gemma_np.checkpoint.defaults import SIMILARITIES, Defaults
from gemma_np.errors import InputError, positive, warn
from gemma_np.output import Wanted
from gemma_np.pipeline import Pipeline, prompted
from gemma_np.prompts import prompt_named, titled

Texts = str | Iterable[str]


class EmbeddingGemma(Pipeline):
    """A model, loaded and ready.

    model                folder of a checkpoint, a hub id, a GGUF file, or "nano", the small model inside the package
                         ("./nano" is a folder of this name); None: the model named by $GEMMA_NP_MODEL, or nano
                         (announced once on stderr)
    quantization         None: as the files are, float32 for a checkpoint. "q8_0": int8, "q4_0": int4, "mixed": int8 for
                         attention, int4 for the rest; rounded while the checkpoint is read, see weights/quantize.py.
                         `save_pretrained` keeps the result, so that it need not be rounded again
    dense                for GGUF files that have no Dense heads: the folder or hub id of a checkpoint that has them, or
                         False, to have the trunk's vectors without them, as llama.cpp gives them
    truncate_dim         default size of the vectors; EmbeddingGemma is trained for 768, 512, 256 and 128
    threads              how many threads compute; None: as many as the cores that this process may use
    prompts              prompts by name, in addition to the checkpoint's, or instead of those of the same name
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
        name = hub.default_model() if model is None else model
        in_hub: dict[str, Any] = {
            "revision": revision,
            "token": token,
            "cache_folder": cache_folder,
            "local_files_only": local_files_only,
        }
        path = hub.locate(name, **in_hub)
        heads = dense if dense is None or dense is False else hub.locate(dense, **in_hub, files=hub.HEADS)
        super().__init__(path, threads, quantization, heads)
        self._dense = heads
        self._recipe = self._recipe_of(name, in_hub)
        defaults = self.source.defaults
        self.prompts = {**defaults.all_prompts, **_checked_prompts(prompts or {})}
        self.default_prompt_name = default_prompt_name or defaults.default_prompt_name
        if default_prompt_name is not None:
            prompt_named(default_prompt_name, self.prompts)
        else:
            defaults.check_prompt(self.prompts)
        self.truncate_dim = defaults.truncate_dim if truncate_dim is None else truncate_dim
        self.similarity_fn_name = similarity_fn_name or defaults.similarity_fn_name

    def _recipe_of(self, name: str | os.PathLike[str], in_hub: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The model and the keywords with which a pickle's copy elsewhere opens the same one; never the token."""
        if name != hub.NANO and os.path.exists(os.path.expanduser(name)):
            return str(self.folder), {}
        # A folder of the hub's cache is named after its commit.
        commit = self.folder.name if self.folder.parent.name == "snapshots" else in_hub["revision"]
        return os.fspath(name), {
            **{key: in_hub[key] for key in ("cache_folder", "local_files_only")},
            "revision": commit,
        }

    def __repr__(self) -> str:
        held = self.quantization or "float32"
        return f"EmbeddingGemma({str(self.folder)!r}: {self.get_embedding_dimension()} dimensions, {held})"

    def __reduce__(self) -> tuple[Any, ...]:
        model, in_cache = self._recipe
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

    def wanted(
        self,
        dim: int | None = None,
        normalize: bool = False,
        precision: str = "float32",
        ranges: ArrayLike | None = None,
    ) -> Wanted:
        """As in Pipeline; where `dim` is None, the model's `truncate_dim` counts."""
        return super().wanted(self.truncate_dim if dim is None else dim, normalize, precision, ranges)

    def stream(
        self,
        texts: Iterable[str],
        prompts: str | Iterable[str] = "",
        wanted: Wanted | None = None,
        *,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        token_embeddings: bool = False,
        truncate: bool = True,
    ) -> Iterator[Any]:
        """`encode`, batch by batch: yields [b, dim] arrays, or lists of [T, D] arrays with `token_embeddings`.

        prompts   the prompt itself, for all or one for each text; `resolve_prompt` finds it by name
        wanted    of the vectors, see `wanted`; None: float32 of the model's own size
        """
        batch_size = positive("batch_size", batch_size)
        wanted = self.wanted() if wanted is None else wanted
        each = strings(texts, "inputs")
        doubled: list[int] = []
        cut: list[int] = []
        first = 0
        with _progress(show_progress_bar, expected_number(texts)) as bar:
            for chunk, chunk_prompts in chunked(paired(each, prompts), batch_size):
                ids, truncated = self.prepare(chunk, chunk_prompts, truncate=truncate, first=first)
                cut += truncated
                doubled += [
                    i
                    for i, (text, prompt) in enumerate(zip(chunk, chunk_prompts, strict=True), first)
                    if prompt.strip() and text.startswith(prompt.rstrip())
                ]
                if token_embeddings:
                    yield [self.token_embeddings(tokens) for tokens in ids]
                else:
                    yield wanted.of(self.embed_ids(ids, self.prompt_lengths(chunk_prompts)))
                first += len(chunk)
                bar.update(len(chunk))
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
        batch_size            texts per batch, and per step of the progress bar; it changes no vector
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
        if output_value not in ("sentence_embedding", "token_embeddings"):
            raise InputError(
                f"output_value = {output_value!r}, expected 'sentence_embedding' or 'token_embeddings'; for the tokens "
                "themselves call tokenize()"
            )
        of_tokens = output_value == "token_embeddings"
        if of_tokens and precision != "float32":
            raise InputError(f"precision = {precision!r} is for sentence embeddings; token embeddings are float32")
        texts = sentences if inputs is None else inputs
        one = isinstance(texts, str)
        wanted = self.wanted(truncate_dim, normalize_embeddings, precision, ranges)
        batches = self.stream(
            [texts] if isinstance(texts, str) else texts,  # type: ignore[arg-type]  # stream refuses None
            self.resolve_prompt(prompt_name, prompt),
            wanted,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            token_embeddings=of_tokens,
            truncate=truncate,
        )
        if of_tokens:
            arrays = [array for batch in batches for array in batch]
            return arrays[0] if one else arrays
        empty = wanted.of(np.empty((0, self.full_dim), np.float32))
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

        prompts = _checked_prompts(self.prompts)
        if self.default_prompt_name is not None:
            prompt_named(self.default_prompt_name, prompts)
        save(
            self.source,
            Path(os.path.expanduser(path)),
            format or self.quantization or "float32",
            defaults=Defaults(prompts, self.default_prompt_name, self.similarity_fn_name, self.truncate_dim),
            max_seq_length=self.max_seq_length,
            show_progress=show_progress_bar,
        )

    def fingerprint(self) -> str:
        """Which model this is, 64 hex digits: for whoever keeps vectors, since those of two models cannot be compared.

        It depends on weights, tokenizer, modules, prompts and quantization, see checkpoint/fingerprint.py.
        """
        from gemma_np.checkpoint.fingerprint import fingerprint

        return fingerprint(self.source, self.quantization, self.prompts)

    @property
    def truncate_dim(self) -> int | None:
        """How many entries `encode` keeps of a vector, where a call does not say; None: all. Can be set."""
        return self._truncate_dim

    @truncate_dim.setter
    def truncate_dim(self, value: int | None) -> None:
        self._truncate_dim = super().wanted(value).dim

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
        if value not in SIMILARITIES:
            raise InputError(f"similarity_fn_name = {value!r}, expected one of {', '.join(SIMILARITIES)}")
        self._similarity_fn_name = value

    def _warn(self, cut: list[int], doubled: list[int]) -> None:
        """Warn of texts that were cut, or have their prompt twice."""
        if cut:
            warn(
                f"a text had more than {self.max_seq_length:,} tokens and was cut there; truncate=False raises an "
                "error instead (this warning's .texts are the numbers of such texts)",
                texts=cut,
            )
        if doubled:
            warn("a text begins with the prompt already; now it has it twice", texts=doubled)


def _checked_prompts(prompts: Mapping[str, str | None]) -> dict[str, str]:
    """A caller's prompts; None is an empty one, as in a checkpoint's file."""
    if not isinstance(prompts, Mapping):
        raise InputError(f"prompts is {type(prompts).__name__}, expected names with strings")
    for name, prompt in prompts.items():
        if not isinstance(prompt, str | None):
            raise InputError(f"prompts[{name!r}] is {type(prompt).__name__}, expected a string or None")
    return {name: prompt or "" for name, prompt in prompts.items()}


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
