"""A loaded model and the three steps that every call is made of.

    prepare(texts, prompts) -> ids, truncated      embed_ids(ids) -> full vectors      wanted(...).of(vectors) -> output

Requests with different prompts and dimensions can share one pass: only embed_ids is costly.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from threadpoolctl import ThreadpoolController

from gemma_np import model
from gemma_np.arrays import Float32, Int32
from gemma_np.batches import described
from gemma_np.config import Config
from gemma_np.errors import InputError, WeightsError, positive, warn
from gemma_np.fast import Fast, unfit
from gemma_np.kernels.choice import choose
from gemma_np.kernels.columns import Column
from gemma_np.kernels.cores import too_many, usable_cores
from gemma_np.modules import Modules
from gemma_np.opening import open_source
from gemma_np.outcomes import prompted, sound
from gemma_np.output import Wanted
from gemma_np.pretrained import PretrainedTokenizer
from gemma_np.weights.finite import find_nonfinite
from gemma_np.weights.loading import load_weights
from gemma_np.weights.quantize import format_of

if TYPE_CHECKING:
    from gemma_np.kernels.objects import Compiled


class Closed:
    """In place of what a closed model has given back."""

    def __getattr__(self, name: str) -> Any:
        raise InputError("this model is closed; open it again")


CLOSED = Closed()


class Pipeline:
    """A model in memory: config, modules, weights, tokenizer.

    path          of the checkpoint's folder, the quantised folder or the GGUF file
    threads       how many threads compute; None: as many as the cores that this process may use, which is the most
    quantization  None: as the files are; or one of quantize.QUANTIZATIONS
    dense         for GGUF files, see gguf.source.open_gguf_source

    It has, besides `threads` and `quantization` as they are in effect:

    folder, source, config, modules    the model's path, the files, and what they say
    weights       all matrices and norms, see weights.loading
    full_dim      how many entries a full vector has
    column, why_not, fast    the kernels that run and the compiled path, None for NumPy; and why these
    base          for LoRA adapters, see hub.base_of
    """

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        quantization: str | None = None,
        dense: Path | Literal[False] | None = None,
        base: Path | None = None,
    ) -> None:
        self.threads = None if threads is None else positive("threads", threads)
        if self.threads is not None and (why := too_many(self.threads)):
            warn(why)
            self.threads = usable_cores()
        format_of(quantization, "")  # refuses what it does not know, before a gigabyte is read
        self.source = source = open_source(path, dense, base)
        self.folder = source.path
        self._blas = ThreadpoolController()
        self.config, self.modules, self.full_dim = source.config, source.modules, source.full_dim
        if quantization and source.quantization not in (None, quantization):
            raise InputError(
                f"{source.path} is {source.quantization} already; quantization = {quantization!r} needs the float "
                "checkpoint that it was made from"
            )
        self.quantization = source.quantization or quantization
        self.column, self.why_not = chosen(self.config, self.modules)
        rounding = quantization if source.quantization is None else None
        packed = self.column is not None
        self.weights = load_weights(source.tensors, self.config, self.modules, rounding, packed)
        self.fast = self._compiled()
        self._tokenizer = source.open_tokenizer(run=self.fast.compiled.encode if self.fast else None)
        self._tokenizer.max_length = source.max_seq_length

    def _compiled(self) -> Fast | None:
        """The kernels for these weights. If they cannot be compiled, NumPy takes over and a warning says why."""
        if self.column is None:
            return None
        from gemma_np.kernels.cache import kernels_for
        from gemma_np.kernels.objects import BuildError

        def kernels(column: Column, formats: tuple[str, ...]) -> "Compiled":
            return kernels_for(column, formats, _tested)

        try:
            return Fast(self.column, self.weights, self.config, self.modules, self.threads, kernels)
        except BuildError as error:
            self.column, self.why_not = None, str(error)
            warn(f"{error}; NumPy computes instead, more slowly")
            return None

    def close(self) -> None:
        """Give back memory, files and, after the last open model, the threads. The model cannot be used then. Closing
        it again does nothing. `with EmbeddingGemma(...) as model:` closes it at the end."""
        vars(self).update(dict.fromkeys(("weights", "fast", "source", "_tokenizer"), CLOSED))
        if self.column is not None:
            from gemma_np.kernels.engine import stop_idle_threads

            stop_idle_threads()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def tokenizer(self) -> PretrainedTokenizer:
        """The model's tokenizer, with the names and meanings of transformers' tokenizers."""
        return PretrainedTokenizer(self._tokenizer)

    @property
    def max_seq_length(self) -> int:
        """The longest text in tokens, prompt, BOS and EOS included; longer ones are cut. Can be set."""
        return self._tokenizer.max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self._tokenizer.max_length = positive("max_seq_length", value)

    def prepare(
        self, texts: Sequence[str], prompts: str | Sequence[str] = "", *, truncate: bool = True, first: int = 0
    ) -> tuple[list[Int32], list[int]]:
        """Texts -> token ids: each text after its prompt, between BOS and EOS, cut at `max_seq_length`.

        prompts  one prompt for all, or one for each
        truncate False: InputError for a text that is too long
        first    the number of texts[0] in messages
        returns  int32 arrays, and the numbers of the texts that were cut
        """
        ids, lengths, _ = self.tokenized(texts, prompts, first, truncate=truncate)
        return ids, [i for i, length in enumerate(lengths, first) if length > self.max_seq_length]

    def tokenized(
        self,
        texts: Sequence[Any],
        prompts: str | Sequence[str] = "",
        first: int = 0,
        *,
        truncate: bool = True,
        errors: str = "raise",
    ) -> tuple[list[Int32], list[int], dict[int, str]]:
        """As `prepare`, and what there is to say of each text.

        errors   "raise": InputError for the first text that cannot be embedded; "mark": it counts as an empty one.
                 Errors in prompts are raised
        returns  int32 arrays; how many tokens each text has before the cut; why texts cannot be embedded, by their
                 numbers
        """
        bad: dict[int, str] = {}
        kept: Any = texts
        if errors == "mark":
            kept, bad = sound(texts, first)
        while True:
            try:
                whole = prompted(kept, prompts, first)
                ids, lengths = self._tokenizer.encode(whole, self.max_seq_length, first)
                break
            except InputError as error:
                if errors == "raise" or error.text is None or error.text in bad:
                    raise
                bad[error.text], kept[error.text - first] = str(error), ""
        for i, length in enumerate(lengths, first):
            if length > self.max_seq_length and not truncate:
                bad[i] = (
                    f"text {i} has {length:,} tokens, prompt, BOS and EOS included, and the model takes "
                    f"{self.max_seq_length:,}; shorten it, or let it be cut with truncate=True"
                )
                if errors == "raise":
                    raise InputError(bad[i], text=i)
        return ids, lengths, bad

    def embed_ids(self, ids: Sequence[Int32], prompt_lengths: int | Sequence[int] = 0) -> Float32:
        """Token ids -> full vectors [B, dim], before any truncation. A text's vector is the same bits in any batch.

        prompt_lengths  how many leading tokens are the prompt's (`prompt_lengths`): models whose pooling says
                        `include_prompt: false` leave them out of the mean, others ignore it
        """
        skips = [prompt_lengths] * len(ids) if isinstance(prompt_lengths, int) else list(prompt_lengths)
        if len(skips) != len(ids):
            raise InputError(f"{len(skips)} prompt_lengths for {len(ids)} texts; expected one for all, or one for each")
        if self.modules.include_prompt:
            skips = [0] * len(ids)
        ids = [self._checked_ids(i, tokens) for i, tokens in enumerate(ids)]
        with self._computing():
            if self.fast is None:
                vectors = np.empty((len(ids), self.full_dim), dtype=np.float32)
                for i, (tokens, skip) in enumerate(zip(ids, skips, strict=True)):
                    vectors[i] = model.embed(tokens, self.weights, self.config, self.modules, skip)
            else:
                vectors = self.fast.vectors(ids, skips)
        self._check_finite(vectors, ids)
        return vectors

    def wanted(
        self,
        dim: int | None = None,
        normalize: bool = False,
        precision: str = "float32",
        ranges: ArrayLike | None = None,
    ) -> Wanted:
        """What a caller wants of this model's vectors, checked: `dim` entries, length 1 where the model or `normalize`
        says so, in a precision. `wanted(...).of(vectors)` makes it of full vectors [B, D].

        After a cut, the vectors of a model with a Normalize module are brought back to length 1; sentence-transformers
        leaves them short unless normalize_embeddings is set. For int8 and the others see output.quantize.
        """
        return Wanted(self.full_dim, self.modules.normalizes, dim, normalize, precision, ranges)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Limit BLAS to `threads` threads (kernels do not use it). Overflow and NaN are looked for in the result."""
        free = self.threads is None or self.fast is not None
        limited = nullcontext() if free else self._blas.limit(limits=self.threads, user_api="blas")
        with limited, np.errstate(all="ignore"):
            yield

    def token_embeddings(self, tokens: Int32) -> Float32:  # [T] -> [T, D]
        """The trunk's vector of each token."""
        with self._computing():
            x = self.fast.tokens(tokens) if self.fast else model.trunk(tokens, self.weights, self.config)
        self._check_finite(x, [tokens])
        return x

    def prompt_lengths(self, prompts: Sequence[str]) -> list[int]:
        """How many leading tokens of a text each prompt is, where the model's mean leaves them out; else 0."""
        if self.modules.include_prompt:
            return [0] * len(prompts)
        lengths = {prompt: self._tokenizer.prompt_length(prompt) if prompt else 0 for prompt in set(prompts)}
        return [lengths[prompt] for prompt in prompts]

    def _checked_ids(self, i: int, tokens: Int32) -> Int32:
        tokens = np.asarray(tokens)
        if tokens.ndim != 1 or not tokens.size or tokens.dtype.kind not in "iu":
            raise InputError(
                f"ids[{i}] is {described(tokens)} of shape {tokens.shape}, expected integers, one at least"
            )
        if tokens.min() < 0 or tokens.max() >= self.config.V:
            raise InputError(
                f"ids[{i}] reaches from {tokens.min()} to {tokens.max()}, expected 0 to {self.config.V - 1}"
            )
        return tokens

    def _check_finite(self, vectors: Float32, ids: Sequence[Int32]) -> None:
        if not np.isfinite(vectors).all():
            raise WeightsError(
                f"{self.folder}: a result is not finite: {find_nonfinite(self.weights, ids) or 'an activation'} holds "
                "NaN or infinity; the checkpoint is damaged, download or convert it again"
            )


def chosen(config: Config, modules: Modules) -> tuple[Column | None, str]:
    """The kernels that run a model, None for NumPy, and why."""
    choice = choose()
    if choice.mistake:
        warn(choice.mistake)
    if choice.column is None:
        return None, choice.reason
    misfit = unfit(config, modules)
    return (None, f"the tiles cannot take this model: {misfit}") if misfit else (choice.column, choice.reason)


def _tested(column: Column, formats: tuple[str, ...], compiled: "Compiled") -> None:
    """What is done with kernels that have just been compiled; most processes compile none."""
    from gemma_np.selftest import check

    check(column, formats, compiled)
