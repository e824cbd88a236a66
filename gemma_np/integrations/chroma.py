"""Chroma's embedding function. A collection keeps its name and settings, and opens it again by itself.

>>> import chromadb
>>> from gemma_np.integrations.chroma import GemmaFunction
>>> chromadb.PersistentClient("notes").create_collection("notes", embedding_function=GemmaFunction("nano"))

A program that opens the collection imports this module first: then Chroma knows the name.
"""

from typing import Any

from gemma_np.integrations.opened import Model, missing, opened

try:
    from chromadb.api.types import Documents, EmbeddingFunction, Embeddings
    from chromadb.utils.embedding_functions import register_embedding_function
except ImportError as error:
    raise missing("chroma", "chromadb") from error


@register_embedding_function
class GemmaFunction(EmbeddingFunction[Documents]):
    """Documents with the document prompt, queries with the query prompt.

    model    a name, a folder, or an EmbeddingGemma; None: the default
    dim      size of the vectors; None: the model's
    options  of EmbeddingGemma: {"quantization": "q8_0"}, ...
    """

    def __init__(self, model: Model = None, dim: int | None = None, options: dict[str, Any] | None = None) -> None:
        self.dim = dim
        self._model, self.model, self.options = opened(model, options or {})

    def __call__(self, input: Documents) -> Embeddings:
        """Documents -> vectors."""
        return list(self._model.encode_document(list(input), truncate_dim=self.dim))

    def embed_query(self, input: Documents) -> Embeddings:
        """Queries -> vectors."""
        return list(self._model.encode_query(list(input), truncate_dim=self.dim))

    @staticmethod
    def name() -> str:
        """By which a collection finds this class again."""
        return "gemma_np"

    def default_space(self) -> Any:
        """The distance."""
        return "cosine"

    def supported_spaces(self) -> Any:
        """The distances that mean something: vectors have length 1, so all do."""
        return ["cosine", "l2", "ip"]

    def get_config(self) -> dict[str, Any]:
        """What a collection keeps."""
        return {"model": self.model, "dim": self.dim, "options": self.options}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "GemmaFunction":
        """From what a collection has kept."""
        return GemmaFunction(**config)

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """ValueError for what no GemmaFunction has kept."""
        if unknown := set(config) - {"model", "dim", "options"}:
            raise ValueError(f"gemma_np's embedding function has no {', '.join(sorted(unknown))}")

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """ValueError for another model, size or option: the vectors that are there could not be compared. Chroma keeps
        the new setting before it asks."""
        for name in ("model", "dim", "options"):
            old, new = old_config.get(name), new_config.get(name, old_config.get(name))
            if new != old:
                raise ValueError(
                    f"{name} cannot change from {old!r} to {new!r}, since the collection's vectors stay as they are. "
                    "Chroma has kept the new setting already: modify the collection back, or make a new one"
                )
