"""A long run, and two models at once, on Linux.

    python bench/endurance.py [MODEL] [--quantization q8_0] [--texts 10000]
    python bench/endurance.py [MODEL] --two

The first streams texts of one to 120 words, all different, and prints the resident memory on the way, which should not
grow with the number of texts. The second runs two models in two Python threads, and then one after the other; times are
the best of some rounds in turn.
"""

import argparse
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gemma_np import EmbeddingGemma

MARKS = (1, 10, 50, 100)  # percent of the texts: when memory is read
ROUNDS = 5


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


def long_run(model: EmbeddingGemma, number: int) -> None:
    marks = [number * percent // 100 for percent in MARKS]
    print("| texts | resident MB | peak MB |\n|---|---|---|")
    done = 0
    for vectors in model.stream(texts(number)):
        done += len(vectors)
        if done >= marks[0]:
            now, peak = resident()
            print(f"| {done:,} | {now:.0f} | {peak:.0f} |", flush=True)
            marks.pop(0)


def two_at_once(models: list[EmbeddingGemma]) -> None:
    some = list(texts(64))

    def at_once() -> None:
        threads = [threading.Thread(target=model.encode, args=(some,)) for model in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def in_turn() -> None:
        for model in models:
            model.encode(some)

    def seconds(work: Callable[[], None]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    in_turn()
    times = [(seconds(at_once), seconds(in_turn)) for _ in range(ROUNDS)]
    first, second = (min(column) for column in zip(*times, strict=True))
    print(f"at once {1e3 * first:.0f} ms, one after the other {1e3 * second:.0f} ms: {first / second:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a folder or hub id; none: nano")
    parser.add_argument("--quantization")
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--two", action="store_true", help="two models at once, instead")
    parser.add_argument("--threads", type=int, help="of each model")
    arguments = parser.parse_args()

    def opened() -> EmbeddingGemma:
        return EmbeddingGemma(arguments.model, quantization=arguments.quantization, threads=arguments.threads)

    if arguments.two:
        two_at_once([opened(), opened()])
    else:
        long_run(opened(), arguments.texts)


if __name__ == "__main__":
    main()
