"""chonkie's embeddings, for its semantic chunkers.

>>> from chonkie import SemanticChunker
>>> from gemma_np.integrations.chonkie import GemmaEmbeddings
>>> SemanticChunker(embedding_model=GemmaEmbeddings("nano")).chunk(text)
"""

from collections.abc import Callable
from typing import Any

from gemma_np.arrays import Float32
from gemma_np.integrations.opened import Model, missing, opened

try:
    from chonkie.embeddings import BaseEmbeddings
except ImportError as error:
    raise missing("chonkie", "chonkie") from error


class GemmaEmbeddings(BaseEmbeddings):
    """Sentences -> vectors, with the prompt for semantic similarity.

    model    a name, a folder, or an EmbeddingGemma; None: the default
    prompt_name, dim    the task, and the size of the vectors; None: the model's
    options  of EmbeddingGemma: quantization, threads, ...
    """

    def __init__(
        self,
        model: Model = None,
        *,
        prompt_name: str = "semantic_similarity",
        dim: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.model, self.name, _ = opened(model, options)
        self.prompt_name, self.dim = prompt_name, dim

    def embed(self, text: str) -> Float32:
        """A text -> float32 [dim]."""
        found: Float32 = self.model.encode(text, self.prompt_name, truncate_dim=self.dim)
        return found

    def embed_batch(self, texts: list[str]) -> list[Float32]:
        """Texts -> their vectors, in one go."""
        return list(self.model.encode(texts, self.prompt_name, truncate_dim=self.dim))

    def similarity(self, u: Float32, v: Float32) -> Any:
        """The cosine."""
        return self.model.similarity(u, v)[0, 0]

    def count_tokens(self, text: str) -> int:
        """Of a text, without the prompt."""
        return len(self.model.tokenizer.encode(text, add_special_tokens=False))

    @property
    def dimension(self) -> int:
        """The size of the vectors."""
        return self.model.wanted(self.dim).width

    def get_tokenizer(self) -> Callable[[str], int]:
        """What counts tokens: chonkie knows other packages' tokenizers by their types, and takes any function."""
        return self.count_tokens

    def __repr__(self) -> str:
        return f"GemmaEmbeddings({self.name!r})"
