"""Ours beside the other CPU engines for EmbeddingGemma: time, cosine to float32, memory, on the same weights and ids.

    python bench/bench_peers.py CHECKPOINT --work DIR [--json peers.json] [--picture peers.png]

Each engine lives in a process of its own and they run in turn, round by round, in one order and then in the other, so
that a slow minute of the machine hits all. Every batch has texts that no engine has seen. A call begins with token ids
and ends with vectors of length 1; tokenizing is nobody's. Cosines are to sentence-transformers in float32 on the same
ids, behind the Dense heads. Needs the extras `peers` and `bench`; llama.cpp is to be built for this CPU:

    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-binary llama-cpp-python -e ".[peers,bench]"

The first run converts the checkpoint for each peer, into DIR (about 5 GB). Tables go to stdout as Markdown, progress to
stderr. Compare ratios inside a shape; absolute times are the machine's.
"""

import argparse
import json
import lzma
import os
import platform
import random
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import peer_models
import peers
from numpy.typing import NDArray
from peer_process import Ids, Worker, log

SHAPES = ("1x16", "1x64", "1x256", "1x2048", "32x128", "mix500")
SENTENCES = Path(__file__).resolve().parents[2] / "shared" / "data" / "train" / "en_sentences.tsv.xz"
FLAGS = "avx2 avx_vnni avx512f avx512bw avx512_vnni avx512_bf16 amx_int8 amx_bf16 asimddp i8mm bf16"
PAUSE = 0.3  # seconds between two engines: thread pools that spin have gone to sleep by then
CALLS_OF = 1024  # tokens in a turn at least: short texts are called several times, each time another
SEEN = 2  # calls of each shape at least before it is timed: engines compile for a shape when they first see it
JUDGED = 8  # of them at most, for the cosines
Row = dict[str, Any]


class Batches:
    """Token ids for a shape, new ones for every call: random ids of one length, or sentences with their own lengths."""

    def __init__(self, shape: str, sentences: Ids) -> None:
        self.shape = shape
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
            middle = self.rng.integers(256, 200_000, (self.texts, self.tokens - 2))
            return [np.array([2, *row, 1], np.int32) for row in middle.tolist()]
        return [next(self.sentences) for _ in range(self.texts)]


def sample_sentences(path: Path, checkpoint: Path, number: int) -> Ids:
    """Sentences from all over a file (one a line, behind the last tab), with the document prompt, as token ids."""
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
        self.rows: list[Row] = []
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
            for name in self.names[:: -1 if number % 2 else 1]:
                turn(name, calls, timed=True)
        for name in self.names:
            if name in self.workers:
                self.rows.append(
                    {
                        "shape": batches.shape,
                        "engine": name,
                        "best_ms": min(times[name]),
                        "median_ms": median(times[name]),
                        "cosine_mean": sum(cosines[name]) / len(cosines[name]),
                        "cosine_min": min(cosines[name]),
                        "cosines_of": len(cosines[name]),
                        "peak_mb": peaks[name],
                        "times_ms": times[name],
                        "tokens": sum(map(len, seen[0])),
                    }
                )

    def stop(self) -> None:
        for worker in self.workers.values():
            worker.stop()


def machine() -> dict[str, Any]:
    """What the times depend on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in info.splitlines())}
    flags = fields.get("flags", fields.get("Features", "")).split()
    root = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False).stdout

    changed = bool(git("status", "--porcelain", "--untracked-files=no", "gemma_np", "kernels").strip())
    return {
        "cpu": fields.get("model name", platform.processor()),
        "flags": " ".join(flag for flag in FLAGS.split() if flag in flags),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "commit": (git("rev-parse", "--short", "HEAD").strip() or "unknown") + (" and changes" if changed else ""),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def chosen(patterns: list[str] | None) -> list[str]:
    """Engines by any part of their names."""
    if patterns is None:
        return list(peers.ENGINES)
    names: list[str] = []
    for pattern in patterns:
        exact = [name for name in peers.NAMED if name.lower() == pattern.lower()]
        found = exact or [name for name in peers.ENGINES if pattern.lower() in name.lower()]
        if not found:
            raise SystemExit(f"no engine is called {pattern!r}; there are {', '.join(peers.NAMED)}")
        names += [name for name in found if name not in names]
    return names


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Ours beside every other CPU engine.",
        epilog="example:  python bench/bench_peers.py CHECKPOINT --work DIR --engines gemma_np openvino --shapes 1x64",
    )
    parser.add_argument("checkpoint", type=Path, help="folder of a checkpoint, float32 for fair file sizes")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="where converted models are kept")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="SHAPE", help=f"default: {' '.join(SHAPES)}")
    parser.add_argument(
        "--engines", nargs="+", metavar="NAME", help="any part of a name; also: " + ", ".join(peers.MORE)
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sentences", type=Path, default=SENTENCES, help="texts of the mix, one a line, or TSV")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all times here")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the best times here")
    arguments = parser.parse_args()

    from peer_report import picture, report

    checkpoint = arguments.checkpoint.resolve()
    work = peer_models.folder_for(checkpoint, arguments.work)
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # NumPy shall choose its kernels by the CPU
        os.environ.pop(name, None)
    sentences: Ids = []
    shapes = list(arguments.shapes)
    if needed := (arguments.rounds + SEEN) * sum(Batches(shape, []).texts for shape in shapes if shape[:3] == "mix"):
        if arguments.sentences.exists():
            sentences = sample_sentences(arguments.sentences, checkpoint, needed)
        else:
            log(f"{arguments.sentences} is not there: no mix; name a file with --sentences")
            shapes = [shape for shape in shapes if shape[:3] != "mix"]

    bench = Bench(chosen(arguments.engines), checkpoint, work, arguments.threads)
    if peers.REFERENCE not in bench.workers:
        raise SystemExit(f"{peers.REFERENCE} did not start, and all cosines are to it")
    facts = {name: worker.facts for name, worker in bench.workers.items()}
    for shape in shapes:
        taken = Batches(shape, sentences)
        if shape[:3] == "mix":
            sentences = sentences[taken.texts * (arguments.rounds + SEEN) :]
        bench.run(taken, arguments.rounds)
    bench.stop()
    result = {
        "machine": machine(),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "engines": {
            name: {"float32": engine.float32, "ours": engine.ours, **facts.get(name, {})}
            for name, engine in peers.NAMED.items()
            if name in facts
        },
        "refused": bench.refused,
        "rows": bench.rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1, default=str) + "\n")
    print(report(result))
    if arguments.picture:
        picture(result, arguments.picture)


if __name__ == "__main__":
    main()
