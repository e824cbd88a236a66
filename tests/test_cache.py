"""Compiled kernels and their cache, as a user's program meets them: what is compiled when, kept where, said how.

Programs run in processes of their own, with an empty cache each unless a test brings one. To compile takes seconds, so
it is done once here (`made`) and its object is copied; tests that compile on purpose say so.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import pytest
from gemma_np.kernels import BY_NAME, cache
from gemma_np.kernels.plan import ENCODE, FORWARD

from gemma_np import EmbeddingGemma, GemmaWarning, kernels

ROOT = Path(__file__).parents[1]
FORMATS = ("q8_0",)
PROGRAM = "import sys; from gemma_np import EmbeddingGemma\nprint(EmbeddingGemma(sys.argv[1], quantization='q8_0')"
PROGRAM += ".encode('a text').tobytes().hex())"
IMPORTS = "import calendar, uuid, gemma_np.embedder, gemma_np.kernels.cache, gemma_np.kernels.engine"
COLUMN = kernels.choose().column

pytestmark = pytest.mark.skipif(COLUMN is None, reason="no kernels run on this machine")
Program = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small: Path) -> tuple[Path, str]:
    """A cache, and the vector that its kernels give: three processes find it empty and compile at once."""
    folder = tmp_path_factory.mktemp("cache") / "new" / "folder"
    running = [start(folder, small) for _ in range(3)]
    vectors = set()
    for process in running:
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        assert err.count("gemma-np: compiling kernels for this machine") == 1
        assert err.count(f" s, kept in {folder}\n") == 1
        assert err.count("\n") == 2
        vectors.add(out)
    assert len(vectors) == 1
    return folder, vectors.pop()


def start(folder: Path | None, small: Path, program: str = PROGRAM, **settings: Any) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA", "GEMMA", "XDG"))}
    environment |= {"PYTHONPATH": str(ROOT)} | settings.pop("environment", {})
    if folder is not None:
        environment["GEMMA_NP_CACHE"] = str(folder)
    command = [sys.executable, "-c", program, str(small)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, **settings)


@pytest.fixture
def run(made: tuple[Path, str], small: Path, tmp_path: Path) -> Program:
    """Runs PROGRAM on a copy of the cache, which `change` may spoil, and checks its vector: what it says on stderr."""

    def run(change: Callable[[Path], object] = lambda path: None, **settings: Any) -> tuple[str, str]:
        folder = Path(shutil.copytree(made[0], tmp_path / "cache", dirs_exist_ok=True))
        change(next(folder.glob("*.o")))
        process = start(folder, small, **settings)
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        assert out == made[1]
        return err, str(folder)

    return run


def test_processes_that_compile_at_once_leave_one_object_and_nothing_else(made: tuple[Path, str]) -> None:
    (file,) = made[0].iterdir()
    assert COLUMN is not None
    assert file.name == f"{COLUMN.name}-q8_0-{cache.digest()}.o"
    assert made[0].stat().st_mode & 0o777 == 0o700


def test_the_next_process_compiles_nothing(run: Program) -> None:
    assert run()[0] == ""


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def exchange(path: Path) -> None:
    """Another column's object under this one's name: it is whole, and would end in an illegal instruction."""
    other = path.with_name("other-" + path.name)
    code = path.read_bytes().partition(b"\n")[2]
    cache._keep(other, code)
    other.rename(path)


@pytest.mark.parametrize(
    "change",
    [
        spoil,
        exchange,
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(os.urandom(2000)),
    ],
    ids=["one bit", "another's", "truncated", "empty", "noise"],
)
def test_a_damaged_file_is_not_used(change: Callable[[Path], object], made: tuple[Path, str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made[0], tmp_path / "cache"))
    path = next(folder.glob("*.o"))
    assert cache._read(path) == made[0].joinpath(path.name).read_bytes().partition(b"\n")[2]
    change(path)
    assert cache._read(path) is None


def test_a_damaged_file_is_compiled_again(run: Program, made: tuple[Path, str]) -> None:
    err, folder = run(spoil)
    assert "is damaged; kernels are compiled again" in err
    assert f" s, kept in {folder}\n" in err
    assert [path.name for path in Path(folder).iterdir()] == [path.name for path in made[0].iterdir()]
    assert run()[0] == ""


def test_an_object_for_another_processor_is_compiled_again(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert COLUMN is not None
    monkeypatch.setenv("GEMMA_NP_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "_loaded", {})
    monkeypatch.setattr(cache, "_compile", lambda *_: foreign())
    cache._keep(cache.path_of(COLUMN, FORMATS), foreign())
    with pytest.warns(GemmaWarning, match="they are for another processor.*NumPy computes instead") as caught:
        model = EmbeddingGemma(small, quantization="q8_0")
    assert len(caught) == 1
    assert "kernels are compiled again" in caplog.text
    assert model.fast is None
    assert "another processor" in model.why_not
    assert model.encode("a text").shape == (model.full_dim,)


def foreign() -> bytes:
    """An object with the right entries for a processor that this one is not."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple = "aarch64-linux-gnu" if COLUMN is None or "aarch64" not in COLUMN.machine else "x86_64-linux-gnu"
    text = f'target triple="{triple}"\ndefine void @{FORWARD}(i64 %a, i64 %b) {{ ret void }}'
    text += f"\ndefine void @{ENCODE}(i64 %a) {{ ret void }}"
    code: bytes = llvm.Target.from_triple(triple).create_target_machine().emit_object(llvm.parse_assembly(text))
    return code


