"""Tensors for callers who have torch, and no torch for those who do not ask."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gemma_np import EmbeddingGemma, InputError

TEXTS = ["a cat", "two dogs", ""]


@pytest.fixture(scope="module")
def model(small: Path) -> EmbeddingGemma:
    return EmbeddingGemma(small)


@pytest.fixture
def torch(sentence_transformers: ModuleType) -> Any:
    import torch

    return torch


def test_torch_is_never_imported_unless_tensors_are_asked_for(small: Path) -> None:
    """Everything that needs none of it, in a process where an import of torch would fail loudly."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, *_):
        assert name.partition(".")[0] != "torch", "torch is imported"
sys.meta_path.insert(0, Refuse())
from gemma_np import EmbeddingGemma, InputError
model = EmbeddingGemma(sys.argv[1], device="cpu", model_kwargs={"torch_dtype": "float32"}).to("cpu").eval()
vectors = model.encode(["a", "b"], convert_to_numpy=True, convert_to_tensor=False, device="cpu")
model.similarity(vectors, list(vectors)), model.similarity_pairwise(vectors, vectors), model.tokenize("a")
model.encode("a", output_value=None), model.forward(model.tokenize(["a", "b c"])), str(model.device), str(model.dtype)
model.tokenizer(["a"], return_tensors="np"), model.encode("a", output_value="token_embeddings")
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(small)], check=True)


def test_without_torch_tensors_are_refused_before_anything_is_computed(
    model: EmbeddingGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for options in ({"convert_to_tensor": True}, {"convert_to_numpy": False}):
        with pytest.raises(InputError, match=r"needs torch, which cannot be imported: pip install torch"):
            model.encode(iter([3]), **options)  # type: ignore[arg-type]
    for call in (model.tokenize, model.tokenizer):
        with pytest.raises(InputError, match="needs torch"):
            call("a", return_tensors="pt")


def test_tensors_share_the_arrays_memory(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemma_np import tensors

    array = np.zeros(3, np.float32)
    tensors.form_of(True, True)(array)[1] = 5
    assert array[1] == 5


def test_encode_gives_what_is_asked_for(model: EmbeddingGemma, torch: Any) -> None:
    vectors = model.encode(TEXTS)
    tensor = model.encode(TEXTS, convert_to_tensor=True)
    assert (type(tensor), tensor.dtype) == (torch.Tensor, torch.float32)
    np.testing.assert_array_equal(tensor.numpy(), vectors)
    for listed in (
        model.encode(TEXTS, convert_to_numpy=False),
        model.encode_document(TEXTS, None, "", convert_to_numpy=False),
    ):
        assert [type(row) for row in listed] == [torch.Tensor] * 3
        np.testing.assert_array_equal(torch.stack(listed).numpy(), vectors)
    assert model.encode("a", convert_to_tensor=True).shape == model.encode("a", convert_to_numpy=False).shape == (64,)
    assert model.encode([], convert_to_tensor=True).shape == (0, 64)
    assert model.encode(TEXTS, precision="ubinary", convert_to_tensor=True).dtype == torch.uint8
    for options in ({"convert_to_tensor": True}, {"convert_to_numpy": False}):
        each = model.encode(TEXTS, output_value="token_embeddings", **options)  # type: ignore[arg-type]
        assert [type(one) for one in each] == [torch.Tensor] * 3
        assert type(model.encode(TEXTS, output_value=None, **options)[0]["input_ids"]) is torch.Tensor  # type: ignore[arg-type]


def test_similarity_has_the_form_of_its_vectors(model: EmbeddingGemma, torch: Any) -> None:
    vectors = model.encode(TEXTS)
    expected, pairs = model.similarity(vectors, vectors), model.similarity_pairwise(vectors, vectors)
    assert isinstance(expected, np.ndarray)
    tensor = torch.from_numpy(vectors)
    for one in (tensor, list(tensor), tuple(tensor), tensor.double(), tensor.bfloat16().float()):
        found = model.similarity(one, vectors)
        assert type(found) is torch.Tensor
        # bfloat16 has 8 bits: 2^-9 of each entry, and unit vectors' products are no further off than that
        np.testing.assert_allclose(found.numpy(), expected, atol=2**-8)
    assert torch.equal(model.similarity(vectors, tensor), torch.from_numpy(expected))
    assert torch.equal(model.similarity_pairwise(tensor, tensor), torch.from_numpy(pairs))
    assert model.similarity(tensor.half(), tensor.bfloat16()).dtype == torch.float32
    with pytest.raises(InputError, match=r"require a gradient.*detach"):
        model.similarity(tensor.requires_grad_(), vectors)


def test_tokenize_gives_tensors_too(model: EmbeddingGemma, torch: Any) -> None:
    found = model.tokenize(TEXTS, return_tensors="pt")
    assert {type(value) for value in found.values()} == {torch.Tensor}
    np.testing.assert_array_equal(found["input_ids"].numpy(), model.tokenize(TEXTS)["input_ids"])
    out = model.forward(found)
    assert type(out["sentence_embedding"]) is type(out["token_embeddings"]) is torch.Tensor
    np.testing.assert_array_equal(out["sentence_embedding"].numpy(), model.encode(TEXTS))
