"""A long run, and two models at once, on Linux.

    python bench/endurance.py [MODEL ...] [--texts 10000] [--rounds 2]
    python bench/endurance.py [MODEL] --two [--rounds 15]

The first streams texts of one to 120 words, all different, through each model in a new process, and reads the resident
memory on the way, which should not grow with the number of texts. The second runs two models in two Python threads, and
then one after the other, in turn. MODEL is a folder or a hub id; without it, nano.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from record import Run, bench_parser, log
from tables import show

from gemma_np import EmbeddingGemma

MARKS = (1, 10, 50, 100)  # percent of the texts: when memory is read


def texts(number: int) -> Iterator[str]:
    """Short texts are many, long ones few."""
    rng = random.Random(0)
    for i in range(number):
        words = int(1 + 120 * rng.random() ** 4)
        yield " ".join([f"{i}.", *("".join(rng.choices("aeioulnrst", k=rng.randint(2, 8))) for _ in range(words))])


def resident() -> tuple[float, float]:
    """MB: now, and the most so far."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


def long_run(path: str, number: int, threads: int) -> list[dict[str, float]]:
    """The memory at each mark, of a process that does nothing else."""
    model = EmbeddingGemma(path, threads=threads)
    marks = [number * percent // 100 for percent in MARKS]
    found = []
    done = 0
    for vectors in model.stream(texts(number)):
        done += len(vectors)
        if done >= marks[0]:
            now, peak = resident()
            found.append({"texts": done, "resident_mb": now, "peak_mb": peak})
            marks = [mark for mark in marks if mark > done]
    return found


def in_new_process(*arguments: Any) -> list[dict[str, float]]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(long_run, *arguments).result()


def two_at_once(path: str, rounds: int, threads: int) -> list[dict[str, Any]]:
    models = [EmbeddingGemma(path, threads=threads) for _ in range(2)]
    some = list(texts(64))

    def at_once() -> None:
        workers = [threading.Thread(target=model.encode, args=(some,)) for model in models]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def in_turn() -> None:
        for model in models:
            model.encode(some)

    def milliseconds(work: Callable[[], None]) -> float:
        start = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - start)

    in_turn()
    ways = {"at once": at_once, "one after the other": in_turn}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            found[name].append(milliseconds(work))
    return [{"way": name, "ms": found[name]} for name in ways]


def main() -> None:
    parser = bench_parser(__doc__, rounds=2)
    parser.add_argument("models", nargs="*", metavar="MODEL", default=["nano"])
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--two", action="store_true", help="two models at once, instead")
    arguments = parser.parse_args()
    if arguments.two:
        run = Run("two_models", arguments)
        model = arguments.models[0]
        found = two_at_once(model, arguments.rounds, arguments.threads)
        return print(show(run.keep(found, model=Path(model).name)))
    run = Run("endurance", arguments)
    rows = []
    for number in range(arguments.rounds):
        for model in arguments.models:
            log(f"{model}: round {number + 1} of {arguments.rounds}")
            marks = in_new_process(model, arguments.texts, arguments.threads)
            rows += [{"model": Path(model).name, "round": number, **mark} for mark in marks]
    print(show(run.keep(rows)))


if __name__ == "__main__":
    main()
