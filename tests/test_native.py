"""Programs that replace threads by greenlets: the kernels' threads stay the operating system's.

Each program runs in a process of its own with a time limit, because what is tested is that it ends.
"""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gemma_np.kernels.choice import choose
from gemma_np.kernels.native import Queue, start_thread, unpatched

from gemma_np import EmbeddingGemma

ROOT = Path(__file__).parents[1]
LIMIT = 300  # seconds: a program that hangs is ended; none takes a tenth of it
PATCHES = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "gevent without threads": "from gevent import monkey; monkey.patch_all(thread=False)",
    "eventlet": "import warnings; warnings.simplefilter('ignore'); import eventlet; eventlet.monkey_patch()",
}
IMPORT = "import sys; from gemma_np import EmbeddingGemma"
OPEN = "model = EmbeddingGemma(sys.argv[1], quantization='q8_0', threads=3); assert model.fast"
ENCODE = "print(model.encode(['a text', 'another one', '']).tobytes().hex())"

pytestmark = pytest.mark.skipif(choose().column is None, reason="GEMMA_NP_KERNELS asks for NumPy alone")


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.parity) for name in PATCHES])
def patch(request: pytest.FixtureRequest) -> str:
    library = request.param.split()[0]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}, of the extra `parity`")
    return PATCHES[request.param]


@pytest.fixture(scope="module")
def expected(small: Path) -> str:
    model = EmbeddingGemma(small, quantization="q8_0", threads=2)
    vectors: bytes = model.encode(["a text", "another one", ""]).tobytes()
    return vectors.hex()


def start(lines: list[str], folder: Path, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", "\n".join(lines), str(folder)]
    pipe = subprocess.PIPE
    settings = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.Popen(command, env=settings, stdout=pipe, stderr=pipe, text=True)


def output(lines: list[str], folder: Path, **environment: str) -> list[str]:
    process = start(lines, folder, **environment)
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 0, err
    return out.split()


@pytest.mark.parametrize("place", [0, 1, 2], ids=["before the import", "after the import", "after opening"])
def test_patched_programs_get_the_same_bits(patch: str, place: int, small: Path, expected: str) -> None:
    lines = [IMPORT, OPEN, ENCODE]
    assert output([*lines[:place], patch, *lines[place:]], small) == [expected]


def test_greenlets_that_encode_at_once_all_get_theirs(patch: str, small: Path, expected: str) -> None:
    many = """
def work():
    for _ in range(20):
        texts = model.encode(['a text', 'another one', ''])
        pause(0)
    print(texts.tobytes().hex())
"""
    if "gevent" in patch:
        many += "import gevent; pause = gevent.sleep; gevent.joinall([gevent.spawn(work) for _ in range(5)])"
    else:
        many += "pause = eventlet.sleep; [task.wait() for task in [eventlet.spawn(work) for _ in range(5)]]"
    assert output([patch, IMPORT, OPEN, many], small) == [expected] * 5


def test_greenlets_that_open_models_at_once_compile_once(
    patch: str, small: Path, expected: str, tmp_path: Path
) -> None:
    """While one waits for the compiler the others run: they must not wait where it cannot go on."""
    many = f"""
def work():
    {OPEN}
    {ENCODE}
"""
    if "gevent" in patch:
        many += "import gevent; gevent.joinall([gevent.spawn(work) for _ in range(3)], raise_error=True)"
    else:
        many += "[task.wait() for task in [eventlet.spawn(work) for _ in range(3)]]"
    found = output([patch, IMPORT, many], small, GEMMA_NP_CACHE=str(tmp_path / "cache"))
    assert found == [expected] * 3
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parity
def test_a_thread_of_gevents_pool_encodes(small: Path, expected: str, tmp_path: Path) -> None:
    """It can start no compiler: gevent's subprocess needs the main thread. What the cache has it runs."""
    pytest.importorskip("gevent", reason="needs gevent, of the extra `parity`")
    work = f"""
def work():
    model = EmbeddingGemma(sys.argv[1], quantization='q8_0', threads=3)
    print(model.why_not.split(':')[0].replace(' ', '_') if model.fast is None else '')
    {ENCODE}
import gevent; gevent.get_hub().threadpool.apply(work)
"""
    lines = [PATCHES["gevent"], IMPORT, work]
    assert output(lines, small) == [expected]
    assert output(lines, small, GEMMA_NP_CACHE=str(tmp_path / "cache"))[0] == "the_compiler_did_not_start"


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_an_interrupt_ends_a_patched_program_that_encodes(patch: str, small: Path) -> None:
    loop = """
import signal; signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    print('ready', flush=True)
    while True:
        model.encode(['some words of a text'] * 64)
except KeyboardInterrupt:
    print('interrupted', flush=True)
"""
    process = start([patch, IMPORT, OPEN, loop], small)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert (process.returncode, out) == (0, "interrupted\n"), err


def test_an_unpatched_module_has_the_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    import _thread

    monkeypatch.setattr(_thread, "allocate_lock", None)
    lock = unpatched().allocate_lock()
    assert lock.acquire(False)
    assert not lock.acquire(False)


def test_a_queue_keeps_the_order_of_what_several_threads_put() -> None:
    queue: Queue[tuple[int, int]] = Queue()

    def work(n: int) -> None:
        for i in range(1000):
            queue.put((n, i))

    for n in range(4):
        start_thread(work, (n,))
    found = [queue.get() for _ in range(4000)]
    for n in range(4):
        assert [i for m, i in found if m == n] == list(range(1000))
