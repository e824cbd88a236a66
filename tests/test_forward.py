"""The compiled forward pass against model.py, step by step, and against the float64 reference.

model.py is what the pass means. In float32 the two differ by the order of additions; with q8_0 and q4_0 the pass also
rounds activations to int8 before each product, which model.py does not.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from bounds import FLOAT32, ROUNDED_COSINE
from gemma_np.kernels.choice import choose
from gemma_np.kernels.plan import STEPS
from gemma_np.kernels.reference import ROUNDED, numbers_of
from make_checkpoint import make_checkpoint
from reference_float64 import Reference
from safetensors.numpy import save_file
from sentences import sentences
from zoo import TEXTS, ZOO

from gemma_np import EmbeddingGemma, model
from gemma_np.arrays import AnyArray, Float32, Int32
from gemma_np.fast import Fast
from gemma_np.files.safetensors import open_safetensors
from gemma_np.ops import attend, rope_table, rotate
from gemma_np.weights.loading import load_weights
from gemma_np.weights.names import trunk_shapes
from gemma_np.weights.packed import Packed
from gemma_np.weights.quantize import QUANTIZATIONS

FORMATS = (None, *QUANTIZATIONS)
Names = dict[str, AnyArray]

pytestmark = pytest.mark.skipif(choose().column is None, reason="GEMMA_NP_KERNELS asks for NumPy alone")


def random_ids(model: EmbeddingGemma, T: int, seed: int = 0) -> Int32:
    return np.random.default_rng([T, seed]).integers(4, model.config.V, T).astype(np.int32)


def on_numpy(source: str | Path, quantization: str | None = None) -> EmbeddingGemma:
    """The same model, on model.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMA_NP_KERNELS", "numpy")
        return EmbeddingGemma(source, quantization=quantization)


HEADS = [(2, 1, 32), (6, 2, 32), (4, 4, 64), (8, 1, 64), (1, 1, 64), (4, 2, 96)]  # N, K, H of each layer


def uneven(ours: EmbeddingGemma, folder: Path) -> EmbeddingGemma:
    """The same model with random layers of other shapes: no config.json says such a thing, a Config does."""
    assert ours.fast is not None
    layers = [dataclasses.replace(at, N=N, K=K, H=H) for at, (N, K, H) in zip(ours.config.layers, HEADS, strict=True)]
    ours.config, rng = dataclasses.replace(ours.config, layers=tuple(layers)), np.random.default_rng(0)
    tensors = {
        name: (rng.standard_normal(shape) * (shape[-1] ** -0.5 if len(shape) == 2 else 0.3)).astype(np.float32)
        for name, shape in trunk_shapes(ours.config).items()
    }
    save_file(tensors, folder / "model.safetensors")
    stored = {**ours.source.tensors, **open_safetensors(folder / "model.safetensors")}
    ours.weights = load_weights(stored, ours.config, ours.modules, ours.quantization, packed=True)
    kernels = ours.fast.compiled
    ours.fast = Fast(ours.fast.column, ours.weights, ours.config, ours.modules, ours.threads, lambda *_: kernels)
    return ours


@pytest.fixture(scope="module")
def opened(small: Path, nano_float: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., EmbeddingGemma]:
    """Models on kernels, opened once: `small`, nano in float32, or one whose layers differ in heads."""
    kept: dict[Any, EmbeddingGemma] = {}

    def open_(name: str = "small", quantization: str | None = None, threads: int | None = None) -> EmbeddingGemma:
        key = name, quantization, threads
        if key not in kept:
            source = nano_float if name == "nano" else small
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("gemma_np.pipeline.too_many", lambda _: None)  # more threads than cores, for their turns
                made = EmbeddingGemma(source, quantization=quantization, threads=threads)
            assert made.fast is not None, made.why_not
            kept[key] = uneven(made, tmp_path_factory.mktemp("uneven")) if name == "uneven" else made
        return kept[key]

    return open_


# ---- step by step


