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
    from gemma_np.embedder import EmbeddingGemma as EmbeddingGemma
    from gemma_np.errors import CheckpointError as CheckpointError
    from gemma_np.errors import ConfigError as ConfigError
    from gemma_np.errors import GemmaError as GemmaError
    from gemma_np.errors import GemmaWarning as GemmaWarning
    from gemma_np.errors import HubError as HubError
    from gemma_np.errors import InputError as InputError
    from gemma_np.errors import WeightsError as WeightsError

__version__ = "0.1.0"
_MODULES = {  # where each public name is
    "CheckpointError": "gemma_np.errors",
    "ConfigError": "gemma_np.errors",
    "EmbeddingGemma": "gemma_np.embedder",
    "GemmaError": "gemma_np.errors",
    "GemmaWarning": "gemma_np.errors",
    "HubError": "gemma_np.errors",
    "InputError": "gemma_np.errors",
    "WeightsError": "gemma_np.errors",
}
__all__ = [*_MODULES, "__version__"]

# In a clone kernels/ is next to gemma_np/, in an installation inside it.
_clone = Path(__file__).parent.parent
if not (Path(__file__).parent / "kernels").is_dir() and (_clone / "pyproject.toml").is_file():
    __path__.append(str(_clone))


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'gemma_np' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
