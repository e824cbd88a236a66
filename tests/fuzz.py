"""Hostile files: every reader of files, given damaged and malicious ones.

    python tests/fuzz.py safetensors --seconds 600 --seed 1      mutate valid files, print what came out
    python tests/fuzz.py safetensors --seconds 600 --guided      led by coverage, with `pip install atheris`
    python tests/fuzz.py safetensors --replay FILE ...           inputs again, and what each leads to

The rule: whatever a file holds, a reader gives one of our errors or data, and what is done with the data keeps to it,
too. A crash, another exception, more than 5 seconds, or memory beyond a small multiple of the file's size is a finding.

Inputs run in a process of their own, each kept in a file before it runs, so that a crash does not lose it. Its address
space is limited, for memory that Python does not see as well. Linux only.
"""

import argparse
import hashlib
import itertools
import logging
import mmap
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("GEMMA_NP_KERNELS", "numpy")  # kernels read no files
os.environ |= {"NUMBA_DISABLE_JIT": "1"}  # or as Python, where an access outside of their arrays is an error
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"}
if "--guided" in sys.argv:
    import atheris

with atheris.instrument_imports(include=["gemma_np"]) if "--guided" in sys.argv else nullcontext():
    from fuzz_targets import TARGETS, Target

    from gemma_np import CheckpointError, ConfigError, GemmaError, HubError, InputError, WeightsError

logging.disable()
warnings.simplefilter("ignore")

SECONDS = 5  # for one input
MULTIPLE, SLACK = 64, 24 << 20  # memory for one input: so many times its size, and so much besides
OUTCOMES = [
    "success",
    "finding",
    *(e.__name__ for e in (CheckpointError, ConfigError, HubError, InputError, WeightsError)),
]
MOST_CRASHES = 20


@contextmanager
def guarded(size: int, seconds: float) -> Iterator[None]:
    """Limits of time and memory. The alarm ends the process, as nothing less ends a call that hangs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (used + MULTIPLE * size + SLACK, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)


def attempt(target: Target, data: bytes, folder: Path, seconds: float = SECONDS) -> str:
    """What an input leads to: "success", or one of our errors by name. Any other exception is a finding."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    target.write(data, folder)
    with guarded(len(data), seconds):
        try:
            target.use(folder)
        except GemmaError as error:
            message = f"{type(error).__name__}: {error}"
            message.encode()  # one that cannot be printed is none
            return message
    return "success"


