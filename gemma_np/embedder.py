"""EmbeddingGemma: texts in, vectors out, with sentence-transformers' names and meanings.

The file is long because one class is what people import, and its docstrings are what `help(EmbeddingGemma)` shows.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from gemma_np import hub, keywords, similarity, tensors
from gemma_np.arrays import AnyArray, Float32, Int32
from gemma_np.batches import chunked, expected_number, gathered, paired, strings
from gemma_np.checkpoint.defaults import SIMILARITIES, Defaults
from gemma_np.compatibility import Compatibility, ModelCard
from gemma_np.errors import InputError, positive, warn
from gemma_np.outcomes import Outcomes, check_marks, check_string, prompted
from gemma_np.output import Wanted
from gemma_np.prompts import first_known, prompt_named, titled
from gemma_np.splitting import Piece, split

Texts = str | Iterable[str]


class EmbeddingGemma(Compatibility):
    """A model, loaded and ready.

    model                folder of a checkpoint or a LoRA adapter, a hub id ("owner/name:Q8_0" is one of its GGUF
                         files), a GGUF file, or "nano", the small model inside the package ("./nano" is a folder of
                         this name); None: the model named by $GEMMA_NP_MODEL, or nano (announced once on stderr).
                         `model_name_or_path` is its name in sentence-transformers
    quantization         None: as the files are, float32 for a checkpoint. "q8_0": int8, "q4_0": int4, "mixed": int8 for
                         attention, int4 for the rest; rounded while the checkpoint is read, see weights/quantize.py.
                         `save_pretrained` keeps the result, so that it need not be rounded again
    dense                for GGUF files that have no Dense heads: the folder or hub id of a checkpoint that has them, or
                         False, to have the trunk's vectors without them, as llama.cpp gives them
    base                 for LoRA adapters: the folder or hub id of the checkpoint that they change; None: as their
                         adapter_config.json says
    truncate_dim         default size of the vectors; EmbeddingGemma is trained for 768, 512, 256 and 128. One above the
                         model's own size cuts nothing
    threads              how many threads compute; None: as many as the cores that this process may use. More than that
                         would be slower: then so many compute, and a warning says so
    prompts              prompts by name, in addition to the checkpoint's, or instead of those of the same name; None
                         leaves the checkpoint's
    default_prompt_name  the prompt of calls that name none
    revision, token, cache_folder, local_files_only    for the hub, as in huggingface_hub
    similarity_fn_name   "cosine", "dot", "euclidean" or "manhattan"; None: as the checkpoint says
    other                keywords of sentence-transformers, see keywords.py: those that change nothing here, and
                         tokenizer_kwargs={"model_max_length": n}

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
        base: str | os.PathLike[str] | None = None,
        truncate_dim: int | None = None,
        threads: int | None = None,
        prompts: Mapping[str, str | None] | None = None,
        default_prompt_name: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_folder: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        similarity_fn_name: Any = None,
        **other: Any,
    ) -> None:
        model = keywords.second_name("model", model, "model_name_or_path", other)
        token = keywords.second_name("token", token, "use_auth_token", other)
        max_length = keywords.max_length_of(other)
        keywords.refuse("EmbeddingGemma", other, keywords.CONSTRUCTOR)
        name = hub.default_model() if model is None else model
        kept: dict[str, Any] = {"cache_folder": cache_folder, "local_files_only": local_files_only}
        in_hub = {**kept, "revision": revision, "token": token}
        path = hub.locate(name, **in_hub)
        heads = dense if dense is None or dense is False else hub.locate(dense, **in_hub, files=hub.HEADS)
        super().__init__(path, threads, quantization, heads, hub.base_of(path, base, **in_hub))
        self._dense, self._base = heads, self.source.base and hub.found_again(base, self.source.base)
        self._recipe = hub.found_again(name, self.folder), kept
        defaults = self.source.defaults
        self.model_card_data = ModelCard()
        self.max_seq_length = self.max_seq_length if max_length is None else max_length
        self.prompts = _joined_prompts(defaults.all_prompts, {} if prompts is None else prompts)
        self.default_prompt_name = default_prompt_name or defaults.default_prompt_name
        if default_prompt_name is not None:
            prompt_named(default_prompt_name, self.prompts)
        else:
            defaults.check_prompt(self.prompts)
        self.truncate_dim = defaults.truncate_dim if truncate_dim is None else truncate_dim
        self.similarity_fn_name = defaults.similarity_fn_name if similarity_fn_name is None else similarity_fn_name

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
            "base": self._base,
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
        output_value: str | None = "sentence_embedding",
        truncate: bool = True,
        errors: str = "raise",
        outcomes: Outcomes | None = None,
    ) -> Iterator[Any]:
        """`encode`, batch by batch: yields [b, dim] arrays, or for another `output_value` lists of what each text gets.

        prompts   the prompt itself, for all or one for each text; `resolve_prompt` finds it by name
        wanted    of the vectors, see `wanted`; None: float32 of the model's own size
        errors, outcomes    as in `encode`; an Outcomes is filled as the texts go by
        """
        batch_size = positive("batch_size", batch_size)
        wanted = self.wanted() if wanted is None else wanted
        check_marks(errors, output_value, wanted.precision, outcomes)
        each = strings(texts, "inputs")
        outcomes = Outcomes() if outcomes is None else outcomes
        doubled: list[int] = []
        with _progress(show_progress_bar, expected_number(texts)) as bar:
            for chunk, chunk_prompts in chunked(paired(each, prompts), batch_size):
                first = len(outcomes)
                ids, lengths, bad = self.tokenized(chunk, chunk_prompts, first, truncate=truncate, errors=errors)
                outcomes.add(lengths, self.max_seq_length, bad)
                doubled += _doubled(chunk, chunk_prompts, first)
                if output_value == "token_embeddings":
                    yield [self.token_embeddings(tokens) for tokens in ids]
                else:
                    vectors = wanted.of(self.embed_ids(ids, self.prompt_lengths(chunk_prompts)))
                    vectors[[i - first for i in bad]] = np.nan if wanted.precision == "float32" else 0
                    yield vectors if output_value else list(map(self._features, ids, vectors))
                bar.update(len(chunk))
        self._warn(np.flatnonzero(outcomes.truncated).tolist(), doubled, outcomes.errors)

    def encode(
        self,
        inputs: Texts | None = None,
        prompt_name: str | None = None,
        prompt: str | Sequence[str] | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str = "sentence_embedding",
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: Any = None,
        chunk_size: int | None = None,
        *,
        truncate: bool = True,
        ranges: ArrayLike | None = None,
        errors: str = "raise",
        return_info: bool = False,
        sentences: Texts | None = None,
        **other: Any,
    ) -> Any:
        """Texts -> vectors.

        inputs                a string, or any iterable of strings, a generator too; `sentences` is its old name
        prompt_name           a task: the checkpoint's names (`prompts`) and friendly ones such as retrieval_query
        prompt                the prompt itself, for all texts or one for each; wins over prompt_name
        batch_size            texts per batch, and per step of the progress bar; it changes no vector
        show_progress_bar     True, False, or None: on a terminal, once it takes more than two seconds
        output_value          "sentence_embedding", "token_embeddings": a [T, D] array for each text, or None: for each
                              text a dictionary of both, the ids and their mask
        precision             "float32", "int8", "uint8", "binary" or "ubinary", see output.quantize
        convert_to_tensor     True: torch's tensors, which share the arrays' memory; needs torch
        convert_to_numpy      False: a list of tensors
        device, pool, chunk_size    accepted as far as they mean the CPU: one process uses all its cores
        normalize_embeddings  bring vectors to length 1 although the model does not
        truncate_dim          how many dimensions to keep; None: the model's `truncate_dim`
        truncate              False: an error for a text over max_seq_length, instead of a warning and a cut
        ranges                [2, dim], the int8 range of each dimension instead of the fixed one
        errors                "mark": a text that cannot be embedded (no string, no Unicode, with truncate=False too
                              long) gets a row of NaN, of zeros for codes, and a warning; "raise": InputError
        return_info           True: also an Outcomes, the tokens of each text, whether it was cut, which have a vector
        returns               [dim] for one string, else [B, dim] in the order of the inputs, (0, dim) for none
        """
        keywords.refuse("encode", {"device": device, **other}, keywords.ENCODE)
        form = tensors.form_of(convert_to_numpy, convert_to_tensor)
        texts = sentences if inputs is None else inputs
        one = isinstance(texts, str)
        wanted = self.wanted(truncate_dim, normalize_embeddings, precision or "float32", ranges)
        if output_value != "sentence_embedding" and wanted.precision != "float32":
            raise InputError(f"precision = {precision!r} is for sentence embeddings; token embeddings are float32")
        outcomes = Outcomes() if return_info else None
        batches = self.stream(
            [texts] if isinstance(texts, str) else texts,  # type: ignore[arg-type]  # stream refuses None
            self.resolve_prompt(prompt_name, prompt),
            wanted,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            output_value=output_value,
            truncate=truncate,
            errors=errors,
            outcomes=outcomes,
        )
        found: Any
        if output_value != "sentence_embedding":
            found = [formed(item, form) for batch in batches for item in batch]
        else:
            empty = wanted.of(np.empty((0, self.full_dim), np.float32))
            found = form(gathered(batches, empty, 1 if one else expected_number(texts)))
            if not (one or convert_to_tensor or convert_to_numpy or convert_to_numpy is None):
                found = list(found)
        found = found[0] if one else found
        return (found, outcomes) if return_info else found

    def _features(self, tokens: Int32, vector: AnyArray) -> dict[str, AnyArray]:
        """What `encode` gives for a text with output_value=None."""
        ids = tokens.astype(np.int64)
        return {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_embeddings": self.token_embeddings(tokens),
            "sentence_embedding": vector,
        }

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
            prompt_name = first_known(("query",), self.prompts)
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
        """`encode` with the first prompt of "document", "passage" and "corpus" that the model has, unless another is
        named. Arguments as in `encode`, and

        titles   the documents' titles, one for each text (None where there is none), or one string for one text
        """
        if prompt_name is None and prompt is None:
            prompt_name = first_known(("document", "passage", "corpus"), self.prompts)
        if titles is None:
            return self.encode(inputs, prompt_name, prompt, *args, **options)
        document = self.resolve_prompt(prompt_name, prompt)
        every = [titles] if isinstance(titles, str) else strings(titles, "titles")
        each = [titled(document, title, i) for i, title in enumerate(every)]
        return self.encode(inputs, None, each, *args, **options)

    def resolve_prompt(self, prompt_name: str | None = None, prompt: Any = None) -> Any:
        """The prompt of a call: `prompt` itself, else the one named, else the default one, else none ("")."""
        if prompt is not None:
            if prompt_name is not None:
                warn("prompt= and prompt_name= were both passed; prompt= counts")
            return prompt
        name = self.default_prompt_name if prompt_name is None else prompt_name
        return "" if name is None else prompt_named(name, self.prompts)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """[A, dim], [B, dim] -> float32 [A, B], by `similarity_fn_name`: an array, or a tensor if they are tensors."""
        return self._compared(similarity.similarity, embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """[A, dim], [A, dim] -> float32 [A]: the first with the first, the second with the second. Form as above."""
        return self._compared(similarity.similarity_pairwise, embeddings1, embeddings2)

    def _compared(self, function: Callable[..., Float32], a: Any, b: Any) -> Any:
        scores = function(self.similarity_fn_name, tensors.as_array(a), tensors.as_array(b))
        return tensors.like(tensors.device_of(a, b), scores)

    def count_tokens(self, texts: Texts, prompt_name: str | None = None, prompt: str | None = None) -> Any:
        """How many tokens a text has, prompt, BOS and EOS included, before any cut: an int, or a list for a list."""
        each = [texts] if isinstance(texts, str) else list(strings(texts, "texts"))
        _, lengths = self._tokenizer.encode(prompted(each, self.resolve_prompt(prompt_name, prompt)))
        return lengths[0] if isinstance(texts, str) else lengths

    def split(
        self,
        text: str,
        max_tokens: int | None = None,
        overlap: int = 0,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> list[Piece]:
        """A text -> pieces that each fit into `max_tokens`, cut after a paragraph, a sentence, a line or a word where
        there is one, and never within what people see as one character if that can be avoided.

        max_tokens   prompt, BOS and EOS included; None: `max_seq_length`
        overlap      how many tokens at the end of a piece begin the next one, too
        prompt_name, prompt    with which the pieces will be embedded, as in `encode`
        returns      of each piece its text, its start and end in `text` in code points, and its tokens; none of ""
        """
        prompt = self.resolve_prompt(prompt_name, prompt)
        max_tokens = positive("max_tokens", self.max_seq_length if max_tokens is None else max_tokens)
        if max_tokens > self.max_seq_length:
            raise InputError(f"max_tokens = {max_tokens}, but texts are cut at max_seq_length = {self.max_seq_length}")
        overlap = positive("overlap", overlap) if overlap else 0
        check_string("text", 0, text)
        (offsets,) = self._tokenizer.offsets([text])
        return split(text, offsets, lambda piece: self.count_tokens(piece, prompt=prompt), max_tokens, overlap)

    def save_pretrained(
        self,
        path: str | os.PathLike[str],
        model_name: str | None = None,
        create_model_card: bool = True,
        train_datasets: Sequence[str] | None = None,
        safe_serialization: bool = True,
        *,
        format: str | None = None,
        show_progress_bar: bool | None = None,
    ) -> None:
        """Write the model to a new folder, which EmbeddingGemma opens again, with prompts and settings as they are now.

        path    the folder; it appears when all is written
        format  None: as the model is now. "q8_0", "q4_0" or "mixed": quantised, opened in an instant and with little
                memory, by gemma_np alone. "float32": a checkpoint for sentence-transformers too, with the values of
                the files that the model was opened from; those of a quantised folder stay as they were rounded
        model_name, create_model_card, train_datasets    of sentence-transformers' model card, which is not written

        InputError: the folder exists, or a quantised model is asked for in another quantised format.
        """
        from gemma_np.checkpoint.saving import save

        if not safe_serialization:
            raise InputError("safe_serialization=False is not served: weights are written as safetensors alone")
        prompts = _checked_prompts(self.prompts)  # they may have been changed in place
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

    def fingerprint(self, prompt_name: str | None = None, dim: int | None = None) -> str:
        """Which model this is, 64 hex digits: for whoever keeps vectors, since those of two models cannot be compared.

        It depends on weights, tokenizer, modules, prompts and quantization, see checkpoint/fingerprint.py.

        prompt_name, dim    for a cache of vectors: with one of them, the text and this hash say what the vector is. The
                            prompt, the size of the vectors and `max_seq_length` count, too
        """
        from gemma_np.checkpoint.fingerprint import fingerprint, narrowed

        found = fingerprint(self.source, self.quantization, self.prompts)
        if prompt_name is None and dim is None:
            return found
        return narrowed(found, self.resolve_prompt(prompt_name), self.wanted(dim).width, self.max_seq_length)

    @property
    def prompts(self) -> dict[str, str]:
        """Prompts by name. Can be set: names with strings, where None is an empty one."""
        return self._prompts

    @prompts.setter
    def prompts(self, value: Mapping[str, str | None]) -> None:
        self._prompts = _checked_prompts(value)

    @property
    def truncate_dim(self) -> int | None:
        """How many entries `encode` keeps of a vector, where a call does not say; None: all. Can be set."""
        return self._truncate_dim

    @truncate_dim.setter
    def truncate_dim(self, value: int | None) -> None:
        self._truncate_dim = None if value is None else positive("truncate_dim", value)

    def get_max_seq_length(self) -> int:
        """`max_seq_length`."""
        return self.max_seq_length

    def get_embedding_dimension(self) -> int:
        """The size of the vectors that `encode` gives: `truncate_dim`, or the model's full size if that is smaller."""
        return self.wanted().width

    get_sentence_embedding_dimension = get_embedding_dimension

    @property
    def similarity_fn_name(self) -> str:
        """The similarity that `similarity` computes. Can be set."""
        return self._similarity_fn_name

    @similarity_fn_name.setter
    def similarity_fn_name(self, value: Any) -> None:
        name = getattr(value, "value", value)  # of sentence-transformers' SimilarityFunction
        if name not in (None, *SIMILARITIES):
            raise InputError(f"similarity_fn_name = {value!r}, expected one of {', '.join(SIMILARITIES)}")
        self._similarity_fn_name = name or "cosine"

    def _warn(self, cut: list[int], doubled: list[int], errors: Mapping[int, str]) -> None:
        """Warn of texts that were cut, have their prompt twice, or have no vector."""
        if errors:
            warn("a text has no vector; return_info=True tells why (this warning's .texts are the numbers)", [*errors])
        if cut:
            warn(
                f"a text had more than {self.max_seq_length:,} tokens and was cut there; truncate=False raises an "
                "error instead (this warning's .texts are the numbers of such texts)",
                texts=cut,
            )
        if doubled:
            warn("a text begins with the prompt already; now it has it twice", texts=doubled)


def _doubled(texts: Sequence[str], prompts: Sequence[str], first: int) -> list[int]:
    """The numbers of the texts that begin with their prompt already; `first` is that of texts[0]."""
    each = [(i, text, prompt) for i, (text, prompt) in enumerate(zip(texts, prompts, strict=True), first)]
    return [i for i, text, prompt in each if prompt.strip() and str(text).startswith(prompt.rstrip())]


def _checked_prompts(prompts: Mapping[str, str | None]) -> dict[str, str]:
    """A caller's prompts; None is an empty one, as in a checkpoint's file."""
    if not isinstance(prompts, Mapping):
        raise InputError(f"prompts is {type(prompts).__name__}, expected names with strings")
    for name, prompt in prompts.items():
        if not isinstance(prompt, str | None):
            raise InputError(f"prompts[{name!r}] is {type(prompt).__name__}, expected a string or None")
    return {name: prompt or "" for name, prompt in prompts.items()}


def _joined_prompts(own: Mapping[str, str], given: Mapping[str, str | None]) -> dict[str, str]:
    """A checkpoint's prompts and a caller's. As in sentence-transformers, None leaves the checkpoint's as it is."""
    _checked_prompts(given)
    return {name: own.get(name, "") if prompt is None else prompt for name, prompt in {**own, **given}.items()}


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


def formed(item: Any, form: tensors.Form) -> Any:
    """An array in the form that is asked for; of a dictionary each value."""
    return {name: form(array) for name, array in item.items()} if isinstance(item, dict) else form(item)
