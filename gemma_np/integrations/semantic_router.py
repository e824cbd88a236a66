"""semantic-router's encoder.

>>> from gemma_np.integrations.semantic_router import GemmaEncoder
>>> IndexedRouter(encoder=GemmaEncoder(model="nano"), routes=routes, confidence_threshold=0.3)
"""

import asyncio
from typing import Any

from gemma_np.embedder import EmbeddingGemma
from gemma_np.integrations.opened import Model, missing, opened

try:
    from pydantic import Field, PrivateAttr
    from semantic_router.encoders import DenseEncoder
except ImportError as error:
    raise missing("semantic_router", "semantic-router") from error


class GemmaEncoder(DenseEncoder):
    """Utterances -> vectors, both sides with the prompt for semantic similarity.

    model    a name, a folder, or an EmbeddingGemma; None: the default
    prompt_name, dim    the task, and the size of the vectors; None: the model's
    options  of EmbeddingGemma: {"quantization": "q8_0"}, ...
    """

    name: str = "gemma_np"
    type: str = "gemma_np"
    score_threshold: float | None = None
    prompt_name: str = "semantic_similarity"
    dim: int | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    _model: EmbeddingGemma = PrivateAttr()

    def __init__(self, model: Model = None, **fields: Any) -> None:
        opened_model, name, kept = opened(model, fields.pop("options", None) or {})
        super().__init__(**{"name": name, "options": kept, **fields})
        self._model = opened_model

    def __call__(self, docs: list[Any]) -> list[list[float]]:
        """[B] texts -> B vectors."""
        found: list[list[float]] = self._model.encode(docs, self.prompt_name, truncate_dim=self.dim).tolist()
        return found

    async def acall(self, docs: list[Any]) -> list[list[float]]:
        """As a call."""
        return await asyncio.to_thread(self, docs)
