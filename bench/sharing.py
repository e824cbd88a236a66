"""What one more process on the same model costs, on Linux: memory that is not shared with the others.

    python bench/sharing.py [MODEL ...] [--processes 4] [--rounds 3]

Each process opens the model and embeds a text of 256 tokens. As they start one after the other, the proportional set
size (PSS) of all of them is read from /proc: a page that several have mapped counts once in the sum.
"""

import subprocess
import sys
from pathlib import Path

from record import Run, bench_parser, log
from tables import show

CODE = """
import sys
from gemma_np import EmbeddingGemma
model = EmbeddingGemma(sys.argv[1], threads=1)
model.encode("word " * 254)
print("ready", flush=True)
sys.stdin.read()
"""


def proportional_mb(process: "subprocess.Popen[str]") -> float:
    """A process's PSS."""
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("Pss:"))
    return int(line.split()[1]) / 1024


def sums(model: str, number: int) -> list[float]:
    """The PSS of one process, of two together, and so on, in MB."""
    started: list[subprocess.Popen[str]] = []
    found = []
    try:
        for _ in range(number):
            pipe = subprocess.PIPE
            process = subprocess.Popen([sys.executable, "-c", CODE, model], stdin=pipe, stdout=pipe, text=True)
            started.append(process)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            found.append(sum(map(proportional_mb, started)))
    finally:
        for process in started:
            process.communicate()
    return found


def main() -> None:
    parser = bench_parser(__doc__, rounds=3)
    parser.add_argument("models", nargs="*", metavar="MODEL", default=["nano"])
    parser.add_argument("--processes", type=int, default=4)
    arguments = parser.parse_args()
    run = Run("sharing", arguments)
    rows = []
    for number in range(arguments.rounds):
        for model in arguments.models:
            log(f"{model}: round {number + 1} of {arguments.rounds}")
            found = sums(model, arguments.processes)
            rows += [{"model": Path(model).name, "processes": i, "pss_mb": mb} for i, mb in enumerate(found, 1)]
    print(show(run.keep(rows)))


if __name__ == "__main__":
    main()
