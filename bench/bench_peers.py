"""Ours and the other CPU engines for EmbeddingGemma: time, cosine to float32, memory, on the same weights and ids.

    python bench/bench_peers.py CHECKPOINT --work DIR [--rounds 6]

Each engine has its own process and they run in turn, round by round, in one order and then in the other, so that a slow
minute of the machine hits all. Every batch has texts that no engine has seen. A call begins with token ids and ends
with vectors of length 1; nobody's tokenizer is timed. Cosines are to sentence-transformers in float32 on the same ids,
after the Dense heads. Needs the extras `peers` and `bench`; llama.cpp is to be built for this CPU:

    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-binary llama-cpp-python -e ".[peers,bench]"

The first run converts the checkpoint for each peer, into DIR (about 5 GB). Compare ratios within a shape; absolute
times are the machine's.
"""

import json
import lzma
import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import peer_models
import peers
from numpy.typing import NDArray
from peer_process import Ids, Worker
from record import Result, Run, bench_parser, in_turn, log
from tables import show

SHAPES = ("1x16", "1x64", "1x256", "1x2048", "32x128", "mix500")
SENTENCES = Path(__file__).resolve().parents[2] / "shared" / "data" / "train" / "en_sentences.tsv.xz"
PAUSE = 0.3  # seconds between two engines: thread pools that spin have gone to sleep by then
CALLS_OF = 1024  # tokens in a turn at least: short texts are called several times, each time another
SEEN = 2  # calls of each shape at least before it is timed: engines compile for a shape when they first see it
JUDGED = 8  # of them at most, for the cosines


