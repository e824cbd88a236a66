"""What all adaptors share: the model that a user hands over, and the word on a framework that is not there."""

import os
from typing import Any

from gemma_np.embedder import EmbeddingGemma
from gemma_np.hub import default_model

Model = str | os.PathLike[str] | EmbeddingGemma | None


def opened(model: Model, options: dict[str, Any]) -> tuple[EmbeddingGemma, str, dict[str, Any]]:
    """A model, and the name and options with which a copy elsewhere opens the same one: those of an open model, too.

    model    an EmbeddingGemma, or what its constructor takes; None: the default
    options  of the constructor; none with a model that is open
    """
    if isinstance(model, EmbeddingGemma):
        if options:
            raise TypeError(f"{', '.join(options)}: the model is open already; pass them where it is opened")
        _, (name, length, settings) = model.__reduce__()
        kept = {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in settings.items()}
        kept = {key: value for key, value in kept.items() if value is not None}
        return model, name, {**kept, "tokenizer_kwargs": {"model_max_length": length}}
    name = default_model() if model is None else model
    return EmbeddingGemma(name, **options), os.fspath(name), options


def missing(module: str, package: str) -> ImportError:
    """What to raise when a framework cannot be imported."""
    return ImportError(
        f"gemma_np.integrations.{module} needs {package}, which cannot be imported: pip install {package}"
    )
