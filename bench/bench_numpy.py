"""The readable NumPy path and PyTorch (sentence-transformers, float32): time per text, start-up, memory.

    GEMMA_NP_KERNELS=numpy python bench/bench_numpy.py CHECKPOINT [--bfloat16 CHECKPOINT] [--rounds 9] [--starts 3]

Each engine has its own process (two thread pools in one would disturb each other) and they run in turn, so that a slow
minute of the machine hits both. --bfloat16 adds the same model from a bfloat16 file. Needs the extra `parity`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from record import Result, Run, bench_parser, in_turn, log
from tables import show

TOKENS = [16, 64, 256, 512, 2048]
OURS, THEIRS, BFLOAT16 = "gemma_np", "PyTorch", "gemma_np, bfloat16 file"


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

    def __init__(self, engine: str, checkpoint: Path) -> None:
        start = time.perf_counter()
        command = [sys.executable, __file__, str(checkpoint), "--worker", engine]
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

    def stop(self) -> None:
        self.process.communicate()  # the end of stdin ends it


def started(models: dict[str, Path], times: int) -> tuple[dict[str, Worker], dict[str, list[float]]]:
    """Workers, and the seconds from the start of each process to its first vector."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    workers: dict[str, Worker] = {}
    for number in range(times + 1):  # the first brings the files into the system's cache
        for name in in_turn(list(models), number):
            if name in workers:
                workers[name].stop()
            workers[name] = Worker("torch" if name == THEIRS else "numpy", models[name])
            if number:
                seconds[name].append(workers[name].first_vector)
    return workers, seconds


def measured(workers: dict[str, Worker], V: int, tokens: int, rounds: int, peaks: dict[str, float]) -> Result:
    """A row: milliseconds of each engine, and cosines of the two vectors of each text."""
    rng = np.random.default_rng(tokens)
    times: dict[str, list[float]] = {name: [] for name in workers}
    cosines = []
    for number in range(rounds + 1):  # the first is not timed
        ids = [2, *rng.integers(256, V, tokens - 2).tolist(), 1]
        answers = {name: workers[name].ask(ids) for name in in_turn(list(workers), number)}
        for name, answer in answers.items():
            peaks[name] = answer["peak_mb"]
            if number:
                times[name].append(answer["ms"])
        one, two = (np.array(answers[name]["vector"]) for name in (OURS, THEIRS))
        cosines.append(1 - float(one @ two / np.linalg.norm(one) / np.linalg.norm(two)))
    return {"tokens": tokens, "ms": times, "1 - cosine": cosines}


def main() -> None:
    parser = bench_parser(__doc__, rounds=9, threads=None)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--bfloat16", type=Path, metavar="CHECKPOINT", help="also the model from a bfloat16 file")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--starts", type=int, default=3, help="times that each process is started; default: 3")
    parser.add_argument("--worker", choices=["numpy", "torch"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments.worker, str(arguments.checkpoint))
    if os.environ.get("GEMMA_NP_KERNELS") != "numpy":
        parser.error("GEMMA_NP_KERNELS=numpy is not set, and compiled kernels would run; set it")

    run = Run("numpy", arguments, ("torch", "sentence-transformers"))
    models = {OURS: arguments.checkpoint, THEIRS: arguments.checkpoint}
    if arguments.bfloat16:
        models[BFLOAT16] = arguments.bfloat16
    workers, seconds = started(models, arguments.starts)
    peaks: dict[str, float] = {}
    V = min(200_000, json.loads((arguments.checkpoint / "config.json").read_text())["vocab_size"])
    rows = []
    for tokens in arguments.tokens:
        log(f"{tokens} tokens")
        rows.append(measured(workers, V, tokens, arguments.rounds, peaks))
    for worker in workers.values():
        worker.stop()
    engines = [
        {"engine": name, "first_vector_s": seconds[name], "peak_mb": peaks[name], "threads": workers[name].threads}
        for name in models
    ]
    print(show(run.keep(rows, engines=engines)))


if __name__ == "__main__":
    main()