class Batches:
    """Token ids for a shape, new ones for every call: random ids of one length, or sentences with their own lengths."""

    def __init__(self, shape: str, sentences: Ids, V: int = 200_000) -> None:
        self.shape, self.V = shape, V
        self.sentences: Iterator[NDArray[np.int32]] = iter(sentences)
        self.rng = np.random.default_rng(list(shape.encode()))
        match = re.fullmatch(r"(\d+)x(\d+)|mix(\d+)", shape)
        if not match:
            raise SystemExit(f"{shape!r} is no shape; expected TEXTSxTOKENS, as 32x128, or mixTEXTS, as mix500")
        texts, tokens, mixed = (int(group or 0) for group in match.groups())
        self.texts, self.tokens = texts or mixed, tokens
        self.calls = max(1, CALLS_OF // (texts * tokens)) if tokens else 1

    def new(self) -> Ids:
        if self.tokens:
            middle = self.rng.integers(256, self.V, (self.texts, self.tokens - 2))
            return [np.array([2, *row, 1], np.int32) for row in middle.tolist()]
        return [next(self.sentences) for _ in range(self.texts)]


def sample_sentences(path: Path, checkpoint: Path, number: int) -> Ids:
    """Sentences from all over a file (one a line, after the last tab), with the document prompt, as token ids."""
    from gemma_np.config import read_config
    from gemma_np.prompts import DOCUMENT
    from gemma_np.tokens.tokenizer import Tokenizer

    log(f"reading {number} sentences of {path.name}")
    with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as file:
        lines = [line.rstrip("\n").rpartition("\t")[2] for line in file]
    texts = [DOCUMENT + text for text in random.Random(0).sample(lines, number)]
    config = read_config(checkpoint)
    ids, _ = Tokenizer(checkpoint, config).encode(texts, config.max_positions)
    return ids


class Bench:
    """The engines that run, and what was measured."""

    def __init__(self, names: list[str], checkpoint: Path, work: Path, threads: int) -> None:
        self.workers: dict[str, Worker] = {}
        self.refused: dict[str, str] = {}
        self.rows: list[Result] = []
        self.names = names
        for name in [*names, *({peers.REFERENCE} - set(names))]:
            try:
                self.workers[name] = Worker(name, checkpoint, work, threads)
            except RuntimeError as error:
                self.drop(name, error)

    def drop(self, name: str, error: Exception) -> None:
        log(f"{name} refused: {error}")
        self.refused[name] = str(error)
        self.workers.pop(name, None)

    def run(self, batches: Batches, rounds: int) -> None:
        """All engines on one shape."""
        times: dict[str, list[float]] = {name: [] for name in self.names}
        peaks = dict.fromkeys(self.names, 0.0)
        seen = [batches.new() for _ in range(max(SEEN, min(JUDGED, batches.calls)))]
        references = [self.workers[peers.REFERENCE].ask(ids)[0] for ids in seen]
        cosines: dict[str, list[float]] = {name: [] for name in self.names}

        def turn(name: str, calls: list[Ids], timed: bool) -> None:
            if name not in self.workers:
                return
            try:
                for number, ids in enumerate(calls):
                    vectors, ms, peak = self.workers[name].ask(ids)
                    peaks[name] = max(peaks[name], peak)
                    if timed:
                        times[name].append(ms)
                    else:
                        cosines[name] += (vectors * references[number]).sum(1, dtype=np.float64).tolist()
            except RuntimeError as error:
                self.drop(name, error)
            time.sleep(PAUSE)

        for name in self.names:
            turn(name, seen, timed=False)
        for number in range(rounds):
            log(f"{batches.shape}: round {number + 1} of {rounds}")
            calls = [batches.new() for _ in range(batches.calls)]
            for name in in_turn(self.names, number):
                turn(name, calls, timed=True)
        for name in self.names:
            if name in self.workers:
                self.rows.append(
                    {
                        "shape": batches.shape,
                        "engine": name,
                        "tokens": sum(map(len, seen[0])),
                        "peak_mb": peaks[name],
                        "ms": times[name],
                        "cosines": cosines[name],
                    }
                )

    def stop(self) -> None:
        for worker in self.workers.values():
            worker.stop()


def sentences_for(shapes: list[str], rounds: int, path: Path, checkpoint: Path) -> tuple[list[str], Ids]:
    """The shapes that can be run, and the sentences of the mixed ones among them."""
    needed = (rounds + SEEN) * sum(Batches(shape, []).texts for shape in shapes if shape[:3] == "mix")
    if needed and not path.exists():
        log(f"{path} is not there: no mix; name a file with --sentences")
        return [shape for shape in shapes if shape[:3] != "mix"], []
    return shapes, sample_sentences(path, checkpoint, needed) if needed else []


def main() -> None:
    parser = bench_parser(__doc__, rounds=6)
    parser.add_argument("checkpoint", type=Path, help="folder of a checkpoint, float32 for fair file sizes")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="where converted models are kept")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="SHAPE", help=f"default: {' '.join(SHAPES)}")
    more = ", ".join(peers.MORE)
    parser.add_argument("--engines", nargs="+", metavar="NAME", help=f"any part of a name; also: {more}")
    parser.add_argument("--sentences", type=Path, default=SENTENCES, help="texts of the mix, one a line, or TSV")
    arguments = parser.parse_args()

    run = Run("peers", arguments)
    checkpoint = arguments.checkpoint.resolve()
    work = peer_models.folder_for(checkpoint, arguments.work)
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # NumPy shall choose its kernels by the CPU
        os.environ.pop(name, None)
    rounds = arguments.rounds
    shapes, sentences = sentences_for(list(arguments.shapes), rounds, arguments.sentences, checkpoint)
    chosen = peers.chosen(arguments.engines, peers.ENGINES, peers.MORE)
    bench = Bench(chosen, checkpoint, work, arguments.threads)
    if peers.REFERENCE not in bench.workers:
        raise SystemExit(f"{peers.REFERENCE} did not start, and all cosines are to it")
    engines = [
        {"engine": name, "float32": engine.float32, "ours": engine.ours, **bench.workers[name].facts}
        for name, engine in peers.NAMED.items()
        if name in bench.workers
    ]
    V = min(200_000, json.loads((checkpoint / "config.json").read_text())["vocab_size"])
    for shape in shapes:
        taken = Batches(shape, sentences, V)
        if shape[:3] == "mix":
            sentences = sentences[taken.texts * (rounds + SEEN) :]
        bench.run(taken, rounds)
    bench.stop()
    refused = [{"engine": name, "reason": reason} for name, reason in bench.refused.items()]
    print(show(run.keep(bench.rows, engines=engines, refused=refused)))


if __name__ == "__main__":
    main()