class Run:
    """A run over one target: its counts and its findings."""

    def __init__(self, name: str, out: Path) -> None:
        self.name, self.out, self.target = name, out, TARGETS[name]
        self.scratch = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        self.last = self.scratch / "input"
        self.counts = np.frombuffer(mmap.mmap(-1, 8 * len(OUTCOMES)), np.int64)  # shared with the child
        self.known: set[str] = set()
        self.crashes = 0

    def one(self, data: bytes, seconds: float = SECONDS) -> None:
        self.last.write_bytes(data)
        try:
            outcome = attempt(self.target, data, self.scratch / "files", seconds).partition(":")[0]
        except BaseException:  # a panic of Rust's is no Exception
            outcome = "finding"
            lines = traceback.format_exc().splitlines()
            place = "\n".join(line for line in lines if "gemma_np" in line)[-200:] + lines[-1][:40]
            if place not in self.known:
                self.known.add(place)
                self.save(data, "\n".join(lines[-12:]))
        self.counts[OUTCOMES.index(outcome)] += 1

    def save(self, data: bytes, why: str) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"{self.name}-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        print(f"FINDING {path}\n{why[:4000]}".encode(errors="backslashreplace").decode(), flush=True)

    def child(self, work: Callable[..., None], *arguments: Any) -> int:
        """Run work(*arguments) in a child: 0, or the signal that ended it."""
        process = os.fork()
        if not process:
            try:
                work(*arguments)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        assert not os.WIFEXITED(status) or not os.WEXITSTATUS(status), f"the harness failed with {status}"
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0

    def crashing(self, guided: bool, inputs: int, seconds: float, seed: int) -> None:
        """The run, begun again where it crashes. What crashes twice is a finding; a busy machine has more time then."""
        start = time.monotonic()
        for seed in range(seed, seed + MOST_CRASHES):  # noqa: B020  # other inputs than before the crash
            left = seconds - (time.monotonic() - start)
            work = (self.guided, left, seed) if guided else (self.plain, inputs, left, seed)
            if not (died := self.child(*work)):
                break
            data = self.last.read_bytes()
            if self.child(self.one, data, 6 * SECONDS):
                self.crashes += 1
                self.save(data, f"ended by {signal.Signals(died).name}")
        counts = {name: int(n) for name, n in zip(OUTCOMES, self.counts, strict=True) if n}
        took = time.monotonic() - start
        print(
            f"{self.name}: {self.counts.sum():,} inputs in {took:.0f} s, {self.crashes} crashes, {counts}", flush=True
        )

    def replay(self, paths: Sequence[Path]) -> None:
        """Inputs again, each in a process of its own: prints what each leads to. Of a folder, those of this target."""

        def show(path: Path) -> None:
            try:
                said = attempt(self.target, path.read_bytes(), self.scratch / "files")
            except BaseException as error:
                said = f"{type(error).__name__}, which is a finding: {error}"
            print(f"{path.name}: {said}".encode(errors="backslashreplace").decode(), flush=True)

        for path in itertools.chain(*(sorted(p.glob(f"{self.name}-*")) if p.is_dir() else [p] for p in paths)):
            if died := self.child(show, path):
                print(f"{path.name}: ended by {signal.Signals(died).name}", flush=True)

    def plain(self, inputs: int, seconds: float, seed: int) -> None:
        rng = random.Random(seed)
        until = time.monotonic() + seconds
        seeds = self.target.seeds()
        for data in seeds:
            self.one(data)
        for _ in range(inputs - len(seeds)):
            if time.monotonic() > until:
                break
            self.one(self.target.mutate(rng, rng.choice(seeds)))

    def guided(self, seconds: float, seed: int) -> None:
        corpus = self.out / f"corpus-{self.name}"
        corpus.mkdir(parents=True, exist_ok=True)
        seeds = self.target.seeds()
        for i, data in enumerate(seeds):
            (corpus / f"seed-{i}").write_bytes(data)

        def mutate(data: bytes, max_size: int, seed: int) -> bytes:
            rng = random.Random(seed)
            data = rng.choice(seeds) if rng.random() < 0.2 else data
            return (atheris.Mutate(data, max_size) if rng.random() < 0.3 else self.target.mutate(rng, data))[:max_size]

        largest = max(map(len, seeds))
        handlers = [f"-handle_{signal}=0" for signal in ("segv", "abrt", "bus", "fpe", "ill", "int", "term")]
        limits = [
            "-timeout=0",
            "-report_slow_units=999",
            "-rss_limit_mb=0",
            f"-max_total_time={max(int(seconds), 1)}",
            f"-max_len={2 * largest}",
        ]
        options = [f"-seed={seed}", "-len_control=0", "-verbosity=0", *handlers, *limits]
        atheris.Setup([sys.argv[0], *options, str(corpus)], self.one, custom_mutator=mutate)
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", choices=list(TARGETS), nargs="+")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--inputs", type=int, default=10**18)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guided", action="store_true", help="led by coverage (atheris)")
    parser.add_argument("--replay", type=Path, nargs="+", default=[])
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"), help="where findings and the corpus go")
    arguments = parser.parse_args()
    found = 0
    for name in arguments.targets:
        run = Run(name, arguments.out)
        try:
            if arguments.replay:
                run.replay(arguments.replay)
            else:
                run.crashing(arguments.guided, arguments.inputs, arguments.seconds, arguments.seed)
        finally:
            shutil.rmtree(run.scratch)
        found += run.crashes + int(run.counts[OUTCOMES.index("finding")])
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
