"""LlamaIndex's `BaseEmbedding`.

>>> from llama_index.core import Settings
>>> from gemma_np.integrations.llama_index import GemmaEmbedding
>>> Settings.embed_model = GemmaEmbedding("nano")
"""

import asyncio
from typing import Any

from gemma_np.embedder import EmbeddingGemma
from gemma_np.integrations.opened import Model, missing, opened

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import Field, PrivateAttr
except ImportError as error:
    raise missing("llama_index", "llama-index-core") from error


class GemmaEmbedding(BaseEmbedding):
    """Texts with the document prompt, queries with the query prompt.

    model_name  a name, a folder, or an EmbeddingGemma; None: the default
    dim         size of the vectors; None: the model's
    options     of EmbeddingGemma: {"quantization": "q8_0"}, ...

    `to_dict` and `from_dict` keep the name and the options.
    """

    dim: int | None = Field(default=None, description="size of the vectors")
    options: dict[str, Any] = Field(default_factory=dict, description="keywords of EmbeddingGemma")
    _model: EmbeddingGemma = PrivateAttr()

    def __init__(self, model_name: Model = None, *, options: dict[str, Any] | None = None, **fields: Any) -> None:
        model, name, kept = opened(model_name, options or {})
        super().__init__(model_name=name, options=kept, **fields)
        self._model = model

    @classmethod
    def class_name(cls) -> str:
        """The name in what `to_dict` gives."""
        return "GemmaEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        found: list[float] = self._model.encode_query(query, truncate_dim=self.dim).tolist()
        return found

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        found: list[list[float]] = self._model.encode_document(texts, truncate_dim=self.dim).tolist()
        return found

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
