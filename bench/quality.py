"""Quality of a model's vectors, per Matryoshka dimension and output precision, and other models'.

    python bench/quality.py                                   the bundled model
    python bench/quality.py MODEL --other TEACHER
    python bench/quality.py MODEL --quantization q8_0 q4_0    also with quantised weights: another table

STS benchmark dev sets in five languages (Spearman's rank correlation of cosines and human scores), Banking77 (accuracy
of the nearest class centroid), Cranfield (nDCG@10 with binary relevance; a document is its title and its text). MODEL
runs in our engine, --other models in sentence-transformers (extra `parity`). Needs the extra `bench`.
"""

import csv
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import Result, Run, bench_parser, log
from scipy.stats import spearmanr
from tables import TASKS, show

from gemma_np import EmbeddingGemma, output
from gemma_np.weights.quantize import QUANTIZATIONS

Array = NDArray[Any]
Encode = Callable[[list[str], str], Array]  # texts and a prompt's name -> float32 [n, dim]

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "eval"
LANGUAGES = ("en", "de", "es", "fr", "zh")
PRECISIONS = ("float32", "int8", "binary")


def vectors_as(vectors: Array, dim: int, precision: str) -> Array:
    """Cut to dim, brought to length 1, rounded to the codes of a precision: float32 [n, dim]."""
    stored = "ubinary" if precision == "binary" else precision
    codes = output.Wanted(vectors.shape[1], normalized=True, dim=dim, precision=stored).of(unit(vectors))
    if precision == "binary":
        return unit(np.unpackbits(codes, axis=1, count=dim).astype(np.float32) * 2 - 1)
    return unit(codes.astype(np.float32))


def unit(vectors: Array) -> Array:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)


class Sts:
    """Pairs of sentences with human scores from 0 to 5."""

    def __init__(self, path: Path, encode: Encode) -> None:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
        self.scores = [float(score) for _, _, score in rows]
        self.one, self.two = (encode([row[side] for row in rows], "STS") for side in (0, 1))

    def score(self, dim: int, precision: str) -> float:
        one, two = (vectors_as(side, dim, precision) for side in (self.one, self.two))
        return float(spearmanr((one * two).sum(1), self.scores).statistic)


class Banking77:
    """77 intents of bank customers: each test text gets the class whose training texts have the nearest mean."""

    def __init__(self, folder: Path, encode: Encode) -> None:
        self.sides = []
        for name in ("train.csv", "test.csv"):
            with (folder / name).open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            labels = np.array([row["category"] for row in rows])
            self.sides.append((encode([row["text"] for row in rows], "Classification"), labels))

    def score(self, dim: int, precision: str) -> float:
        (train, labels), (test, expected) = ((vectors_as(v, dim, precision), names) for v, names in self.sides)
        classes = np.unique(labels)
        centroids = unit(np.stack([train[labels == name].mean(0) for name in classes]))
        return float((classes[(test @ centroids.T).argmax(1)] == expected).mean())


class Cranfield:
    """225 questions on aerodynamics and 1,400 abstracts.

    Relevant are the documents judged 1 (a complete answer) to 4 (of minimum interest), all alike. -1, which the scale
    does not have, occurs once per question, last in its list; as in trec_eval, what is not positive is not relevant.
    """

    def __init__(self, folder: Path, encode: Encode) -> None:
        documents = records(folder / "cran.all.1400")
        questions = records(folder / "cran.qry")
        self.relevant: list[set[int]] = [set() for _ in questions]  # the judgements count questions from 1, in order
        for line in (folder / "cranqrel").read_text().splitlines():
            if line.strip():
                question, document, code = map(int, line.split())
                if code > 0:
                    self.relevant[question - 1].add(document - 1)
        self.questions = encode([record["W"] for record in questions], "query")
        self.documents = encode([f"{record['T']} {record['W']}".strip() for record in documents], "document")

    def score(self, dim: int, precision: str) -> float:
        questions, documents = (vectors_as(v, dim, precision) for v in (self.questions, self.documents))
        scores = []
        discount = 1 / np.log2(np.arange(2, 12))
        for relevant, similar in zip(self.relevant, questions @ documents.T, strict=True):
            best = np.argsort(-similar, kind="stable")[:10]
            gain = sum(discount[place] for place, document in enumerate(best) if int(document) in relevant)
            scores.append(gain / discount[: len(relevant)].sum())
        return float(np.mean(scores))


