"""The readable NumPy path beside PyTorch (sentence-transformers, float32): time per text, start-up, memory.

    python bench/bench_numpy.py CHECKPOINT [--tokens 16 64 256 512 2048] [--rounds 15]

Each engine lives in a process of its own (two thread pools in one would disturb each other) and they run in turn, so
that a slow minute of the machine hits both. Needs the extra `parity`. Compare ratios; absolute times are the machine's.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np


def work(engine: str, checkpoint: str) -> None:
    """A worker: loads, then for each line of stdin (token ids) prints milliseconds and the vector's first entries."""
    start = time.perf_counter()
    if engine == "numpy":
        from threadpoolctl import threadpool_info

        from gemma_np import EmbeddingGemma

        ours = EmbeddingGemma(checkpoint)

        def run(ids: list[int]) -> Any:
            return ours.embed_ids([np.array(ids, dtype=np.int32)])[0]

        run(ours.prepare(["hello world"])[0][0].tolist())
        threads = max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
    else:
        import torch
        from sentence_transformers import SentenceTransformer

        theirs = SentenceTransformer(checkpoint, device="cpu", model_kwargs={"dtype": torch.float32})

        def run(ids: list[int]) -> Any:
            tokens = torch.tensor(ids)[None]
            with torch.inference_mode():
                out = theirs({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
            return out["sentence_embedding"][0].numpy()

        run(theirs.tokenize(["hello world"])["input_ids"][0].tolist())
        threads = torch.get_num_threads()
    import resource

    print(json.dumps({"first": time.perf_counter() - start, "threads": threads}), flush=True)
    for line in sys.stdin:
        ids = json.loads(line)
        start = time.perf_counter()
        vector = run(ids)
        took = 1e3 * (time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"ms": took, "peak_mb": peak, "vector": vector.tolist()}), flush=True)


class Worker:
    """One engine in its process."""

    def __init__(self, engine: str, checkpoint: str) -> None:
        start = time.perf_counter()
        command = [sys.executable, __file__, checkpoint, "--worker", engine]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.threads = self._answer()["threads"]
        self.first_vector = time.perf_counter() - start

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, ids: list[int]) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(ids) + "\n")
        self.process.stdin.flush()
        return self._answer()


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(
        description="The readable NumPy path beside PyTorch.",
        epilog="example:  python bench/bench_numpy.py CHECKPOINT --tokens 256",
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64, 256, 512, 2048])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--worker", choices=["numpy", "torch"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments.worker, arguments.checkpoint)

    engines = {name: Worker(name, arguments.checkpoint) for name in ("numpy", "torch")}
    print(f"{cpu_name()}, {os.cpu_count()} cores; threads: " + str({n: e.threads for n, e in engines.items()}))
    for name, engine in engines.items():
        print(f"{name}: {engine.first_vector:.2f} s from process start to the first vector")
    print(f"{'tokens':>6} {'numpy ms':>22} {'torch ms':>22} {'ratio':>6} {'1 - cosine':>10}   (best / median)")
    rng = np.random.default_rng(0)
    peaks = {}
    for tokens in arguments.tokens:
        times: dict[str, list[float]] = {name: [] for name in engines}
        for number in range(arguments.rounds):
            ids = [2, *rng.integers(256, 200_000, tokens - 2).tolist(), 1]
            answers = {}
            for name in sorted(engines, reverse=bool(number % 2)):  # in both orders
                answers[name] = engines[name].ask(ids)
                times[name].append(answers[name]["ms"])
                peaks[name] = answers[name]["peak_mb"]
            one, two = (np.array(answers[name]["vector"]) for name in ("numpy", "torch"))
            cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
        cells = [f"{min(times[name]):.0f} / {median(times[name]):.0f}" for name in ("numpy", "torch")]
        ratio = min(times["numpy"]) / min(times["torch"])
        print(f"{tokens:>6} {cells[0]:>22} {cells[1]:>22} {ratio:>6.2f} {1 - cosine:>10.1e}", flush=True)
    print("peak resident memory: " + ", ".join(f"{name} {peak:.0f} MB" for name, peak in peaks.items()))


if __name__ == "__main__":
    main()
