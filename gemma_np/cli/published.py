"""What `gemma-np verify` checks: the outputs of EmbeddingGemma-300m that others have published.

Published by Google (the model card) and by users of the float32 model with sentence-transformers. A model of the same
shape with other weights, fine-tuned or synthetic, has other outputs: it is recognised, and told so.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gemma_np.arrays import Float32
from gemma_np.errors import GemmaError

if TYPE_CHECKING:
    from gemma_np.embedder import EmbeddingGemma

SHAPE = (262_144, 768, 1152, 24, 768)  # vocabulary, width, feed-forward, layers, dimensions

# The first entries of the embedding table's row 0 in the published weights, compared to bfloat16's precision.
ROW_0 = (0.0808246061, -0.0181673598, 0.0229515918, 0.0170709193, -0.099590227, -0.3650278449, 0.0094756298)

CARD_QUERY = "Which planet is known as the Red Planet?"
CARD_DOCUMENTS = (
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
)
CARD_SIMILARITIES = (0.3011, 0.6359, 0.4930, 0.4889)
HELLO_DOCUMENT = (-0.08181356, 0.0214127, 0.05120273, -0.03690156, -0.0254504)
HELLO_QUERY = (-0.22990295, 0.03311195, 0.04290345, -0.03558498, -0.01399477)

CARD_TOLERANCE = 2e-4  # the card prints 4 digits
VALUE_TOLERANCE = 1e-4  # float32 engines are up to 6e-5 from the float64 truth on weights with such outliers
COSINE_TOLERANCE = 1e-5

Row = tuple[str, str, str, bool]


def print_checks(model: "EmbeddingGemma", name: str, goldens: str | None) -> None:
    """Print a table of published against computed values; GemmaError if they differ, or cannot be compared."""
    if why := not_the_real_model(model):
        raise GemmaError(
            f"{name} is not the published EmbeddingGemma-300m: {why}; nothing was verified, because the published "
            "outputs hold for the published weights only"
        )
    rows = [*card_rows(model), *hello_rows(model), *(golden_rows(model, Path(goldens)) if goldens else [])]
    print(f"{'check':<44} {'published':>12} {'here':>12}")
    for check, published, here, good in rows:
        print(f"{check:<44} {published:>12} {here:>12}  {'ok' if good else 'DIFFERS'}")
    if not goldens:
        print("texts longer than the attention window: not checked; --goldens embedding_gemma_goldens.json does")
    agree = sum(row[3] for row in rows)
    if agree < len(rows):
        raise GemmaError(
            f"{name} does not reproduce the published outputs: {len(rows) - agree} of {len(rows)} checks differ; "
            "download it again, or report this"
        )
    print(f"{name}: reproduced, all {len(rows)} checks agree")


def not_the_real_model(model: "EmbeddingGemma") -> str | None:
    """What tells this model from the published one, or None."""
    config = model.config
    shape = (config.V, config.D, config.F, len(config.layers), model.full_dim)
    if shape != SHAPE:
        return "vocabulary, width, feed-forward, layers and dimensions are {}, {}, {}, {}, {}".format(*shape) + (
            ", not {}, {}, {}, {}, {}".format(*SHAPE)
        )
    row = model.source.table.rows(np.array([0]))[0, : len(ROW_0)]  # not as `quantization` rounds it
    if not np.allclose(row, ROW_0, rtol=2**-8, atol=0):
        return "it has the same shape, but other weights (synthetic or fine-tuned)"
    return None


def card_rows(model: "EmbeddingGemma") -> list[Row]:
    """The model card's example."""
    scores = model.similarity(model.encode_query(CARD_QUERY), model.encode_document(list(CARD_DOCUMENTS)))[0]
    rows = []
    for text, published, score in zip(CARD_DOCUMENTS, CARD_SIMILARITIES, scores, strict=True):
        good = bool(abs(published - score) <= CARD_TOLERANCE)
        rows.append((f"card: Red Planet, {text.split()[0].rstrip(',')}", f"{published:.4f}", f"{score:.4f}", good))
    return rows


def hello_rows(model: "EmbeddingGemma") -> list[Row]:
    """The first five values for "hello world", as a document and as a query."""
    rows = []
    for kind, published, vector in (
        ("document", HELLO_DOCUMENT, model.encode_document("hello world")),
        ("query", HELLO_QUERY, model.encode_query("hello world")),
    ):
        for i, value in enumerate(published):
            good = bool(abs(value - vector[i]) <= VALUE_TOLERANCE)
            rows.append((f"hello world as {kind}, entry {i}", f"{value:.6f}", f"{vector[i]:.6f}", good))
    return rows


def golden_rows(model: "EmbeddingGemma", path: Path) -> list[Row]:
    """Whole vectors. One text has over 2048 tokens: its vector shows an error in the window.

    The file holds lists of {"name": ..., "text": ..., "embedding": [...]}, named queries_768, documents_128 and so on.
    """
    rows = []
    try:
        for group, entries in json.loads(path.read_bytes()).items():
            kind, _, dim = group.partition("_")
            if kind not in ("queries", "documents"):
                continue
            encode = model.encode_query if kind == "queries" else model.encode_document
            for entry in entries:
                expected = np.array(entry["embedding"], dtype=np.float32)
                cosine = float(_unit(encode(entry["text"], truncate_dim=int(dim))) @ _unit(expected))
                rows.append((f"{group}: {entry['name']}", "cosine 1", f"{cosine:.7f}", 1 - cosine <= COSINE_TOLERANCE))
    except OSError as error:
        raise GemmaError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise GemmaError(f"{path} is no file of goldens: {type(error).__name__}: {error}") from None
    if not rows:
        raise GemmaError(f"{path} is no file of goldens: it has no queries_... or documents_...")
    return rows


def _unit(x: Float32) -> Float32:
    return x / np.linalg.norm(x)
