"""`gemma-np rank` and `gemma-np similarity`: how near texts, or files of vectors, are to each other."""

import argparse
import sys
from typing import TYPE_CHECKING, NamedTuple

from gemma_np.cli.arguments import Parser, add_computing, add_dense, add_model, at_least_one, loaded
from gemma_np.cli.texts import add_texts, placed, texts_of
from gemma_np.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gemma_np.arrays import Float32
    from gemma_np.embedder import EmbeddingGemma

SAMPLED = 64  # lines that are also encoded as queries, for --calibrate
PERCENTILES = (50, 90, 99)


def add_rank(parser: Parser) -> None:
    parser.add_argument("query", metavar="QUERY")
    add_texts(parser)
    parser.add_argument(
        "--vectors", metavar="FILE", help="rank what gemma-np embed --prompt-name document wrote, in jsonl, csv or npy"
    )
    parser.add_argument("--top", type=at_least_one, metavar="N", help="print the best N only")
    parser.add_argument("--min", type=score, metavar="SCORE", help="hide scores below; default: none")
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="add how many of random pairs of these lines score lower, in percent; it tells what to choose for --min",
    )
    parser.add_argument("--dim", type=at_least_one, metavar="N", help="keep N dimensions")
    add_model(parser)
    add_dense(parser)
    add_computing(parser)
    parser.set_defaults(run=run_rank)


def score(text: str) -> float:
    """The type of an option."""
    number = float(text)  # argparse tells of a ValueError
    if not -1 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number from -1 to 1")
    return number


def run_rank(arguments: argparse.Namespace) -> None:
    from gemma_np.similarity import scores_of

    model, documents, texts = _of_file(arguments) if arguments.vectors is not None else _of_texts(arguments)
    with placed(lambda _: "QUERY"):
        query = model.encode_query(arguments.query, truncate_dim=documents.width)
    rows = documents.read()
    scores = scores_of(model.similarity_fn_name, query, rows)
    order = sorted(range(len(texts)), key=lambda i: -scores[i])  # stable: of equal ones the first is first
    order = [i for i in order if arguments.min is None or scores[i] >= arguments.min]
    pairs = _random_scores(model, texts, rows) if arguments.calibrate else None
    for place, i in enumerate(order[: arguments.top], 1):
        percentile = "" if pairs is None else f"  {100 * float((pairs < scores[i]).mean()):5.1f} %"
        print(f"{place:>3}  {scores[i]:7.4f}{percentile}  {texts[i]}")


class _Documents(NamedTuple):
    """What is ranked: the size of its vectors, None for the model's, and what gives them, [B, dim]."""

    width: int | None
    read: "Callable[[], Float32]"


def _of_texts(arguments: argparse.Namespace) -> "tuple[EmbeddingGemma, _Documents, list[str]]":
    source = texts_of(arguments)
    with placed(source.places):
        texts = list(source)
    if arguments.calibrate and len(texts) < 2:
        raise InputError("--calibrate compares the lines with each other; expected two at least")
    model = loaded(arguments)

    def read() -> "Float32":
        with placed(source.places):
            return model.encode_document(texts, truncate_dim=arguments.dim)  # type: ignore[no-any-return]

    return model, _Documents(arguments.dim, read), texts


def _of_file(arguments: argparse.Namespace) -> "tuple[EmbeddingGemma, _Documents, list[str]]":
    from gemma_np.cli.vectors import check_same_model, read_vectors
    from gemma_np.output import truncate

    if arguments.texts or arguments.input is not None or arguments.calibrate:
        raise InputError("--vectors FILE stands in place of texts, and without them there is no --calibrate")
    found = read_vectors(arguments.vectors)
    model = loaded(arguments)
    check_same_model(found.fingerprint, model.fingerprint(), found.path, "this model's")
    width = found.rows.shape[1]
    if width > model.full_dim:
        raise InputError(
            f"{found.path} holds vectors of {width} dimensions, and the model has {model.full_dim}; name the model "
            "that made them with -m"
        )
    dim = min(arguments.dim or width, width)
    rows = found.rows if dim == width else truncate(found.rows, dim, normalized=True, normalize=True)
    return model, _Documents(dim, lambda: rows), [found.label(i) for i in range(len(rows))]


def _random_scores(model: "EmbeddingGemma", texts: list[str], documents: "Float32") -> "Float32":
    """The scores of lines as queries with other lines, the same ones every time; stderr says how they lie."""
    import numpy as np

    from gemma_np.similarity import scores_of

    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(texts))[:SAMPLED]
    queries = model.encode_query([texts[i] for i in chosen], truncate_dim=documents.shape[1])
    name = model.similarity_fn_name
    found = [np.delete(scores_of(name, query, documents), i) for i, query in zip(chosen, queries, strict=True)]
    scores = np.concatenate(found)
    levels = ", ".join(f"{p} % below {np.percentile(scores, p):.4f}" for p in PERCENTILES)
    print(f"gemma-np: {len(scores):,} random pairs of these lines: {levels}", file=sys.stderr)
    return scores


def add_similarity(parser: Parser) -> None:
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument(
        "--vectors",
        action="store_true",
        help="A and B are files that gemma-np embed wrote: a score for each pair of lines",
    )
    parser.add_argument("--prompt-name", metavar="NAME", help="default: STS, where the model has it")
    parser.add_argument("--dim", type=at_least_one, metavar="N", help="keep N dimensions")
    add_model(parser)
    add_dense(parser)
    add_computing(parser)
    parser.set_defaults(run=run_similarity)


def run_similarity(arguments: argparse.Namespace) -> None:
    from gemma_np.prompts import known_prompts

    if arguments.vectors:
        _compare_files(arguments)
        return
    model = loaded(arguments)
    default = "STS" if "STS" in known_prompts(model.prompts) else None
    with placed(lambda numbers: ", ".join("AB"[i] for i in numbers)):
        a, b = model.encode(
            [arguments.a, arguments.b], prompt_name=arguments.prompt_name or default, truncate_dim=arguments.dim
        )
    print(f"{model.similarity(a, b)[0, 0]:.4f}")


def _compare_files(arguments: argparse.Namespace) -> None:
    """Cosines, without a model: line by line."""
    from gemma_np.cli.vectors import check_same_model, read_vectors
    from gemma_np.similarity import similarity_pairwise

    a, b = read_vectors(arguments.a), read_vectors(arguments.b)
    check_same_model(a.fingerprint, b.fingerprint, a.path, b.path)
    if a.rows.shape != b.rows.shape:
        raise InputError(
            f"{a.path} holds {len(a.rows):,} vectors of {a.rows.shape[1]} dimensions and {b.path} {len(b.rows):,} of "
            f"{b.rows.shape[1]}; expected as many, of one size"
        )
    for value in similarity_pairwise("cosine", a.rows[:, : arguments.dim], b.rows[:, : arguments.dim]):
        print(f"{value:.4f}")
