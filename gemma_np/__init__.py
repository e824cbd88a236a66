"""EmbeddingGemma in NumPy: text in, vectors out.

    from gemma_np import EmbeddingGemma
    model = EmbeddingGemma("path/to/checkpoint")
    vectors = model.encode(["a text", "another"])          # float32 [2, 768]

Importing the package costs next to nothing: each name is loaded when it is first used.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma_np.embedder import EmbeddingGemma
    from gemma_np.errors import CheckpointError, ConfigError, GemmaError, HubError, InputError, WeightsError

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "ConfigError",
    "EmbeddingGemma",
    "GemmaError",
    "HubError",
    "InputError",
    "WeightsError",
    "__version__",
]

# In a clone kernels/ lies beside gemma_np/, in an installation inside it.
_clone = Path(__file__).parent.parent
if not (Path(__file__).parent / "kernels").is_dir() and (_clone / "pyproject.toml").is_file():
    __path__.append(str(_clone))


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'gemma_np' has no attribute {name!r}")
    return getattr(import_module("gemma_np.embedder" if name == "EmbeddingGemma" else "gemma_np.errors"), name)


def __dir__() -> list[str]:
    return __all__
