"""What can go wrong, as one tree: every error that a user can cause is a GemmaError.

    GemmaError
    ├── ConfigError       config.json or modules.json describes a model that we cannot run
    ├── CheckpointError   a file is missing, damaged or not what its name says
    ├── WeightsError      a tensor is missing, misshapen or holds NaN
    ├── InputError        what was passed to a call: texts, prompts, dimensions, keywords (also a ValueError)
    └── HubError          a model could not be fetched from the Hugging Face hub

    GemmaWarning          the call goes on, but perhaps not as you meant (a text was cut, or has its prompt twice)

A message says what, where, what was expected and what to do next.
"""

import operator
import sys
import warnings
from collections.abc import Sequence

FULL_MODEL = "google/embeddinggemma-300m"  # where messages send people
FLOAT_ORIGINAL = (  # the cure for weights in another tool's format
    "Take the float checkpoint that it was made from (its card names it), and round that as it is loaded, "
    "quantization='q8_0' or 'q4_0', or once and for all with `gemma-np quantize`"
)


def positive(name: str, value: object, most: int | None = None, of: str = "") -> int:
    """A caller's argument that must be 1 or more, as an int: any integer will do, NumPy's too. Raises InputError.

    most   the largest value that will do, and `of` what; None: there is no limit
    """
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = 0
    if number < 1 or (most is not None and number > most):
        expected = "a positive integer" if most is None else f"an integer from 1 to {most}, the {of}"
        raise InputError(f"{name} = {value!r}, expected {expected}")
    return number


def warn(message: str, texts: Sequence[int] = ()) -> None:
    """A GemmaWarning that points at the line outside of gemma_np that led here.

    texts   the numbers of the texts that it is about; the message has none, for Python keeps each message that it
            has shown, so that each is shown once for a line of code
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "gemma_np":
        frame, level = frame.f_back, level + 1
    warnings.warn(GemmaWarning(message, texts=texts), stacklevel=level)


class GemmaError(Exception):
    """Any error that the user can mend."""


class ConfigError(GemmaError):
    """The model's description asks for something that is not served."""


class CheckpointError(GemmaError):
    """A file of the checkpoint is missing, damaged or of another kind."""


class WeightsError(GemmaError):
    """The tensors do not fit the configuration, or are not finite."""


class InputError(GemmaError, ValueError):
    """An argument is outside what the call accepts.

    text  the number of the text that is not accepted, from 0, as the message has it; None: it is no single text
    """

    def __init__(self, message: str, *, text: int | None = None) -> None:
        super().__init__(message)
        self.text = text


class HubError(GemmaError):
    """The model could not be fetched from the hub."""


class GemmaWarning(UserWarning):
    """The call goes on, but perhaps not as you meant.

    texts  the numbers of the texts that it is about, from 0
    """

    def __init__(self, message: str, *, texts: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.texts = tuple(texts)
