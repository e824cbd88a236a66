"""An opened model's embedding table, which is read in parts."""

from pathlib import Path

import numpy as np
import pytest

from gemma_np import EmbeddingGemma
from gemma_np.checkpoint import source as module
from gemma_np.opening import open_source


@pytest.mark.parametrize("format", [None, "q8_0", "q4_0"])
@pytest.mark.parametrize("rows", [1, 300, 1024, 4096])
def test_the_table_comes_in_parts_and_whole(
    rows: int, format: str | None, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TABLE_ROWS", rows)
    path = small
    if format is not None:
        path = tmp_path / "model"
        EmbeddingGemma(small).save_pretrained(path, format=format)
    source = open_source(path)
    V = source.config.V
    parts = list(source.table_parts())
    assert [i for part in parts for i in part] == list(range(V))
    assert max(map(len, parts)) == min(rows, V)
    arrays = list(source.table_rows())
    assert [len(array) for array in arrays] == [len(part) for part in parts]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(np.concatenate(arrays), source.table.rows(np.arange(V)))
