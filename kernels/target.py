"""What this process compiles for, read from the environment once; compiling.py sets it.

GEMMA_NP_BUILD           the column's name
GEMMA_NP_BUILD_FORMATS   the formats of matrices, separated by spaces
NUMBA_DISABLE_JIT        1: nothing is compiled, kernels are plain Python
"""

import os

from numba.core import config

from .columns import BY_NAME
from .plan import FORMATS

EMULATED = bool(config.DISABLE_JIT)
COLUMN = BY_NAME["plain" if EMULATED else os.environ.get("GEMMA_NP_BUILD", "plain")]
_formats = os.environ.get("GEMMA_NP_BUILD_FORMATS", " ".join(FORMATS)).split()
WITH_F32, WITH_Q8_0, WITH_Q4_0 = (name in _formats for name in FORMATS)
