"""What is installed: a wheel that works from an empty folder, and an import that costs next to nothing."""

import ast
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from gemma_np.kernels.choice import choose

ROOT = Path(__file__).parents[1]


def run(python: Path | str, code: str, folder: Path) -> str:
    done = subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, as it would be for an upload."""
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run([sys.executable, "-m", "build", "-o", str(out), str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_the_package_and_nothing_beside_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"gemma_np"}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gemma_np").rglob("*.py")}
    kernels = {f"gemma_np/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    assert sources | kernels | {"gemma_np/py.typed", "gemma_np/MODEL.md"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_build_prints_no_warning(tmp_path: Path) -> None:
    """setuptools warns of what it will do with folders that look like packages: 40 lines of each installation."""
    clone = tmp_path / "clone"
    ignored = shutil.ignore_patterns(".git", "build", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, clone, ignore=ignored)
    quiet = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # warned of, too
    command = [sys.executable, "-m", "build", "--wheel", "-o", str(tmp_path), str(clone)]
    done = subprocess.run(command, capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.findall(r"(?i).*\bwarning\b.*|.*absent from.*", done.stdout + done.stderr)


def test_the_wheel_carries_nano_whole_and_stays_light(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    folder = ROOT / "gemma_np" / "nano"
    nano = {f"gemma_np/nano/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*") if path.is_file()}
    assert nano == {name for name in names if name.startswith("gemma_np/nano/")}
    assert wheel.stat().st_size <= 25e6


def test_the_wheel_works_in_a_fresh_environment_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    # our own wheel is installed alone; what it depends on is borrowed from this environment
    folders = [path for path in sys.path if path.endswith("site-packages")]
    target = next(environment.rglob("site-packages"))
    zipfile.ZipFile(wheel).extractall(target)
    (target / "borrowed.pth").write_text("\n".join(folders))
    empty = tmp_path / "empty"
    empty.mkdir()
    code = "import gemma_np, gemma_np.kernels.choice as k; print(gemma_np.__file__, k.__file__, k.choose().name)"
    package, kernels, column = run(python, code, empty).split()
    assert Path(package).is_relative_to(target)
    assert Path(kernels).is_relative_to(target)
    assert column == choose().name
    code = "from gemma_np import EmbeddingGemma; print(EmbeddingGemma().encode('hello').shape)"
    assert run(python, code, empty) == "(384,)"


def test_importing_loads_nothing_that_is_not_needed(tmp_path: Path) -> None:
    """The cost of `import gemma_np` is that of what it loads: not even NumPy."""
    heavy = run(
        sys.executable,
        "import sys; before = set(sys.modules); import gemma_np; gemma_np.__version__; "
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before} & "
        "{'numpy', 'numba', 'tokenizers', 'huggingface_hub', 'safetensors', 'tqdm', 'torch', 'threadpoolctl'}))",
        tmp_path,
    )
    assert heavy == "[]"


def test_the_engine_needs_neither_torch_nor_numba_to_start(tmp_path: Path, small: Path) -> None:
    loaded = run(
        sys.executable,
        f"import sys; from gemma_np import EmbeddingGemma; EmbeddingGemma({str(small)!r}).encode('hello'); "
        "print([name for name in ('torch', 'transformers', 'numba', 'scipy') if name in sys.modules])",
        tmp_path,
    )
    assert loaded == "[]"


def test_the_public_names_are_these_and_exist() -> None:
    """Whoever adds or takes away a name changes it here too, and says so in CHANGELOG.md."""
    import gemma_np

    assert gemma_np.__all__ == [
        "CheckpointError",
        "ConfigError",
        "EmbeddingGemma",
        "GemmaError",
        "GemmaWarning",
        "HubError",
        "InputError",
        "WeightsError",
        "__version__",
    ]
    assert gemma_np.__all__ == sorted(gemma_np.__all__)
    assert dir(gemma_np) == gemma_np.__all__
    for name in gemma_np.__all__:
        assert getattr(gemma_np, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        gemma_np.nonsense  # noqa: B018


def test_kernels_never_import_the_package_above_them() -> None:
    for path in (ROOT / "kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not [name.name for name in node.names if name.name.startswith("gemma_np")], path
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, path
                assert not (node.module or "").startswith("gemma_np"), path
