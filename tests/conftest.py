"""What tests share: a small checkpoint, the data beside the repository, and the packages of the parity extra.

With GEMMA_NP_SKIPS=fail in the environment a skipped test is a failure: there, everything is at hand.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

# Before torch and NumPy start: threads of the one that wait for work busily would take the cores from the other's.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
os.environ.pop("GEMMA_NP_MODEL", None)  # what it means is tested, what the user chose is not
sys.path.insert(0, str(ROOT / "tools"))
sys.path.insert(0, str(ROOT / "tests"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What compares with Hugging Face belongs to the parity tests."""
    for item in items:
        if "sentence_transformers" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.parity)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.skipped and os.environ.get("GEMMA_NP_SKIPS") == "fail":
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, but here nothing may be: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint of 6 layers, width 64, window 32, with well-behaved float32 weights. Not to be changed."""
    from make_checkpoint import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small")


@pytest.fixture
def writable(small: Path, tmp_path: Path) -> Path:
    """A copy of `small` that a test may change."""
    return Path(shutil.copytree(small, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def nano_float(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano as a float32 checkpoint, which Hugging Face loads too: with the values to which it is rounded."""
    from gemma_np.checkpoint.saving import save
    from gemma_np.hub import NANO_FOLDER
    from gemma_np.opening import open_source

    folder = tmp_path_factory.mktemp("float") / "nano"
    save(open_source(NANO_FOLDER), folder, "float32")
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The development data beside the repository: Gemma's own tokenizer, which may not be shipped, and much text."""
    path = ROOT.parent / "shared"
    if not (path / "data").is_dir():
        pytest.skip("needs the development data in ../shared")
    return path


@pytest.fixture(scope="session")
def gemma_pieces(shared: Path) -> Any:
    """The arrays of Gemma's own tokenizer.json; to make them takes seconds."""
    from gemma_np.tokens.json_file import from_tokenizer_json

    return from_tokenizer_json(shared / "data/embeddinggemma-300m/tokenizer.json")


@pytest.fixture(scope="session")
def sentence_transformers() -> ModuleType:
    """Hugging Face's side of a comparison."""
    pytest.importorskip("torch", reason="needs the extra `parity`: torch, transformers, sentence-transformers")
    module: ModuleType = pytest.importorskip("sentence_transformers", reason="needs the extra `parity`")
    return module
