"""From the start of a process to a printed vector: seconds and peak memory, compared with three other engines.

    python bench/bench_startup.py CHECKPOINT --work DIR [--rounds 9] [--engines gemma_np]

The job is one text in, one vector out, the interpreter and the tokenizer included: what a script or a command line
pays each time. Each engine reads its own files, made beforehand (ours by `gemma-np quantize`, the peers' as for
bench_peers.py, into DIR), tokenizes by its own means, and runs in a new process, in turn, in both orders; files are in
the system's cache and our kernels compiled. The peers need the extra `peers`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from record import Run, bench_parser, in_turn, log
from tables import show

TEXTS = {
    "short": "a short text",
    "256 tokens": " ".join(["the quick brown fox jumps over the lazy dog"] * 29)[:-36],
}
OURS = {
    "gemma_np nano": "nano",
    "gemma_np q4_0": "q4_0",
    "gemma_np q8_0": "q8_0",
    "gemma_np float32": "float32",
}
PEERS = {
    "llama.cpp Q4_0": "llama",
    "llama.cpp Q8_0": "llama",
    "ONNX Runtime int8": "onnx",
    "sentence-transformers float32": "torch",
}


def run_llama(file: str, checkpoint: str, text: str, threads: int) -> list[float]:
    from llama_cpp import Llama

    model = Llama(
        file,
        embedding=True,
        n_threads=threads,
        n_threads_batch=threads,
        n_ctx=2048,
        n_batch=2048,
        n_ubatch=2048,
        verbose=False,
    )
    return list(model.embed(text, normalize=True))  # type: ignore[arg-type]


def run_onnx(file: str, checkpoint: str, text: str, threads: int) -> list[float]:
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    ids = np.array([Tokenizer.from_file(f"{checkpoint}/tokenizer.json").encode(text).ids])
    vectors = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    return [float(number) for number in vectors[0][0]]


def run_torch(file: str, checkpoint: str, text: str, threads: int) -> list[float]:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    return [float(number) for number in SentenceTransformer(checkpoint, device="cpu").encode(text)]


JOBS: dict[str, Callable[[str, str, str, int], list[float]]] = {
    "llama": run_llama,
    "onnx": run_onnx,
    "torch": run_torch,
}


def measured(command: list[str]) -> tuple[float, float, int]:
    """`measure` in a small process: a process's peak begins with the size of the one that starts it."""
    done = subprocess.run(
        [sys.executable, __file__, ".", "--measure", json.dumps(command)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, peak, numbers = json.loads(done.stdout)
    return seconds, peak, numbers


def measure(command: list[str]) -> tuple[float, float, int]:
    """Seconds, peak resident MB and how many numbers a process printed."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        out = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)[:200]} ended with {process.returncode}")
    numbers = json.loads(out)
    return seconds, used.ru_maxrss / 1024, len(numbers[0] if isinstance(numbers[0], list) else numbers)


def commands(names: list[str], checkpoint: Path, work: Path, threads: int) -> dict[str, list[str]]:
    """What each engine is started with, but for the text; files that are missing are made."""
    import peer_models

    found = {}
    for name, format in OURS.items():
        if name not in names:
            continue
        model = "nano" if format == "nano" else checkpoint
        if format[0] == "q":
            model = peer_models.bundle(format)(checkpoint, work)
        gemma_np = str(Path(sys.executable).with_name("gemma-np"))
        found[name] = [gemma_np, "embed", "-m", str(model), "--threads", str(threads)]
    makers = {
        "llama.cpp Q4_0": peer_models.gguf_q4_0,
        "llama.cpp Q8_0": peer_models.gguf_q8_0,
        "ONNX Runtime int8": peer_models.onnx_int8,
    }
    for name, job in PEERS.items():
        if name not in names:
            continue
        file = str(makers[name](checkpoint, work)) if name in makers else ""
        options = [str(checkpoint), "--job", job, "--file", file, "--threads", str(threads), "--text"]
        found[name] = [sys.executable, __file__, *options]
    return found


def parsed() -> argparse.Namespace:
    parser = bench_parser(__doc__, rounds=9)
    parser.add_argument("checkpoint", type=Path, help="folder of a full-size checkpoint, float32")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where converted models are kept")
    parser.add_argument("--engines", nargs="+", metavar="NAME", help="any part of a name; default: all")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)  # what the measured processes are told
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    parser.add_argument("--text", help=argparse.SUPPRESS)
    return parser.parse_args()


def bench(arguments: argparse.Namespace, checkpoint: Path) -> Path:
    from peer_models import folder_for
    from peers import chosen

    run = Run("startup", arguments, ("llama-cpp-python", "onnxruntime", "sentence-transformers", "torch"))
    names = chosen(arguments.engines, [*OURS, *PEERS])
    started = commands(names, checkpoint, folder_for(checkpoint, arguments.work), arguments.threads)
    seconds: dict[tuple[str, str], list[float]] = {(name, text): [] for name in started for text in TEXTS}
    peaks: dict[tuple[str, str], list[float]] = {key: [] for key in seconds}
    sizes: dict[bool, int] = {}  # of the vectors: all engines run one checkpoint, but for nano
    for number in range(arguments.rounds + 1):
        log(f"round {number} of {arguments.rounds}")
        for name in in_turn(list(started), number):
            for text, words in TEXTS.items():
                took, peak, numbers = measured([*started[name], words])
                assert numbers == sizes.setdefault(name == "gemma_np nano", numbers), (name, numbers)
                if number:  # the first brings the files into the cache
                    seconds[name, text].append(took)
                    peaks[name, text].append(peak)
    return run.keep(
        [
            {"engine": name, "text": text, "seconds": seconds[name, text], "peak_mb": peaks[name, text]}
            for name, text in seconds
        ]
    )


def main() -> None:
    arguments = parsed()
    checkpoint = arguments.checkpoint.resolve()
    if arguments.measure:
        print(json.dumps(measure(json.loads(arguments.measure))))
    elif arguments.job:
        print(json.dumps(JOBS[arguments.job](arguments.file, str(checkpoint), arguments.text, arguments.threads)))
    else:
        print(show(bench(arguments, checkpoint)))


if __name__ == "__main__":
    main()
