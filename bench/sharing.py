"""What one more process on the same model costs, on Linux: memory that is not shared with the others.

    python bench/sharing.py [MODEL ...] [--processes 4] [--rounds 3]

Each process opens the model and embeds a text of 256 tokens. As they start one after the other, the proportional set
size (PSS) of all of them is read from /proc: a page that several have mapped counts once in the sum, less the part of
other programs that have it mapped too (Python's and NumPy's libraries). What no other process has mapped, the private
memory of the last one started, does not depend on other programs as soon as there are two.
"""

import subprocess
import sys
from pathlib import Path

from record import Run, bench_parser, log
from tables import show

CODE = """
import sys
from gemma_np import EmbeddingGemma
model = EmbeddingGemma(sys.argv[1], threads=int(sys.argv[2]))
model.encode("word " * 254)
print("ready", flush=True)
sys.stdin.read()
"""


def memory(process: "subprocess.Popen[str]") -> tuple[float, float]:
    """MB of a process: its PSS, and what it alone has mapped."""
    _, *lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    mb = {name: int(value.split()[0]) / 1024 for name, value in (line.split(":") for line in lines)}
    return mb["Pss"], mb["Private_Clean"] + mb["Private_Dirty"]


def measured(model: str, number: int, threads: int) -> list[dict[str, float]]:
    """With one process, with two, and so on: the PSS of all, and the private memory of the last."""
    started: list[subprocess.Popen[str]] = []
    found = []
    try:
        for _ in range(number):
            pipe = subprocess.PIPE
            command = [sys.executable, "-c", CODE, model, str(threads)]
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
            started.append(process)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            sizes = [memory(each) for each in started]
            found.append({"pss_mb": sum(pss for pss, _ in sizes), "private_mb": sizes[-1][1]})
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
            found = measured(model, arguments.processes, arguments.threads)
            rows += [{"model": Path(model).name, "processes": i, **sizes} for i, sizes in enumerate(found, 1)]
    print(show(run.keep(rows)))


if __name__ == "__main__":
    main()
