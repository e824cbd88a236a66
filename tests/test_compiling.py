"""The compiler's process: which interpreter it is, and what is said when it fails. NumPy computes then."""

import sys
from pathlib import Path

import pytest
from gemma_np.kernels import cache, compiling
from gemma_np.kernels.choice import choose

from gemma_np import EmbeddingGemma
from gemma_np.errors import GemmaWarning

pytestmark = pytest.mark.skipif(choose().column is None, reason="no kernels run on this machine")

FAILURES = {
    "None": (lambda: None, "sys.executable = None is no Python interpreter"),
    "empty": (lambda: "", "sys.executable = '' is no Python interpreter"),
    "a host": (lambda: "/usr/bin/blender", "is no Python interpreter"),
    "lost": (lambda: "/nowhere/python3", "the compiler did not start"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_without_an_interpreter_numpy_computes_and_says_why(
    kind: str, small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    executable, why = FAILURES[kind]
    monkeypatch.setattr(sys, "executable", executable())
    monkeypatch.setattr(sys, "exec_prefix", str(tmp_path))
    check_numpy_takes_over(small, monkeypatch, tmp_path, why)


def test_an_embedded_python_finds_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/bin/blender")
    monkeypatch.setattr(sys, "exec_prefix", sys.base_exec_prefix)
    assert Path(compiling._python()).name.startswith("python3.")


def test_a_frozen_program_is_not_started_again(small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    check_numpy_takes_over(small, monkeypatch, tmp_path, "is a frozen program")


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("kill -9 $$", "the compiler was ended by SIGKILL"),
        ("echo 'MemoryError: no room' >&2; exit 1", "kernels do not compile: MemoryError: no room"),
        ("exit 3", "kernels do not compile: status 3"),
        ("exit 0", "kernels do not compile: status 0"),
        ("sleep 60", "not done after 1 s"),
    ],
)
@pytest.mark.skipif(not Path("/bin/sh").exists(), reason="needs a shell to play the compiler")
def test_a_compiler_that_fails_is_one_warning_with_the_reason(
    script: str, why: str, small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "python3"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.setattr(compiling, "TIME_LIMIT", 1 if "sleep" in script else 60)
    check_numpy_takes_over(small, monkeypatch, tmp_path, why)


@pytest.mark.parametrize("package", ["numba", "numpy"])
def test_a_missing_package_is_named(package: str, small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = compiling.find_spec
    monkeypatch.setattr(compiling, "find_spec", lambda name: None if name == package else find(name))
    check_numpy_takes_over(small, monkeypatch, tmp_path, f"{package} is not installed")


def test_any_error_of_the_system_on_the_way_is_one_warning(
    small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(24, "Too many open files", "somewhere")

    for owner, name in ((cache, "compiled"), (cache, "opened"), (cache, "digest"), (compiling, "find_spec")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            if name == "opened":
                patch.setattr(cache, "compiled", lambda *_: b"code")
            check_numpy_takes_over(small, patch, tmp_path, "Too many open files")


def test_numba_without_a_version_is_missing(small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def lost(package: str) -> str:
        raise cache.PackageNotFoundError(package)

    monkeypatch.setattr(cache, "version", lost)
    cache.digest.cache_clear()
    try:
        check_numpy_takes_over(small, monkeypatch, tmp_path, "numba is not installed")
    finally:
        cache.digest.cache_clear()


def check_numpy_takes_over(small: Path, monkeypatch: pytest.MonkeyPatch, folder: Path, why: str) -> None:
    monkeypatch.setenv("GEMMA_NP_CACHE", str(folder / "cache"))
    monkeypatch.setattr(cache, "_loaded", {})
    with pytest.warns(GemmaWarning) as caught:
        model = EmbeddingGemma(small, quantization="q8_0")
    (warning,) = caught
    assert why in str(warning.message)
    assert str(warning.message).endswith("; NumPy computes instead, more slowly")
    assert model.fast is None
    assert model.encode("a text").shape == (model.full_dim,)
    assert not (folder / "cache").exists() or list((folder / "cache").iterdir()) == []
