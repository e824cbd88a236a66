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

import pytest
from gemma_np.kernels import cache
from gemma_np.kernels.choice import choose
from gemma_np.kernels.columns import BY_NAME
from test_objects import foreign

from gemma_np import EmbeddingGemma, GemmaWarning

ROOT = Path(__file__).parents[1]
FORMATS = ("q8_0",)
PROGRAM = "import sys; from gemma_np import EmbeddingGemma\nprint(EmbeddingGemma(sys.argv[1], quantization='q8_0')"
PROGRAM += ".encode('a text').tobytes().hex())"
IMPORTS = "import calendar, uuid, gemma_np.embedder, gemma_np.kernels.cache, gemma_np.kernels.engine"
COLUMN = choose().column

pytestmark = pytest.mark.skipif(COLUMN is None, reason="no kernels run on this machine")
Program = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small: Path) -> tuple[Path, str]:
    """A cache, and the vector that its kernels give: three processes find it empty, one of them compiles."""
    folder = tmp_path_factory.mktemp("cache") / "new" / "folder"
    running = [start(folder, small) for _ in range(3)]
    vectors, said = set(), ""
    for process in running:
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        assert err.count("are being compiled already; waiting") <= 1
        vectors.add(out)
        said += err
    assert said.count("gemma-np: compiling kernels for this machine") == 1
    assert said.count(f" s, kept in {folder}\n") == 1
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
    monkeypatch.setattr(cache, "compiled", lambda *_: foreign())
    cache._keep(cache.path_of(COLUMN, FORMATS), foreign())
    with pytest.warns(GemmaWarning, match="they are for another processor.*NumPy computes instead") as caught:
        model = EmbeddingGemma(small, quantization="q8_0")
    assert len(caught) == 1
    assert "kernels are compiled again" in caplog.text
    assert model.fast is None
    assert "another processor" in model.why_not
    assert model.encode("a text").shape == (model.full_dim,)


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
    monkeypatch.setattr(cache, "compiled", lambda *_: code)
    monkeypatch.setattr(cache, "_loaded", {})

    def load() -> str:
        assert COLUMN is not None
        entries = cache.kernels_for(COLUMN, FORMATS)
        assert callable(entries.forward)
        assert callable(entries.encode)
        return capsys.readouterr().err

    return load


@pytest.mark.skipif(sys.platform != "linux", reason="limits what a process may write")
def test_where_no_file_can_be_written_it_compiles_and_says_so(run: Program) -> None:
    """As in a container whose file system is read-only: there is not even a folder for temporary files."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); import tempfile\n"
    limit += "try: tempfile.gettempdir()\nexcept FileNotFoundError: pass\nelse: raise SystemExit('it can write')\n"
    err, folder = run(lambda path: path.unlink(), program=limit + PROGRAM)
    assert f"but not kept (File too large, in {folder}), so each process compiles" in err
    assert list(Path(folder).iterdir()) == []


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
