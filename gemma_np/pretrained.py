"""A model's tokenizer with the names and meanings of transformers' PreTrainedTokenizer, as far as people use them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gemma_np.arrays import AnyArray, Int32
from gemma_np.batches import strings
from gemma_np.errors import InputError, positive
from gemma_np.tensors import form_of
from gemma_np.tokens.tokenizer import Tokenizer

NAMES = {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}


class Encoded(dict[str, Any]):
    """What a call gives: a dictionary whose keys are attributes too, as transformers' BatchEncoding."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name}; there are {', '.join(self)}") from None


class PretrainedTokenizer:
    """`model.tokenizer`.

    >>> model.tokenizer.encode("a text")  # ids, BOS and EOS included
    >>> model.tokenizer.tokenize("a text")  # pieces, without them
    >>> model.tokenizer(["a text", "another"], padding=True, return_tensors="np")["input_ids"]  # int64 [2, T]

    Nothing is cut unless `truncation=True` or `max_length=` asks for it. `model_max_length` is the model's
    `max_seq_length`, and can be set. A keyword that is not served raises TypeError.
    """

    padding_side = "right"
    is_fast = True
    model_input_names = ("input_ids", "attention_mask")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._tokenizer.path)!r}: {len(self):,} pieces)"

    def __len__(self) -> int:
        return self._tokenizer.rows

    vocab_size = property(__len__, doc="How many ids there are.")

    @property
    def model_max_length(self) -> int:
        """The longest text in tokens, BOS and EOS included: the model's `max_seq_length`."""
        return self._tokenizer.max_length

    @model_max_length.setter
    def model_max_length(self, value: int) -> None:
        self._tokenizer.max_length = positive("model_max_length", value)

    def __getattr__(self, name: str) -> Any:
        """bos_token, bos_token_id and so on, for bos, eos, pad, unk and mask; None where the vocabulary has none."""
        kind, _, rest = name.partition("_")
        if kind not in NAMES or rest not in ("token", "token_id"):
            raise AttributeError(f"{type(self).__name__} has no {name!r}; what it has: {', '.join(_public(self))}")
        id = self._tokenizer.id_of(NAMES[kind])
        return id if rest == "token_id" or id is None else NAMES[kind]

    @property
    def all_special_ids(self) -> list[int]:
        """The ids that `skip_special_tokens` leaves out."""
        return sorted(self._tokenizer.special_ids)

    @property
    def all_special_tokens(self) -> list[str]:
        """The pieces that `skip_special_tokens` leaves out."""
        return [self._tokenizer.name(id) for id in self.all_special_ids]

    def get_vocab(self) -> dict[str, int]:
        """Every piece with its id."""
        return {self._tokenizer.name(id): id for id in range(len(self))}

    def encode(self, text: str, add_special_tokens: bool = True, **options: Any) -> Any:
        """A text's ids, BOS and EOS included; options as of a call."""
        if not isinstance(text, str):
            raise InputError(f"encode() takes one text, got {type(text).__name__}; call the tokenizer with a list")
        ids = self([text], add_special_tokens=add_special_tokens, **options)["input_ids"]
        return ids[0] if isinstance(ids, list) else ids

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """A text's pieces; a space is U+2581 in them."""
        return [self._tokenizer.name(id) for id in self.encode(text, add_special_tokens)]

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> Any:
        """Ids -> text; a list of texts for a list of lists."""
        ids = np.asarray(token_ids) if not isinstance(token_ids, list) else token_ids
        if isinstance(ids, list) and ids and isinstance(ids[0], Sequence | np.ndarray):
            return self.batch_decode(ids, skip_special_tokens)
        if isinstance(ids, np.ndarray) and ids.ndim > 1:
            return self.batch_decode(list(ids), skip_special_tokens)
        return self._tokenizer.decode(self._checked(ids), skip_special_tokens)

    def batch_decode(self, sequences: Iterable[Any], skip_special_tokens: bool = False) -> list[str]:
        """Lists of ids -> texts."""
        return [self._tokenizer.decode(self._checked(ids), skip_special_tokens) for ids in sequences]

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """An id's piece; a list for a list."""
        pieces = [self._tokenizer.name(id) for id in self._checked(ids)]
        return pieces[0] if np.ndim(ids) == 0 else pieces

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """A piece's id, that of <unk> for what is none; a list for a list."""
        if isinstance(tokens, str):
            id = self._tokenizer.id_of(tokens)
            return self._tokenizer.id_of(NAMES["unk"]) if id is None else id
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def _checked(self, ids: Any) -> list[int]:
        array = np.atleast_1d(np.asarray(ids))
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise InputError(f"ids are {array.dtype} of shape {array.shape}, expected integers, [T]")
        if array.size and not 0 <= array.min() <= array.max() < len(self):
            raise InputError(f"ids reach from {array.min()} to {array.max()}, expected 0 to {len(self) - 1}")
        return [int(id) for id in array]

    def __call__(
        self,
        text: str | Iterable[str],
        *,
        add_special_tokens: bool = True,
        padding: bool | str | None = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool | None = None,
        return_offsets_mapping: bool = False,
        return_special_tokens_mask: bool = False,
        return_length: bool = False,
    ) -> Encoded:
        """Texts -> {"input_ids", "attention_mask"}, and what else is asked for.

        padding         False, True or "longest", "max_length": zeros on the right in the mask, <pad> in the ids
        truncation      True: cut at `max_length`, or else at `model_max_length`; None: cut if there is a `max_length`
                        and no padding
        return_tensors  None: lists; "np": int64 arrays [B, T]; "pt": torch's tensors
        return_offsets_mapping  adds "offset_mapping": of each token the characters [from, to) that it stands for, in
                        code points; (0, 0) of BOS and EOS
        returns         lists of lists, or arrays; for one string a list, or an array of one row
        """
        _check("padding", padding, (False, True, None, "longest", "max_length", "do_not_pad"))
        _check("return_tensors", return_tensors, (None, "np", "pt"))
        limit = positive("max_length", max_length) if max_length is not None else self.model_max_length
        cuts = truncation not in (None, False, "do_not_truncate")
        cuts = cuts or (truncation is None and max_length is not None and not padding)
        each = [text] if isinstance(text, str) else list(strings(text, "text"))
        ids = self._tokenizer.encode(each, limit if cuts and add_special_tokens else None)[0]
        if not add_special_tokens:
            ids = [self._tokenizer.bare(tokens)[: limit if cuts else None] for tokens in ids]
        found = Encoded(input_ids=[tokens.tolist() for tokens in ids])
        if return_attention_mask is not False:
            found["attention_mask"] = [[1] * len(tokens) for tokens in ids]
        if return_offsets_mapping:
            found["offset_mapping"] = self._offsets(each, ids, add_special_tokens)
        if return_special_tokens_mask:
            found["special_tokens_mask"] = self._special(ids, add_special_tokens)
        if padding not in (False, None, "do_not_pad"):
            self._pad(found, limit if padding == "max_length" else max(map(len, ids), default=0))
        if return_length:
            found["length"] = [len(row) for row in found["input_ids"]]
        if return_tensors is not None:
            form = form_of(None, return_tensors == "pt")
            return Encoded({name: form(_array(name, rows)) for name, rows in found.items()})
        return Encoded({name: rows[0] for name, rows in found.items()}) if isinstance(text, str) else found

    def _offsets(self, texts: Sequence[str], ids: Sequence[Int32], framed: bool) -> list[list[tuple[int, int]]]:
        before, after = self._tokenizer.frame if framed else (0, 0)
        found = []
        for tokens, places in zip(ids, self._tokenizer.offsets(texts), strict=True):
            kept = places[: len(tokens) - before - after].tolist()
            found.append([(0, 0)] * before + [(begin, end) for begin, end in kept] + [(0, 0)] * after)
        return found

    def _special(self, ids: Sequence[Int32], framed: bool) -> list[list[int]]:
        before, after = self._tokenizer.frame if framed else (0, 0)
        return [[1] * before + [0] * (len(tokens) - before - after) + [1] * after for tokens in ids]

    def _pad(self, found: Mapping[str, list[Any]], width: int) -> None:
        fill = {"input_ids": self.pad_token_id or 0, "offset_mapping": (0, 0), "special_tokens_mask": 1}
        for name, rows in found.items():
            for row in rows:
                row += [fill.get(name, 0)] * (width - len(row))


def _check(name: str, value: object, served: Sequence[object]) -> None:
    if value not in served:
        raise InputError(f"{name} = {value!r}, expected one of {', '.join(map(repr, served))}")


def _public(thing: object) -> list[str]:
    return sorted(name for name in dir(type(thing)) if not name.startswith("_"))


def _array(name: str, rows: list[Any]) -> AnyArray:
    try:
        return np.array(rows, np.int64) if rows else np.zeros((0, 0), np.int64)
    except ValueError:
        raise InputError(f"the texts have different numbers of tokens ({name}); pass padding=True") from None
