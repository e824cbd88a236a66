"""The fast path's edges: damaged weights are told by name, long and many texts pass, memory does not grow."""

import json
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from gemma_np.kernels.plan import MAX_TEXTS
from safetensors.numpy import load_file, save_file

from gemma_np import EmbeddingGemma, InputError, WeightsError
from gemma_np.fast import FIRST_TOKENS, PASS_TOKENS, split


@pytest.fixture(scope="module", params=[None, "q8_0"], ids=["f32", "q8_0"])
def model(request: pytest.FixtureRequest, small: Path) -> EmbeddingGemma:
    made = EmbeddingGemma(small, quantization=request.param)
    if made.fast is None:
        pytest.skip(made.why_not)
    return made


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("quantization", [None, "q8_0"])
@pytest.mark.parametrize("tensor", ["embed_tokens.weight", "layers.3.mlp.up_proj.weight", "layers.2.self_attn.q_norm"])
def test_a_weight_that_is_not_finite_is_named(
    value: float, quantization: str | None, tensor: str, writable: Path
) -> None:
    tensors = load_file(writable / "model.safetensors")
    name = next(name for name in tensors if tensor in name)
    tensors[name] = tensors[name].copy()
    tensors[name][..., 3] = value
    save_file(tensors, writable / "model.safetensors")
    with pytest.raises(WeightsError, match=tensor):
        EmbeddingGemma(writable, quantization=quantization).encode("a text")


def test_positions_that_a_config_only_claims_take_no_memory(writable: Path) -> None:
    path = writable / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": 2**20}))
    model = EmbeddingGemma(writable)
    if model.fast is None:
        pytest.skip(model.why_not)
    assert model.fast._engine.max_tokens == FIRST_TOKENS  # RoPE's table for a million would be 128 MB


@pytest.mark.parametrize("ids", [[], [-1], [10**6], [1.5]])
def test_ids_that_are_none_are_refused(ids: list[float], model: EmbeddingGemma) -> None:
    with pytest.raises(InputError, match=r"ids\[1\]"):
        model.embed_ids([np.array([5], np.int32), np.array(ids)])


def test_thousands_of_shortest_texts_are_one_text_each(model: EmbeddingGemma) -> None:
    one = model.embed_ids([np.array([5], np.int32)])
    many = model.embed_ids([np.array([5], np.int32)] * 5000)
    assert {row.tobytes() for row in many} == {one[0].tobytes()}
    empty = model.encode([""] * 1000, batch_size=1000)
    assert {row.tobytes() for row in empty} == {model.encode("").tobytes()}


def test_texts_longer_than_any_before_may_come_from_many_threads(model: EmbeddingGemma) -> None:
    assert model.fast is not None
    before = model.fast._engine.max_tokens
    lengths = [before + extra for extra in (1, 900, 400, before)]
    ids = [np.arange(5, 5 + length, dtype=np.int32) % 500 + 5 for length in lengths]
    found: dict[int, bytes] = {}

    def work(i: int) -> None:
        found[i] = model.embed_ids([ids[i]]).tobytes()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: model.embed_ids([ids[i]]).tobytes() for i in range(4)}
    assert model.fast._engine.max_tokens >= 2 * before


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's count of pages")
def test_memory_does_not_grow_with_texts_of_mixed_length(model: EmbeddingGemma) -> None:
    """After 300 texts 1,500 more add less than 8 MB, which Python and the allocator may keep; so did 10,000."""
    lengths = np.random.default_rng(0)

    def rss(texts: int) -> float:
        for _ in range(texts // 100):
            sizes = np.exp(lengths.uniform(0, np.log(512), 100)).astype(int)
            model.embed_ids([np.full(size, 5, np.int32) for size in sizes])
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

    model.embed_ids([np.full(512, 5, np.int32)] * 4)
    before = rss(300)
    assert rss(1_500) - before < 8


@pytest.mark.parametrize(
    "lengths", [[], [1], [5000], [1024, 1], [500, 500, 25], [500, 500, 24], [1] * 9000, [5000] * 3]
)
def test_passes_keep_every_text_in_order_and_end_at_1024_tokens(lengths: list[int]) -> None:
    ids = [np.zeros(n, np.int32) for n in lengths]
    parts = list(split(ids))
    assert [n for part in parts for n in lengths[part]] == lengths
    for part in parts:
        assert sum(lengths[part]) <= PASS_TOKENS or part.stop - part.start == 1
    for one, two in pairwise(parts):  # no pass could have taken one text more
        assert sum(lengths[one]) + lengths[two.start] > PASS_TOKENS or one.stop - one.start == MAX_TEXTS
