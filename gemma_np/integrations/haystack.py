"""Haystack's two components: one for queries, one for documents.

>>> from gemma_np.integrations.haystack import GemmaDocumentEmbedder, GemmaTextEmbedder
>>> GemmaTextEmbedder("nano").run("Which planet is red?")["embedding"]
>>> Pipeline.loads(text, allowed_modules=["gemma_np.*"])  # from a file: Haystack asks which modules it may trust
>>> GemmaDocumentEmbedder("nano", title_field="title").run(documents)["documents"][0].embedding
"""

import asyncio
from dataclasses import replace
from typing import Any

from gemma_np.embedder import EmbeddingGemma
from gemma_np.integrations.opened import missing, opened

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ImportError as error:
    raise missing("haystack", "haystack-ai") from error


class _Embedder:
    """The model by its name, opened by `warm_up` or the first run, and what a pipeline's file holds of it."""

    def __init__(self, model: str, dim: int | None, options: dict[str, Any] | None) -> None:
        self.model, self.dim, self.options = model, dim, options or {}
        self._opened: EmbeddingGemma | None = None

    def warm_up(self) -> None:
        """Open the model."""
        if self._opened is None:
            self._opened, *_ = opened(self.model, self.options)

    def ready(self) -> EmbeddingGemma:
        """The model, open."""
        self.warm_up()
        assert self._opened is not None
        return self._opened

    def settings(self) -> dict[str, Any]:
        """What the constructor is to be given again."""
        return {"model": self.model, "dim": self.dim, "options": self.options}


@component
class GemmaTextEmbedder(_Embedder):
    """A query -> its vector, with the query prompt.

    model    a name or a folder
    dim      size of the vectors; None: the model's
    options  of EmbeddingGemma: {"quantization": "q8_0"}, ...
    """

    def __init__(self, model: str = "nano", dim: int | None = None, options: dict[str, Any] | None = None) -> None:
        _Embedder.__init__(self, model, dim, options)  # @component makes another class of this one, super() would fail

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """{"embedding": a list of floats}"""
        if not isinstance(text, str):
            raise TypeError("GemmaTextEmbedder takes one text; for documents there is GemmaDocumentEmbedder")
        return {"embedding": self.ready().encode_query(text, truncate_dim=self.dim).tolist()}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """As run."""
        return await asyncio.to_thread(self.run, text)

    def to_dict(self) -> dict[str, Any]:
        """For a pipeline's file."""
        return dict(default_to_dict(self, **self.settings()))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """From a pipeline's file."""
        return default_from_dict(cls, data)


@component
class GemmaDocumentEmbedder(_Embedder):
    """Documents -> the same with their vectors, with the document prompt.

    title_field           of a document's meta: its title, for the prompt `title: {title} | text: `; None: no titles
    meta_fields_to_embed  of a document's meta: put in front of its content, each in a line
    model, dim, options   as in GemmaTextEmbedder
    """

    def __init__(
        self,
        model: str = "nano",
        dim: int | None = None,
        options: dict[str, Any] | None = None,
        title_field: str | None = None,
        meta_fields_to_embed: list[str] | None = None,
    ) -> None:
        _Embedder.__init__(self, model, dim, options)  # @component makes another class of this one, super() would fail
        self.title_field, self.meta_fields_to_embed = title_field, meta_fields_to_embed or []

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """{"documents": the documents, with `embedding`}"""
        if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
            raise TypeError("GemmaDocumentEmbedder takes a list of Documents; for a query there is GemmaTextEmbedder")
        texts = ["\n".join([*self._fields(document), document.content or ""]) for document in documents]
        titles = None
        if self.title_field is not None:
            found = [document.meta.get(self.title_field) for document in documents]
            titles = [None if title is None else str(title) for title in found]
        vectors = self.ready().encode_document(texts, titles=titles, truncate_dim=self.dim)
        pairs = zip(documents, vectors, strict=True)
        return {"documents": [replace(document, embedding=row.tolist()) for document, row in pairs]}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """As run."""
        return await asyncio.to_thread(self.run, documents)

    def _fields(self, document: Document) -> list[str]:
        found = [document.meta.get(name) for name in self.meta_fields_to_embed]
        return [str(value) for value in found if value is not None]

    def to_dict(self) -> dict[str, Any]:
        """For a pipeline's file."""
        more = {"title_field": self.title_field, "meta_fields_to_embed": self.meta_fields_to_embed}
        return dict(default_to_dict(self, **self.settings(), **more))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """From a pipeline's file."""
        return default_from_dict(cls, data)
