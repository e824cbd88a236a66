"""Which GGUF file of several: of a folder, or of a repository on the hub. Told by their names alone."""

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

# What is taken where nothing else is said: the first of these that is there. Q8_0 leads because it costs 0.2 points of
# MTEB (Google's table: 60.93 after 61.15), runs in int8 as it is, and is a quarter of float32's size. Then what loses
# nothing, and then by bits; of four bits Q4_0 first, for which Google trained checkpoints.
ORDER = ("Q8_0", "BF16", "F16", "F32", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_0", "Q4_K", "Q4_1", "IQ4_NL")
TYPE = re.compile(r"(?:^|[-._])((?:I?Q|TQ)\d\w*|B?FP?16|FP?32|MXFP4\w*)\.gguf$", re.IGNORECASE | re.ASCII)
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
NO_MODEL = re.compile(r"(^|[-._/])(mmproj|imatrix)[^/]*$", re.IGNORECASE)  # what else is kept in such files


def type_of(name: str) -> str:
    """The type in a file's name, in capitals: "Q4_K_M"; "" if there is none."""
    found = TYPE.search(name)
    return found[1].upper().replace("FP", "F") if found else ""


def chosen(names: Iterable[str], wanted: str | None = None) -> str:
    """One of some GGUF files, by their names.

    wanted   a type, or a file; None: the first by ORDER, and of several of this type the one with the shortest name
    raises   LookupError that says what there is instead
    """
    whole = [name for name in names if not PART.search(name) and not NO_MODEL.search(name)]
    if wanted is None:
        fits = whole
    elif wanted.lower().endswith(".gguf"):
        fits = [name for name in whole if name == wanted]
    else:
        fits = [name for name in whole if type_of(name) == wanted.upper()]
        if len(fits) > 1:
            raise LookupError(f"{len(fits)} of its GGUF files are {wanted}; name one of {listed(fits)}")
    if not fits:
        there = f"it has {listed(whole)}" if whole else "it has none that holds a whole model (parts must be joined)"
        raise LookupError(f"none of its GGUF files is {wanted}; {there}" if wanted else there)
    return min(fits, key=rank)


def rank(name: str) -> tuple[int, int, str]:
    """The lower, the better."""
    kind = type_of(name)
    places = [i for i, known in enumerate(ORDER) if kind == known or kind.startswith(f"{known}_")]
    return places[0] if places else len(ORDER), len(name), name


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(sorted(names, key=lambda name: (str(PurePosixPath(name).parent), name))[:8]) + more
