"""LangChain's `Embeddings`.

>>> from gemma_np.integrations.langchain import GemmaEmbeddings
>>> GemmaEmbeddings("nano").embed_query("Which planet is red?")  # a list of 384 floats
"""

import asyncio
from typing import Any

from gemma_np.integrations.opened import Model, missing, opened

try:
    from langchain_core.embeddings import Embeddings
except ImportError as error:
    raise missing("langchain", "langchain-core") from error


class GemmaEmbeddings(Embeddings):
    """Documents with the document prompt, queries with the query prompt.

    model    a name, a folder, or an EmbeddingGemma; None: the default
    dim      size of the vectors; None: the model's
    options  of EmbeddingGemma: quantization, threads, ...

    A pickle holds the model's name and options. Async calls run in a thread; the kernels leave the GIL free.
    """

    def __init__(self, model: Model = None, *, dim: int | None = None, **options: Any) -> None:
        self.model, self.name, _ = opened(model, options)
        self.dim = dim

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Texts -> vectors."""
        found: list[list[float]] = self.model.encode_document(texts, truncate_dim=self.dim).tolist()
        return found

    def embed_query(self, text: str) -> list[float]:
        """A query -> its vector."""
        found: list[float] = self.model.encode_query(text, truncate_dim=self.dim).tolist()
        return found

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As embed_documents."""
        return await asyncio.to_thread(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """As embed_query."""
        return await asyncio.to_thread(self.embed_query, text)
