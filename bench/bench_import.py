"""What an import costs: whole processes, in turn.

python bench/bench_import.py [--rounds 30]
"""

import subprocess
import sys
import time

from record import ROOT, Run, bench_parser, in_turn
from tables import show

STATEMENTS = ("pass", "import gemma_np", "import numpy", "from gemma_np import EmbeddingGemma")


def milliseconds(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], cwd=ROOT, check=True)
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    arguments = bench_parser(__doc__, rounds=30, threads=None).parse_args()
    run = Run("import", arguments)
    found: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    for number in range(arguments.rounds + 1):
        for statement in in_turn(STATEMENTS, number):
            took = milliseconds(statement)
            if number:  # the first brings the files into the system's cache
                found[statement].append(took)
    print(show(run.keep([{"statement": statement, "ms": found[statement]} for statement in STATEMENTS])))


if __name__ == "__main__":
    main()
