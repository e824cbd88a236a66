"""A backend for BERTopic and KeyBERT, for whichever is installed.

>>> from bertopic import BERTopic
>>> from gemma_np.integrations.bertopic_keybert import GemmaBackend
>>> BERTopic(embedding_model=GemmaBackend("nano", prompt_name="clustering"))

Both refuse an EmbeddingGemma itself: they take no class but sentence-transformers' own and their BaseEmbedder.
"""

from importlib import import_module
from typing import Any

from gemma_np.arrays import AnyArray
from gemma_np.integrations.opened import Model, missing, opened


def _bases() -> tuple[type, ...]:
    """Each package looks for its own BaseEmbedder."""
    found = []
    for module in ("bertopic.backend", "keybert.backend"):
        try:
            found.append(import_module(module).BaseEmbedder)
        except ImportError:
            continue
    if not found:
        raise missing("bertopic_keybert", "bertopic") from None
    return tuple(found)


class GemmaBackend(*_bases()):  # type: ignore[misc]  # known when it runs
    """Documents and words -> vectors.

    model        a name, a folder, or an EmbeddingGemma; None: the default
    prompt_name  the task; both packages compare like with like, so there is one
    dim          size of the vectors; None: the model's
    options      of EmbeddingGemma: quantization, threads, ...
    """

    def __init__(
        self, model: Model = None, *, prompt_name: str | None = None, dim: int | None = None, **options: Any
    ) -> None:
        super().__init__()
        self.embedding_model, self.name, _ = opened(model, options)
        self.prompt_name, self.dim = prompt_name, dim

    def embed(self, documents: Any, verbose: bool = False) -> AnyArray:
        """[B] texts -> float32 [B, dim]."""
        found: AnyArray = self.embedding_model.encode(
            list(documents), self.prompt_name, truncate_dim=self.dim, show_progress_bar=verbose
        )
        return found
