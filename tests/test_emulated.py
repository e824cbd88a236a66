"""Kernels as Python, where an index out of bounds is an error: the plain column's meaning, instruction by instruction.

NUMBA_DISABLE_JIT is read when Numba is imported, so these tests live in a process of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.parametrize("file", ["test_kernels.py", "test_bpe.py", "emulated.py"])
def test_kernels_are_right_as_python_and_stay_within_their_arrays(file: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not gemmas", str(TESTS / file)]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    assert " passed" in done.stdout