def records(path: Path) -> list[dict[str, str]]:
    """SMART format: .I begins a record, .T .A .B .W its fields; white space is one space."""
    found = []
    for record in re.split(r"^\.I .*$", path.read_text(encoding="utf-8", errors="replace"), flags=re.MULTILINE)[1:]:
        parts = re.split(r"^\.([TABW])\s*$", record, flags=re.MULTILINE)[1:]
        found.append({name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)})
    return found


def tasks(data: Path, encode: Encode) -> Iterable[tuple[str, Any]]:
    for language in LANGUAGES:
        yield f"STS {language}", Sts(data / "stsb" / f"stsb-{language}-dev.csv", encode)
    yield "Banking77", Banking77(data / "banking77", encode)
    yield "Cranfield", Cranfield(data / "cranfield", encode)


def ours(model: str | None, quantization: str | None = None) -> tuple[str, Encode, list[int]]:
    engine = EmbeddingGemma(model, quantization=quantization)
    known, name = engine.prompts, f"{engine.folder.name} {quantization or ''}".strip()

    def encode(texts: list[str], prompt: str) -> Array:
        log(f"{name}: {len(texts)} texts")
        return np.asarray(engine.encode(texts, prompt_name=prompt if prompt in known else None))

    return name, encode, matryoshka(engine.get_embedding_dimension())


def theirs(model: str) -> tuple[str, Encode, list[int]]:
    import torch
    from sentence_transformers import SentenceTransformer

    engine = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": torch.float32})
    known = engine.prompts

    def encode(texts: list[str], prompt: str) -> Array:
        log(f"{model}: {len(texts)} texts")
        return np.asarray(engine.encode(texts, prompt_name=prompt if known.get(prompt) else None))

    name = f"{Path(model).name} (sentence-transformers)"
    return name, encode, matryoshka(engine.get_embedding_dimension())


def matryoshka(dim: int | None) -> list[int]:
    """The dimension itself, and the usual smaller ones."""
    assert dim is not None
    return [dim, *(k for k in (512, 256, 128, 64) if k < dim)]


def main() -> None:
    parser = bench_parser(__doc__, threads=None)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="folders or hub ids; none: the bundled model")
    parser.add_argument("--other", action="append", default=[], metavar="MODEL", help="run by sentence-transformers")
    parser.add_argument("--quantization", nargs="+", default=[], choices=QUANTIZATIONS, help="of MODELs' weights, too")
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="with stsb/, banking77/ and cranfield/")
    arguments = parser.parse_args()
    if not (arguments.data / "stsb").is_dir():
        parser.error(f"{arguments.data} has no folder stsb; give the folder of the evaluation data with --data DIR")
    run = Run("quality_weights" if arguments.quantization else "quality", arguments, ("sentence-transformers", "torch"))
    rows: list[Result] = []
    loads: list[Callable[[], tuple[str, Encode, list[int]]]] = []
    for model in arguments.models or [None]:
        loads += [partial(ours, model, quantization) for quantization in (None, *arguments.quantization)]
    for load in [*loads, *(partial(theirs, model) for model in arguments.other)]:
        name, encode, dims = load()
        found = dict(tasks(arguments.data, encode))
        for dim in dims:
            for precision in PRECISIONS:
                scores = {task: found[task].score(dim, precision) for task in TASKS}
                rows.append({"model": name, "dim": dim, "precision": precision, "scores": scores})
    print(show(run.keep(rows)))


if __name__ == "__main__":
    main()
