"""Processes that need the same kernels: one compiles, the others wait, and nobody waits for the dead or for ever.

The compiler is played by a script that notes each start and waits for a file named go.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gemma_np.kernels import lock
from gemma_np.kernels.cache import kernels_for, path_of
from gemma_np.kernels.choice import choose
from gemma_np.kernels.lock import alone

ROOT = Path(__file__).parents[1]
LIMIT = 120
COLUMN = choose().column
PROGRAM = """
import sys; from gemma_np.kernels import cache; from gemma_np.kernels.choice import choose
sys.executable = sys.argv[1]
{settings}
column = choose().column
print(callable(cache.kernels_for(column, ("q8_0",)).forward), flush=True)
"""
WAITS = "are being compiled already; waiting"

pytestmark = [
    pytest.mark.skipif(COLUMN is None, reason="no kernels run on this machine"),
    pytest.mark.skipif(sys.platform == "win32", reason="a shell plays the compiler"),
]


class Processes:
    """Processes that load kernels from one cache, whose compiler is a script."""

    def __init__(self, folder: Path, code: Path) -> None:
        self.folder, self.running = folder, list["subprocess.Popen[str]"]()
        compiler = folder / "python3"
        script = ["#!/bin/sh", f"cd {folder}", "echo $$ > pid", "echo . >> starts"]
        script += ["while [ ! -e go ]; do sleep 0.05; done", f"cat {code}"]
        compiler.write_text("\n".join(script) + "\n")
        compiler.chmod(0o755)

    def start(self, settings: str = "") -> "subprocess.Popen[str]":
        environment = os.environ | {"PYTHONPATH": str(ROOT), "GEMMA_NP_CACHE": str(self.folder / "cache")}
        command = [sys.executable, "-c", PROGRAM.format(settings=settings), str(self.folder / "python3")]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
        self.running.append(process)
        return process

    def compiling(self) -> "subprocess.Popen[str]":
        """A process whose compiler runs."""
        process = self.start()
        assert "compiling kernels" in self.said(process)
        self.wait_for(lambda: self.starts() == 1)
        return process

    def waiting(self, settings: str = "") -> "subprocess.Popen[str]":
        process = self.start(settings)
        assert WAITS in self.said(process)
        return process

    def said(self, process: "subprocess.Popen[str]") -> str:
        assert process.stderr is not None
        return process.stderr.readline()

    def starts(self) -> int:
        """How many compilers were started."""
        path = self.folder / "starts"
        return len(path.read_text().split()) if path.exists() else 0

    def wait_for(self, what: Callable[[], bool]) -> None:
        until = time.monotonic() + LIMIT
        while not what():
            assert time.monotonic() < until, "it never came"
            time.sleep(0.02)

    def go(self) -> None:
        """Let compilers end."""
        (self.folder / "go").touch()

    def end(self, process: "subprocess.Popen[str]") -> str:
        """What a process said until it had its kernels."""
        out, err = process.communicate(timeout=LIMIT)
        assert (process.returncode, out) == (0, "True\n"), err
        return err

    def left(self) -> list[str]:
        assert COLUMN is not None
        return [path.name for path in (self.folder / "cache").iterdir()]


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Object code, compiled in earnest once, or found."""
    assert COLUMN is not None
    kernels_for(COLUMN, ("q8_0",))
    path = tmp_path_factory.mktemp("code") / "kernels.o"
    path.write_bytes(path_of(COLUMN, ("q8_0",)).read_bytes().partition(b"\n")[2])
    return path


@pytest.fixture
def processes(tmp_path: Path, code: Path) -> Iterator[Processes]:
    made = Processes(tmp_path, code)
    yield made
    made.go()
    for process in made.running:
        process.kill()
        process.communicate()


def test_one_process_compiles_and_the_others_wait(processes: Processes) -> None:
    first = processes.compiling()
    others = [processes.waiting() for _ in range(3)]
    processes.go()
    assert " kept in " in processes.end(first)
    assert [processes.end(other) for other in others] == ["", "", ""]
    assert processes.starts() == 1
    assert processes.left() == [path_of(choose().column, ("q8_0",)).name]  # type: ignore[arg-type]


def test_the_place_of_a_killed_process_is_taken_at_once(processes: Processes) -> None:
    first, second = processes.compiling(), processes.waiting()
    first.kill()
    first.communicate()
    assert "compiling kernels" in processes.said(second)
    third = processes.waiting()
    processes.go()
    assert " kept in " in processes.end(second)
    assert processes.end(third) == ""
    assert processes.starts() == 2
    assert len(processes.left()) == 1


def test_a_compiler_that_hangs_delays_others_for_a_time_only(processes: Processes) -> None:
    first = processes.compiling()
    second = processes.waiting("cache.PATIENCE = 0.3")
    assert "compiling kernels" in processes.said(second)
    processes.wait_for(lambda: processes.starts() == 2)
    assert first.poll() is None
    processes.go()
    processes.end(first)
    processes.end(second)
    assert len(processes.left()) == 1


def test_a_compiler_that_fails_leaves_the_place_to_the_next(processes: Processes) -> None:
    compiler = processes.folder / "python3"
    first = processes.compiling()
    second = processes.waiting()
    good = compiler.read_text()
    (processes.folder / "new").write_text(good.replace("starts", "more"))
    (processes.folder / "new").chmod(0o755)
    os.replace(processes.folder / "new", compiler)
    os.kill(int((processes.folder / "pid").read_text()), signal.SIGTERM)
    out, err = first.communicate(timeout=LIMIT)
    assert first.returncode != 0
    assert "the compiler was ended by SIGTERM" in err
    assert out == ""
    assert "compiling kernels" in processes.said(second)
    processes.go()
    assert " kept in " in processes.end(second)


def test_an_interrupt_ends_the_waiting(processes: Processes) -> None:
    first = processes.compiling()
    second = processes.waiting("import signal; signal.signal(signal.SIGINT, signal.default_int_handler)")
    second.send_signal(signal.SIGINT)
    _, err = second.communicate(timeout=LIMIT)
    assert second.returncode != 0
    assert err.rstrip().endswith("KeyboardInterrupt")
    processes.go()
    processes.end(first)
    assert processes.starts() == 1


def test_where_nothing_can_be_locked_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(_: int) -> None:
        raise OSError(37, "No locks available")

    def never() -> None:
        raise AssertionError("it waits")

    with alone(tmp_path / "no" / "folder", 60, never):
        pass
    monkeypatch.setattr(lock, "_lock", no_locks)
    with alone(tmp_path / "lock", 60, never), alone(tmp_path / "lock", 60, never):
        pass


def fail_if(there: bool) -> None:
    if there:
        raise OverflowError


def test_the_lock_is_free_after_an_error_and_its_file_gone(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(OverflowError), alone(tmp_path / "lock", 0, lambda: None):
            fail_if((tmp_path / "lock").exists())
        assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "target")
    with alone(tmp_path / "lock", 60, lambda: None):
        assert not (tmp_path / "target").exists()