def expected_steps(ours: EmbeddingGemma, ids: Int32) -> Iterator[tuple[int, str, dict[str, AnyArray]]]:
    """For each layer and step what the pass must have left, by the names of plan.py, computed by model.py."""
    seen: Names = {}
    model.trunk(ids, ours.weights, ours.config, lambda name, array: seen.update({name: array.copy()}))
    x = seen["embed_tokens"]
    for i, (layer, w) in enumerate(zip(ours.config.layers, ours.weights.layers, strict=True)):
        at = {name.removeprefix(f"layers.{i}."): array for name, array in seen.items()}
        T, N, K, H = len(ids), layer.N, layer.K, layer.H
        rope = rope_table(T, H, layer.theta)
        q = rotate(at["self_attn.q_norm"], *rope) * np.float32(layer.scale)
        k, v = rotate(at["self_attn.k_norm"], *rope), at["self_attn.v_proj"].reshape(T, K, H)
        grouped = q.reshape(T, K, N // K, H).transpose(1, 2, 0, 3)
        a = attend(q, k, v, layer.radius)
        assert apart(model.linear(a, w.o_proj), at["self_attn.o_proj"]) <= STEP_TOLERANCE[None]
        qkv = [at[f"self_attn.{name}_proj"] for name in "qkv"]
        yield i, "input_layernorm", {"a": at["input_layernorm"], "x": x}
        yield i, "qkv", {"qkv": np.concatenate(qkv, axis=1)}
        yield (
            i,
            "rotated",
            {"q": grouped.transpose(0, 2, 1, 3), "keys": k.transpose(1, 0, 2), "values": v.transpose(1, 0, 2)},
        )
        yield i, "attention", {"a": a}
        yield i, "o_proj", {"h": at["self_attn.o_proj"]}
        x = x + at["post_attention_layernorm"]
        yield i, "pre_feedforward_layernorm", {"a": at["pre_feedforward_layernorm"], "x": x}
        yield i, "geglu", {"b": at["mlp.act_fn"] * at["mlp.up_proj"]}
        yield i, "down_proj", {"h": at["mlp.down_proj"]}
        x = seen[f"layers.{i}"]


def workspace_array(fast: Fast, name: str, expected: AnyArray, format: str) -> AnyArray:
    """An array that the pass left in its workspace, in the shape of the expected one.

    format  of the matrix that reads `a` or `b`: they hold what it takes, float32 or numbers rounded to int8
    """
    array = fast._engine.array(name)
    if name == "keys":
        K, T, H = expected.shape
        slots = -(-T // 64) * 64
        panels = array[: K * slots * H].reshape(K, slots // 32, H, 32)
        return panels.transpose(0, 1, 3, 2).reshape(K, slots, H)[:, :T]
    if name in ("a", "b"):
        if format == "f32":
            array = array.view(np.float32)
        else:
            groups = array[: expected.size // 32 * ROUNDED.itemsize].view(ROUNDED)
            array = numbers_of(groups) * groups["scale"][:, None]
    return array.reshape(-1)[: expected.size].reshape(expected.shape)


def apart(found: AnyArray, expected: AnyArray) -> float:
    """The root mean square of their difference, relative to the expected array's own."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def reader_of(step: str) -> str:
    """The matrix that reads what a step leaves in a or b."""
    return {"input_layernorm": "qkv", "attention": "o_proj", "pre_feedforward_layernorm": "gate_up"}.get(
        step, "down_proj"
    )


# See apart. float32: sums of 64 to 768 products in another order
# are off by some 1e-7 each, and a layer has seven in a row. Rounding to int8 is off by up to 1/254 of a group's largest
# value, 0.3 % to 1 % of the root mean square, each time; such errors add like independent ones along the layers.
STEP_TOLERANCE = {None: 1e-5, "q8_0": 0.06, "q4_0": 0.06, "mixed": 0.06}


@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("name", ["small", "nano", "uneven"])
def test_every_step_of_every_layer_is_model_py_s(
    opened: Callable[..., EmbeddingGemma], name: str, quantization: str | None
) -> None:
    """With a text longer than the window. The first step where the two part is named."""
    ours = opened(name, quantization)
    assert ours.fast is not None
    ids = random_ids(ours, 150)
    worst, where, seen = 0.0, "", set()
    try:
        for i, step, arrays in expected_steps(ours, ids):
            ours.fast._engine.stop_after(i, step)
            ours.fast.vectors([ids], [0])
            seen.add((i, step))
            for array, expected in arrays.items():
                matrix = getattr(ours.weights.layers[i], reader_of(step))
                found = workspace_array(ours.fast, array, expected, matrix.format)
                error = apart(found, expected)
                assert error <= STEP_TOLERANCE[quantization], f"layer {i}, {step}: {array} differs by {error:.1e}"
                worst, where = max((worst, where), (error, f"layer {i}, {step}: {array}"))
    finally:
        ours.fast._engine.stop_after()
    assert seen == {(i, step) for i in range(len(ours.config.layers)) for step in STEPS}
    print(f"{name}, {quantization}: at most {worst:.1e}, {where}")
    hidden = model.trunk(ids, ours.weights, ours.config)
    error = apart(ours.token_embeddings(ids), hidden)
    assert error <= STEP_TOLERANCE[quantization], f"norm differs by {error:.1e}"


# ---- float64


def exact_weights(ours: EmbeddingGemma) -> dict[str, Any]:
    """What the model's packed weights are, for Reference."""
    table = ours.weights.embed_tokens

    class Rows:
        """The embedding table; rows are rounded as they are read."""

        def __len__(self) -> int:
            return ours.config.V

        def __getitem__(self, ids: list[int]) -> Float32:
            return table.rows(np.array(ids))

    weights: dict[str, Any] = {"embed_tokens.weight": Rows(), "norm.weight": ours.weights.norm}
    for i, layer in enumerate(ours.weights.layers):
        for field, array in vars(layer).items():
            if field in ("qkv", "gate_up"):
                continue
            part = "self_attn." if field[:2] in ("q_", "k_", "v_", "o_") else "mlp." if field.endswith("proj") else ""
            weights[f"layers.{i}.{part}{field}.weight"] = array.dequantize() if isinstance(array, Packed) else array
    for name, head in ours.weights.dense.items():
        weight = head.weight
        weights[f"{name}/linear.weight"] = weight.dequantize() if isinstance(weight, Packed) else weight
    return weights


@pytest.mark.parametrize("name", ["small", "nano"])
def test_float32_is_as_close_to_the_truth_as_model_py(opened: Callable[..., EmbeddingGemma], name: str) -> None:
    """Both are float32 engines whose sums have different orders, so their errors are of one size: within a factor of 2
    for the median text, and of 4 for each, whose error is the largest of 64 or of 384. 200 texts; 40 of nano, whose
    float64 pass is slow."""
    ours = opened(name)
    judge, other = Reference(ours.folder), on_numpy(ours.folder)
    ratios, errors = [], []
    for seed in range(200 if name == "small" else 40):
        ids = random_ids(ours, 2 + seed % 60, seed)
        truth = judge.embed(ids.tolist())
        mine, model_py = (np.abs(engine.embed_ids([ids])[0] - truth).max() for engine in (ours, other))
        assert mine <= max(4 * model_py, FLOAT32), f"{len(ids)} tokens: {mine:.1e}, model.py {model_py:.1e}"
        ratios.append(mine / model_py)
        errors.append(mine)
    print(
        f"{name}: errors up to {max(errors):.1e}; to model.py's: median {median(ratios):.2f}, at most {max(ratios):.1f}"
    )
    assert median(ratios) <= 2


LENGTHS = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 66, 255, 256, 257, 258, 511, 512, 513, 514, 1000, 2048]


@pytest.mark.parametrize("quantization", [None, "q8_0", "q4_0"])
@pytest.mark.parametrize("T", LENGTHS)
def test_every_length_is_the_float64_reference_s(
    opened: Callable[..., EmbeddingGemma], T: int, quantization: str | None
) -> None:
    ours = opened("small", quantization)
    ids = random_ids(ours, T)
    truth = Reference(ours.folder, exact_weights(ours)).embed(ids.tolist())
    found = ours.embed_ids([ids])[0]
    if quantization is None:
        assert np.abs(found - truth).max() <= FLOAT32, f"off by {np.abs(found - truth).max():.1e}"
    else:
        assert found @ truth >= ROUNDED_COSINE, f"cosine {found @ truth:.6f}"


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_rounded_activations_cost_nano_next_to_nothing(
    opened: Callable[..., EmbeddingGemma], quantization: str
) -> None:
    """Judged by a float64 pass over the same rounded weights, on texts that people might write."""
    ours = opened("nano", quantization)
    judge = Reference(ours.folder, exact_weights(ours))
    cosines = []
    for text in sentences():
        ids = ours.prepare([text])[0][0]
        truth = judge.embed(ids.tolist())
        cosines.append(float(ours.embed_ids([ids])[0] @ truth))
    print(f"nano, {quantization}: cosine {min(cosines):.6f} at least, {median(cosines):.6f} in the middle")
    assert min(cosines) >= ROUNDED_COSINE, f"{sentences()[int(np.argmin(cosines))][:50]!r}: {min(cosines)}"


@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("T", [1, 16, 65, 300])
def test_layers_may_differ_in_heads(opened: Callable[..., EmbeddingGemma], T: int, quantization: str | None) -> None:
    ours = opened("uneven", quantization)
    ids = random_ids(ours, T)
    truth = Reference(ours.folder, exact_weights(ours)).embed(ids.tolist())
    found = ours.embed_ids([ids])[0]
    model_py = model.embed(ids, ours.weights, ours.config, ours.modules)
    assert np.abs(model_py - truth).max() <= FLOAT32, f"model.py is off by {np.abs(model_py - truth).max():.1e}"
    if quantization is None:
        assert np.abs(found - truth).max() <= FLOAT32, f"off by {np.abs(found - truth).max():.1e}"
    else:
        assert found @ truth >= ROUNDED_COSINE, f"cosine {found @ truth:.6f}"


# ---- the same bits


@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("name", ["small", "nano", "uneven"])
def test_a_text_has_the_same_bits_in_any_company_at_any_thread_count(
    opened: Callable[..., EmbeddingGemma], name: str, quantization: str | None
) -> None:
    ours = opened(name, quantization)
    texts = [random_ids(ours, T) for T in (1, 3, 16, 17, 40, 64, 65, 130, 257, 300)]
    alone = np.stack([ours.embed_ids([ids])[0] for ids in texts])
    assert np.isfinite(alone).all()
    for threads in (1, 2, 3, 5):
        engine = opened(name, quantization, threads)
        for order in (slice(None), slice(None, None, -1), slice(3, 8), slice(1, 2)):
            np.testing.assert_array_equal(engine.embed_ids(texts[order]), alone[order], f"{threads} threads")
    many = [texts[i % 4] for i in range(300)]  # more texts than a pass takes
    np.testing.assert_array_equal(ours.embed_ids(many), alone[np.arange(300) % 4])
    np.testing.assert_array_equal(ours.embed_ids(texts), alone, "the workspace remembers")


# ---- models of other shapes


@pytest.mark.parametrize("name", ["odd_sizes", "groups"])
def test_a_model_that_tiles_cannot_take_runs_on_numpy_and_says_why(name: str, tmp_path: Path) -> None:
    ours = EmbeddingGemma(ZOO[name].make(tmp_path / "checkpoint"))
    assert ours.fast is None
    assert "the tiles cannot take this model" in ours.why_not
    np.testing.assert_array_equal(ours.encode(TEXTS), on_numpy(ours.folder).encode(TEXTS))


SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no Dense": ({}, {"dense": ()}),
    "Tanh and bias behind a head": ({}, {"dense": ((64, 128, False, "Identity"), (128, 100, True, "Tanh"))}),
    "bias in front": ({}, {"dense": ((64, 128, True, "Identity"), (128, 64, False, "Identity"))}),
    "three heads": (
        {},
        {"dense": ((64, 192, False, "Identity"), (192, 64, False, "Identity"), (64, 128, False, "Identity"))},
    ),
    "the prompt left out": ({}, {"include_prompt": False}),
    "several key/value heads": ({"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32}, {}),
    "every head its own keys": ({"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32}, {}),
    "eight heads to one key": ({"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 64}, {}),
    "a wide head": ({"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 160}, {}),
    "a window of one neighbour": ({"sliding_window": 2}, {}),
    "one layer": ({"num_hidden_layers": 1, "layer_types": ["full_attention"]}, {}),
}


@pytest.mark.parametrize("quantization", [None, "q8_0", "q4_0"])
@pytest.mark.parametrize("name", SHAPES)
def test_other_shapes(name: str, quantization: str | None, tmp_path: Path) -> None:
    from make_checkpoint import SMALL

    settings, options = SHAPES[name]
    if quantization and any(outputs % 16 for _, outputs, *_ in options.get("dense", ())):
        options = {"dense": ((64, 128, False, "Identity"), (128, 112, True, "Tanh"))}
    ours = EmbeddingGemma(make_checkpoint(tmp_path / "m", {**SMALL, **settings}, **options), quantization=quantization)
    assert ours.fast is not None, ours.why_not
    judge = Reference(ours.folder, exact_weights(ours))
    texts = [random_ids(ours, T) for T in (1, 9, 40, 100)]
    skips = [0, 4, 7, 100]
    for ids, skip, found in zip(texts, skips, ours.embed_ids(texts, skips), strict=True):
        truth = judge.embed(ids.tolist(), skip)
        if quantization is None:
            error = np.abs(found - truth).max()
            assert error <= FLOAT32, f"{len(ids)} tokens: off by {error:.1e}"
        elif np.any(truth):
            cosine = found @ truth / np.linalg.norm(found) / np.linalg.norm(truth)
            assert cosine >= ROUNDED_COSINE, f"{len(ids)} tokens: cosine {cosine:.6f}"
        else:
            assert not np.any(found)  # all tokens were left out


def test_a_text_longer_than_the_models_positions(tmp_path: Path) -> None:
    """The workspace is made anew for it; what was embedded before is the same afterwards."""
    from make_checkpoint import SMALL

    ours = EmbeddingGemma(make_checkpoint(tmp_path / "m", {**SMALL, "max_position_embeddings": 128}))
    ids, short = random_ids(ours, 1500), random_ids(ours, 20)
    before = ours.embed_ids([short])
    assert np.abs(ours.embed_ids([ids])[0] - Reference(ours.folder).embed(ids.tolist())).max() <= FLOAT32
    np.testing.assert_array_equal(ours.embed_ids([short]), before)
    np.testing.assert_array_equal(ours.embed_ids([short, ids])[0], before[0])


def test_no_texts_are_no_vectors(opened: Callable[..., EmbeddingGemma]) -> None:
    ours = opened()
    assert ours.embed_ids([]).shape == (0, ours.full_dim)
    assert ours.encode([]).shape == (0, ours.full_dim)


def test_token_embeddings_are_the_trunk_s(opened: Callable[..., EmbeddingGemma]) -> None:
    """After the last norm, so not of length 1."""
    ours = opened()
    for T in (1, 17, 300):
        ids = random_ids(ours, T)
        expected = model.trunk(ids, ours.weights, ours.config)
        found = ours.token_embeddings(ids)
        assert found.shape == expected.shape
        assert apart(found, expected) <= STEP_TOLERANCE[None]


def test_a_step_that_is_wrong_would_be_seen(opened: Callable[..., EmbeddingGemma]) -> None:
    """One entry of a norm's weights, a hundredth off, shows at the first step behind it and not before."""
    ours = opened()
    assert ours.fast is not None
    layers = list(ours.weights.layers)
    changed = layers[2].q_norm.copy()
    changed[5] *= 1.5
    layers[2] = dataclasses.replace(layers[2], q_norm=changed)
    weights = dataclasses.replace(ours.weights, layers=tuple(layers))
    wrong = Fast(ours.fast.column, weights, ours.config, ours.modules, None, lambda *_: ours.fast.compiled)
    ids, parted = random_ids(ours, 40), []
    for i, step, arrays in expected_steps(ours, ids):
        wrong._engine.stop_after(i, step)
        wrong.vectors([ids], [0])
        for array, expected in arrays.items():
            if apart(workspace_array(wrong, array, expected, "f32"), expected) > STEP_TOLERANCE[None]:
                parted.append((i, step, array))
    assert parted[0] == (2, "rotated", "q")
