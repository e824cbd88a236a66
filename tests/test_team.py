"""The threads that run passes: errors, interrupts, forks and exits."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gemma_np.kernels.team import Team

from gemma_np import EmbeddingGemma

ROOT = Path(__file__).parents[1]
TEXTS = ["a text", "", "another one, which is longer", "Mars is red"] * 5


class Work:
    """A pass that notes who ran it, and may fail or wait at a step."""

    def __init__(self, threads: int = 3, **steps: Callable[[], object]) -> None:
        self.threads, self.steps, self.ran = threads, steps, set[str]()

    def begin(self) -> None:
        self.steps.get("begin", int)()

    def run(self, number: int) -> None:
        self.ran.add(str(number))
        self.steps.get(f"run{number}", int)()

    def end(self) -> None:
        self.ran.add("end")
        self.steps.get("end", int)()


def fail() -> None:
    raise OverflowError("on purpose")


@pytest.mark.parametrize("step", ["begin", "run0", "run2", "end"])
def test_an_error_in_any_thread_reaches_the_caller_and_the_team_goes_on(step: str) -> None:
    team = Team()
    for _ in range(3):
        with pytest.raises(OverflowError, match="on purpose"):
            team.run(Work(**{step: fail}))
        work = Work()
        team.run(work)
        assert work.ran == {"0", "1", "2", "end"}


def test_a_thread_that_cannot_start_is_an_error_and_not_missed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    team = Team()
    team.run(Work(threads=2))

    def full(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("gemma_np.kernels.team.start_thread", full)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            team.run(Work(threads=4))
    work = Work(threads=4)
    team.run(work)
    assert work.ran == {"0", "1", "2", "3", "end"}


def test_a_leader_that_could_not_start_is_started_at_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    team = Team()
    with monkeypatch.context() as patch:
        patch.setattr("gemma_np.kernels.team.start_thread", lambda *_: fail())
        with pytest.raises(OverflowError):
            team.run(Work())
    team.run(Work())


def test_who_has_stopped_waiting_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a user who interrupts ten times waits for ten passes that nobody wants."""
    team, running, go = Team(), threading.Event(), threading.Event()
    first = threading.Thread(target=team.run, args=(Work(run0=lambda: (running.set(), go.wait())),))
    first.start()
    running.wait()

    class Interrupted:
        def get(self) -> None:
            raise KeyboardInterrupt

    unwanted = Work()
    with monkeypatch.context() as patch:
        patch.setattr("gemma_np.kernels.team.Queue", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            team.run(unwanted)
    go.set()
    first.join()
    last = Work()
    team.run(last)
    assert (unwanted.ran, last.ran) == (set(), {"0", "1", "2", "end"})


def program(code: str, folder: Path) -> "subprocess.Popen[str]":
    head = "import os, sys, threading, time, signal\nfrom gemma_np import EmbeddingGemma\n"
    head += "model = EmbeddingGemma(sys.argv[1], quantization='q8_0')\n"
    head += "texts = ['some words of a text'] * 64\n"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", head + code, str(folder)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture(scope="module")
def model(small: Path) -> EmbeddingGemma:
    return EmbeddingGemma(small, quantization="q8_0", threads=2)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_many_interrupts_in_a_row_leave_a_model_that_works(small: Path, model: EmbeddingGemma) -> None:
    running = program(
        """
signal.signal(signal.SIGINT, signal.default_int_handler)
expected = model.encode(texts).tobytes()
print('ready', flush=True)
for _ in range(10):
    try:
        while True:
            model.encode(texts)
    except KeyboardInterrupt:
        print('interrupted', flush=True)
assert model.encode(texts).tobytes() == expected
""",
        small,
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    for i in range(10):
        time.sleep(0.02 + 0.01 * (i % 3))
        running.send_signal(signal.SIGINT)
        assert running.stdout.readline() == "interrupted\n"
    assert running.communicate(timeout=60)[1] == ""
    assert running.returncode == 0


def test_the_interpreter_may_end_while_a_pass_runs(small: Path) -> None:
    code = """
def work():
    while True:
        model.encode(texts)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.1 + 0.01 * int(os.environ['N']))
"""
    for n in range(5):
        running = program(f"os.environ['N'] = '{n}'\n" + code, small)
        _, err = running.communicate(timeout=60)
        assert (running.returncode, err) == (0, "")


def encoded(model: EmbeddingGemma, queue: "multiprocessing.SimpleQueue[bytes]") -> None:
    queue.put(model.encode(TEXTS).tobytes())


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_started_while_a_thread_encodes_encode_too(
    method: str, model: EmbeddingGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By fork a child inherits threads' locks, but not the threads; by spawn it gets the model's pickle."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    expected, stop = model.encode(TEXTS).tobytes(), threading.Event()
    ids = model.prepare(TEXTS)[0]

    def work() -> None:
        while not stop.is_set():
            model.embed_ids(ids)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        context = multiprocessing.get_context(method)
        for _ in range(3 if method == "fork" else 1):
            queue = context.SimpleQueue()
            child = context.Process(target=encoded, args=(model, queue))
            child.start()
            assert queue.get() == expected
            child.join(60)
            assert child.exitcode == 0
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_bits(threads: int, small: Path, model: EmbeddingGemma) -> None:
    other = EmbeddingGemma(small, quantization="q8_0", threads=threads)
    assert other.encode(TEXTS).tobytes() == model.encode(TEXTS).tobytes()


def test_eight_threads_on_two_models_get_what_one_gets(small: Path, model: EmbeddingGemma) -> None:
    models = [model, EmbeddingGemma(small)]
    expected = [[m.encode(text).tobytes() for text in TEXTS[:4]] for m in models]
    wrong = []

    def work(n: int) -> None:
        for i in range(40):
            which, text = (n + i) % 2, (n * 3 + i) % 4
            if models[which].encode(TEXTS[text]).tobytes() != expected[which][text]:
                wrong.append((n, i))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_python_goes_on_while_a_pass_runs(model: EmbeddingGemma) -> None:
    """A pass of a second's length, while this thread counts: it would stand still if the GIL were held."""
    ids = [np.full(1000, 5, np.int32)] * 30
    thread = threading.Thread(target=model.embed_ids, args=(ids,))
    thread.start()
    turns = 0
    while thread.is_alive():
        time.sleep(0.0005)
        turns += 1
    assert turns >= 10