def test_the_name_tells_column_formats_source_and_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def name(column: str = "avx2", formats: tuple[str, ...] = FORMATS) -> str:
        cache.digest.cache_clear()
        return cache.path_of(BY_NAME[column], formats).name

    names = [name(), name("plain"), name(formats=("f32",)), name(formats=("q4_0", "q8_0"))]
    source = Path(shutil.copytree(Path(cache.__file__).parent, tmp_path / "kernels"))
    monkeypatch.setattr(cache, "__file__", str(source / "cache.py"))
    assert name() == names[0]
    (source / "rows.py").write_text((source / "rows.py").read_text() + "\n")
    names.append(name())
    for owner, attribute in ((cache, "_version"), (cache.platform, "machine"), (cache.platform, "system")):
        monkeypatch.setattr(owner, attribute, lambda *_: "another")
        names.append(name())
    monkeypatch.undo()
    cache.digest.cache_clear()
    assert len(set(names)) == len(names)


# ---- where it is kept


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"GEMMA_NP_CACHE": "/a/b", "XDG_CACHE_HOME": "/x"}, "/a/b"),
        ({"GEMMA_NP_CACHE": "~/b"}, "/home/me/b"),
        ({"GEMMA_NP_CACHE": "", "XDG_CACHE_HOME": "/x"}, "/x/gemma_np"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/gemma_np"),
        ({}, "/home/me/.cache/gemma_np"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="the folders of Linux")
def test_the_folder_is_the_systems(environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GEMMA_NP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    assert cache.folder() == Path(expected)


@pytest.fixture
def as_if_compiled(
    made: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[], str]:
    """Loads kernels in this process, where compiling costs nothing: what is said."""
    code = next(made[0].glob("*.o")).read_bytes().partition(b"\n")[2]
    monkeypatch.setattr(cache, "_compile", lambda *_: code)
    monkeypatch.setattr(cache, "_loaded", {})

    def load() -> str:
        assert COLUMN is not None
        entries = cache.load(COLUMN, FORMATS)
        assert callable(entries.forward)
        assert callable(entries.encode)
        return capsys.readouterr().err

    return load


def test_without_a_home_it_compiles_and_says_so(
    as_if_compiled: Callable[[], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("GEMMA_NP_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it gives where the user has no entry either
    monkeypatch.chdir(tmp_path)
    assert "but not kept (there is no home directory: ~/.cache" in as_if_compiled()
    assert list(tmp_path.iterdir()) == []  # no folder named ~


@pytest.mark.parametrize("where", ["/proc/nowhere", "/dev/null/cache"])
@pytest.mark.skipif(sys.platform != "linux", reason="folders that nobody can write, not even root")
def test_a_folder_that_cannot_be_written_is_named(
    where: str, as_if_compiled: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMMA_NP_CACHE", where)
    err = as_if_compiled()
    assert "but not kept (N" in err
    assert where in err
    assert "GEMMA_NP_CACHE names another folder" in err


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="this system's files have no owners")
def test_a_folder_that_others_can_change_is_neither_read_nor_written(
    as_if_compiled: Callable[[], str],
    made: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(made[0], tmp_path / "cache"))
    monkeypatch.setenv("GEMMA_NP_CACHE", str(folder))
    assert as_if_compiled() == ""
    for spoilt, mode in ((folder, 0o777), (next(folder.glob("*.o")), 0o666)):
        before = spoilt.stat().st_mode
        spoilt.chmod(mode)
        cache._loaded.clear()
        caplog.clear()
        err = as_if_compiled()
        assert f"{spoilt} is not used: other users may change it" in caplog.text
        assert ("but not kept (other users may change it" in err) == (spoilt == folder)
        spoilt.chmod(before)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="this system's files have no owners")
def test_another_users_files_are_foreign_and_roots_are_not(tmp_path: Path) -> None:
    def status(owner: int, mode: int) -> os.stat_result:
        return os.stat_result((mode, 0, 0, 0, owner, 0, 0, 0, 0, 0))

    for owner in (0, os.getuid()):
        for mode in (0o100644, 0o040755, 0o040775, 0o041777):  # the last is /tmp's: there each may change his own
            cache._check_owner(tmp_path, status(owner, mode))
    for owner, mode in ((54321, 0o100644), (54321, 0o040700), (0, 0o100664), (0, 0o100646), (0, 0o040777)):
        with pytest.raises(PermissionError):
            cache._check_owner(tmp_path, status(owner, mode))


def test_without_stderr_nothing_is_said_on_stdout(
    as_if_compiled: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("GEMMA_NP_CACHE", str(tmp_path))
    with open(os.devnull, "w") as closed:
        pass
    for stderr in (None, closed):
        monkeypatch.setattr(sys, "stderr", stderr)
        cache._loaded.clear()
        as_if_compiled()
    assert capsys.readouterr().out == ""


# ---- the compiler's process


def test_the_users_settings_and_modules_do_not_reach_the_compiler(
    run: Program, tmp_path: Path, made: tuple[Path, str]
) -> None:
    """A working folder full of modules with the names of others, and the settings of somebody who debugs Numba."""
    here = tmp_path / "here"
    for name in ("kernels", "build", "tests"):
        (here / name).mkdir(parents=True)
        (here / name / "__init__.py").write_text("raise SystemExit('the wrong module')")
    for name in ("types", "statistics", "calendar", "uuid", "llvmlite", "colorsys", "webbrowser"):
        (here / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    (here / ".numba_config.yaml").write_text("disable_jit: 1\n")
    settings = {
        "NUMBA_DISABLE_JIT": "1",
        "NUMBA_CPU_NAME": "nonsense",
        "NUMBA_OPT": "nonsense",
        "PYTHONWARNINGS": "error",
    }
    program = f"import sys; sys.path.remove(''); {IMPORTS}; sys.path.insert(0, '')\n{PROGRAM}"
    err, folder = run(lambda path: path.unlink(), program=program, cwd=here, environment=settings)
    assert "kept in" in err
    (file,) = Path(folder).iterdir()
    assert file.read_bytes() == next(made[0].glob("*.o")).read_bytes()


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
    assert Path(cache._python()).name.startswith("python3.")


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
    monkeypatch.setattr(cache, "TIME_LIMIT", 1 if "sleep" in script else 60)
    check_numpy_takes_over(small, monkeypatch, tmp_path, why)


@pytest.mark.parametrize("package", ["numba", "numpy"])
def test_a_missing_package_is_named(package: str, small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = cache.find_spec
    monkeypatch.setattr(cache, "find_spec", lambda name: None if name == package else find(name))
    check_numpy_takes_over(small, monkeypatch, tmp_path, f"{package} is not installed")


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
    assert not (folder / "cache").exists()


# ---- which column


def test_a_column_is_forced_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("plain", " Plain "):
        monkeypatch.setenv("GEMMA_NP_KERNELS", name)
        assert kernels.choose().column is BY_NAME["plain"]
    monkeypatch.setenv("GEMMA_NP_KERNELS", "numpy")
    assert kernels.choose() == kernels.Choice(None, "GEMMA_NP_KERNELS asks for it")
    monkeypatch.setenv("GEMMA_NP_KERNELS", "")
    assert kernels.choose().column is COLUMN


@pytest.mark.parametrize(("wish", "why"), [("avx3", "there is no such column"), ("other", "this processor lacks ")])
def test_a_column_that_cannot_run_is_one_warning_with_the_choices(
    wish: str, why: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert COLUMN is not None
    impossible = "neon" if COLUMN.name != "neon" else "avx2"
    monkeypatch.setenv("GEMMA_NP_KERNELS", impossible if wish == "other" else wish)
    with pytest.warns(GemmaWarning, match=why) as caught:
        model = EmbeddingGemma(small, quantization="q8_0")
    (warning,) = caught
    assert f"expected one of {COLUMN.name}, " in str(warning.message)
    assert str(warning.message).endswith("plain, numpy")
    assert model.column is COLUMN


def test_without_llvmlite_numpy_computes(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    choice = kernels.choose()
    assert choice.column is None
    assert "llvmlite, which loads compiled kernels, cannot be imported" in choice.reason
    assert EmbeddingGemma(small, quantization="q8_0").encode("a text").shape == (64,)
