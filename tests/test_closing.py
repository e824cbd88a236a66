"""A model gives back what it took: memory, files, threads."""

import gc
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_np import EmbeddingGemma, InputError

LINUX = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads /proc")


def maps_of(folder: Path) -> int:
    """How many of a folder's files are mapped into memory."""
    return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def soon(condition: Any) -> bool:
    """Threads end on their own time: up to 5 s for what takes a millisecond."""
    deadline = time.monotonic() + 5
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("kernels", ["", "numpy"])
def test_a_closed_model_says_so(small: Path, tmp_path: Path, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels:
        monkeypatch.setenv("GEMMA_NP_KERNELS", kernels)
    with EmbeddingGemma(small) as model:
        vector = model.encode("a")
    model.close()
    for call in (
        lambda: model.encode("a"),
        lambda: model.encode("a", output_value="token_embeddings"),
        lambda: model.embed_ids([np.array([2, 3, 1])]),
        lambda: model.token_embeddings(np.array([2, 3, 1])),
        lambda: model.count_tokens("a"),
        lambda: model.tokenize("a"),
        lambda: model.tokenizer("a"),
        lambda: model.split("a"),
        lambda: model.fingerprint(),
        lambda: model.save_pretrained(tmp_path / "out"),
        lambda: model.max_seq_length,
    ):
        with pytest.raises(InputError, match="this model is closed; open it again"):
            call()
    assert not (tmp_path / "out").exists()
    assert "EmbeddingGemma" in repr(model)
    np.testing.assert_array_equal(EmbeddingGemma(small).encode("a"), vector)


def test_a_model_is_closed_whatever_goes_wrong(small: Path) -> None:
    with pytest.raises(RuntimeError), EmbeddingGemma(small) as model:
        raise RuntimeError
    with pytest.raises(InputError, match="closed"):
        model.encode("a")


@LINUX
@pytest.mark.parametrize("source", ["small", "bundle"])
def test_memory_and_files_come_back(small: Path, tmp_path: Path, source: str) -> None:
    folder = small
    if source == "bundle":
        folder = tmp_path / "bundle"
        EmbeddingGemma(small).save_pretrained(folder, format="q8_0")
    gc.collect()
    before, files = maps_of(folder), len(os.listdir("/proc/self/fd"))
    model = EmbeddingGemma(folder)
    model.encode(["a", "b"])
    assert maps_of(folder) > before
    gc.disable()  # what is left must not wait for it
    try:
        model.close()
        assert maps_of(folder) == before
        assert len(os.listdir("/proc/self/fd")) <= files
    finally:
        gc.enable()


@LINUX
def test_threads_come_back_after_the_last_model_and_start_again(small: Path) -> None:
    from gemma_np.kernels.engine import ENGINES
    from gemma_np.kernels.team import TEAM

    one, two = EmbeddingGemma(small), EmbeddingGemma(small)
    if one.column is None:
        pytest.skip("NumPy alone has no threads of ours")
    expected = one.encode("a")
    two.encode("a")
    one.close()
    assert two.fast._engine in ENGINES  # and so the threads stay
    np.testing.assert_array_equal(two.encode("a"), expected)
    team = type(TEAM)()  # of its own: other tests' models may be open

    class Work:
        threads = 3

        def begin(self) -> None: ...
        def run(self, number: int) -> None: ...
        def end(self) -> None: ...

    before = threads()
    for _ in range(3):
        team.run(Work())
        assert threads() == before + 3
        team.stop()
        team.stop()
        assert soon(lambda: threads() == before)
    two.close()


@LINUX
def test_a_hundred_models_leave_nothing(small: Path) -> None:
    EmbeddingGemma(small).close()
    gc.collect()
    before = maps_of(small), len(os.listdir("/proc/self/fd")), len(gc.get_objects())
    for _ in range(100):
        with EmbeddingGemma(small) as model:
            model.encode("a")
    gc.collect()
    assert (maps_of(small), len(os.listdir("/proc/self/fd"))) == before[:2]
    assert len(gc.get_objects()) < before[2] + 2000  # caches of Python's own


def test_closing_waits_for_no_one_and_harms_no_one(small: Path) -> None:
    """A pass that runs in another thread ends as if nothing were."""
    model, other = EmbeddingGemma(small), EmbeddingGemma(small)
    expected, found = other.encode(["word " * 60] * 50), []
    thread = threading.Thread(target=lambda: found.append(other.encode(["word " * 60] * 50)))
    thread.start()
    for _ in range(20):
        model.close()
        model = EmbeddingGemma(small)
    thread.join()
    np.testing.assert_array_equal(found[0], expected)
