"""The Arm column, compiled here for aarch64: it asks for the C library alone, multiplies bytes with sdot, and, where
qemu is at hand, test_kernels.py judges every one of its kernels."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import qemu
from exported import EXPORTED, undefined
from gemma_np.kernels import compiling
from gemma_np.kernels.columns import BY_NAME
from gemma_np.kernels.plan import FORMATS

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT.o and OUT.s. Numba's own code for this machine is thrown away; AVX2 lets it read float16."""
    out = tmp_path_factory.mktemp("arm") / "kernels"
    environment = compiling.environment(BY_NAME["neon"], FORMATS)
    if platform.machine() in BY_NAME["avx2"].machine:
        environment |= {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-P", str(TESTS / "arm.py"), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_its_object_is_for_arm_and_asks_for_the_c_library_alone(compiled: Path) -> None:
    code = compiled.with_suffix(".o").read_bytes()
    assert int.from_bytes(code[18:20], "little") == 183  # EM_AARCH64
    assert undefined(code) <= {"usleep", "memset", "memcpy", "memmove"}


def test_bytes_are_multiplied_by_the_dot_product_instruction(compiled: Path) -> None:
    """In both tiles: a group of 32 inputs of 16 outputs has 8 vectors, 4 registers each."""
    assembly = compiled.with_suffix(".s").read_text()
    for name in EXPORTED:
        assert f"\n{name}:\n" in assembly, name
    for name in ("tile_q8_0", "tile_q4_0"):
        body = assembly.split(f"\n{name}:\n")[1].split(".cfi_endproc")[0]
        assert len(re.findall(r"\tsdot\t", body)) >= 32, name


@pytest.mark.skipif(bool(qemu.missing()), reason=f"needs {' and '.join(qemu.missing())}, to run Arm's kernels")
def test_its_kernels_are_right_under_emulation(compiled: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / "test_kernels.py")]
    environment = {**os.environ, "GEMMA_NP_TEST_ARM": str(compiled.with_suffix(".o"))}
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    assert " passed" in done.stdout
