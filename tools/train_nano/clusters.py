"""Groups of texts that the teacher finds alike, so that a batch holds neighbours to tell apart."""

from pathlib import Path
from typing import Any

import numpy as np

SAMPLE = 100_000
STEPS = 8


def clusters(
    vectors: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any], count: int, seed: int, path: Path
) -> np.ndarray[Any, Any]:
    """The group of each vector, int64 [len(vectors)]: spherical k-means on a sample of the `wanted`, kept in `path`."""
    if not path.exists():
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.choice(wanted, min(SAMPLE, len(wanted)), replace=False))
        sample = vectors[rows].astype(np.float32)
        centres = sample[rng.choice(len(sample), min(count, len(sample)), replace=False)]
        for _ in range(STEPS):
            nearest = (sample @ centres.T).argmax(1)
            sums = np.zeros_like(centres)
            np.add.at(sums, nearest, sample)
            lengths = np.linalg.norm(sums, axis=1, keepdims=True)
            centres = np.where(lengths > 0, sums / np.maximum(lengths, 1e-9), centres)
        parts = [
            (vectors[at : at + SAMPLE].astype(np.float32) @ centres.T).argmax(1)
            for at in range(0, len(vectors), SAMPLE)
        ]
        np.save(path, np.concatenate(parts))
    return np.asarray(np.load(path))
