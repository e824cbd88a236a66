"""The processes of bench_peers.py: one for each engine, so that its memory is its own and thread pools do not meet."""

import multiprocessing
import os
import resource
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import peers
from numpy.typing import NDArray
from record import log

Ids = list[NDArray[np.int32]]


class Worker:
    """One engine in its process."""

    def __init__(self, name: str, checkpoint: Path, work: Path, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # fork would share our thread pools and our memory
        log(f"starting {name}")
        converting = context.Process(target=convert, args=(name, checkpoint, work))
        converting.start()
        converting.join()
        self.name = name
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, name, checkpoint, work, threads)
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.facts: dict[str, Any] = self._answer()

    def _answer(self) -> Any:
        try:
            answer = self.pipe.recv()
        except EOFError:
            self.process.join()
            answer = f"its process ended with {self.process.exitcode}"
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def ask(self, ids: Ids) -> tuple[NDArray[np.float32], float, float]:
        """Vectors, milliseconds, peak resident MB."""
        self.pipe.send(ids)
        vectors, ms, peak = self._answer()
        return vectors, ms, peak

    def stop(self) -> None:
        self.pipe.close()
        self.process.join(10)


def convert(name: str, checkpoint: Path, work: Path) -> None:
    """Runs in another process, so that its memory is not the engine's."""
    os.dup2(2, 1)  # stdout is for the tables
    peers.NAMED[name].convert(checkpoint, work)


def serve(pipe: Connection, name: str, checkpoint: Path, work: Path, threads: int) -> None:
    """An engine's process: says what it is, then takes lists of ids and answers (vectors, ms, peak MB), until None."""
    os.dup2(2, 1)
    start = time.perf_counter()
    try:
        engine = peers.NAMED[name](checkpoint, work, threads)
        facts = {
            "versions": engine.versions(),
            "settings": engine.settings,
            "file_mb": engine.megabytes(),
            "load_s": time.perf_counter() - start,
            "loaded_peak_mb": peak_mb(),
            "dense_heads": engine.dense,
        }
        pipe.send(facts)
        while (ids := pipe.recv()) is not None:
            forget_peak()
            start = time.perf_counter()
            vectors = engine.embed(ids)
            ms = 1e3 * (time.perf_counter() - start)
            pipe.send((vectors, ms, peak_mb()))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def peak_mb() -> float:
    """Peak resident memory since the start or `forget_peak`: VmHWM, as ru_maxrss begins with the parent's size."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak() -> None:
    """From now on `peak_mb` counts from what is resident (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
