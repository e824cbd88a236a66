"""A GGUF file is the model that it was made from: settings, weights, token ids and vectors, bit for bit."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest
from gguf_blocks import BY_THE_BOOK, values_of
from gguf_files import Parts
from make_checkpoint import SMALL, make_checkpoint
from sentences import sentences

from gemma_np import CheckpointError, ConfigError, EmbeddingGemma, GemmaError, InputError, WeightsError
from gemma_np.cli.description import print_info
from gemma_np.config import Layer
from gemma_np.files.mapped import MappedFile
from gemma_np.gguf.export import export
from gemma_np.gguf.file import GGUF, NUMBERS, TYPES, open_gguf
from gemma_np.gguf.names import TRUNK_ALONE
from gemma_np.gguf.source import gguf_config, gguf_tensors, open_gguf_source
from gemma_np.opening import open_source
from gemma_np.weights.blocks import BlockTensor, PackedTensor

TEXTS = sentences()
KEY = "gemma-embedding"


def exported(folder: Path, path: Path, format: str | None = None, heads: bool = True) -> Path:
    with path.open("wb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the small tokenizer: its pieces merge in one way only
        export(open_source(folder), file, format, heads)
    return path


@pytest.fixture(scope="module")
def files(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`small` in every format, and in float32 without its heads."""
    folder = tmp_path_factory.mktemp("gguf")
    made = {format: exported(small, folder / f"{format}.gguf", format) for format in ("f32", "f16", "q8_0", "q4_0")}
    return made | {"headless": exported(small, folder / "headless.gguf", heads=False)}


@pytest.fixture
def file(files: dict[str, Path]) -> GGUF:
    return open_gguf(files["f32"])


def test_settings_are_those_of_the_checkpoint(small: Path, files: dict[str, Path]) -> None:
    ours, theirs = open_source(files["f32"]), open_source(small)
    assert replace(ours.config, bos=frozenset(), eos=frozenset()) == replace(
        theirs.config, bos=frozenset(), eos=frozenset()
    )
    assert (ours.modules, ours.full_dim) == (theirs.modules, theirs.full_dim)
    assert ours.max_seq_length == theirs.max_seq_length
    assert ours.quantization is None


def test_float32_tensors_are_those_of_the_checkpoint(small: Path, files: dict[str, Path]) -> None:
    ours, theirs = open_source(files["f32"]).tensors, open_source(small).tensors
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        one = np.float32(name.endswith("norm.weight"))
        np.testing.assert_array_equal(one + ours[name].float32(), one + tensor.float32(), err_msg=name)


@pytest.mark.parametrize("format", ["f32", "q8_0", "q4_0"])
def test_vectors_are_those_of_the_checkpoint_bit_for_bit(format: str, small: Path, files: dict[str, Path]) -> None:
    quantization = None if format == "f32" else format
    ours, theirs = EmbeddingGemma(files[format]), EmbeddingGemma(small, quantization=quantization)
    assert ours.quantization == quantization
    ids, _ = theirs.prepare(TEXTS)
    np.testing.assert_array_equal(ours.embed_ids(ids), theirs.embed_ids(ids))


def test_blocks_are_held_as_they_are_stored(files: dict[str, Path]) -> None:
    for format in ("q8_0", "q4_0"):
        source = open_source(files[format])
        down = EmbeddingGemma(files[format]).weights.layers[1].down_proj
        stored = source.tensors["layers.1.mlp.down_proj.weight"]
        assert isinstance(stored, BlockTensor)
        assert not isinstance(down, np.ndarray)
        for ours, theirs in zip(down.encoded(), stored.encoded(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_only_the_rows_of_the_table_that_are_needed_are_read(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = MappedFile.read

    def watched(self: MappedFile, offset: int, length: int) -> bytes:
        read.append(length)
        return original(self, offset, length)

    monkeypatch.setattr(MappedFile, "read", watched)
    for format in ("f32", "q8_0", "q4_0"):
        table = open_source(files[format]).tensors["embed_tokens.weight"]
        read.clear()
        assert not isinstance(table, PackedTensor)
        table.rows(np.array([7, 3, 7]))
        assert sum(read) == 2 * table.nbytes // table.shape[0]


# ---- other types ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """A model whose matrices have room for blocks of 256 values, in float32."""
    folder = tmp_path_factory.mktemp("wide")
    sizes = {"hidden_size": 256, "head_dim": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    config = {**SMALL, **sizes, "query_pre_attn_scalar": 128, "layer_types": SMALL["layer_types"][-2:]}
    heads = ((256, 256, False, "Identity"), (256, 256, False, "Identity"))
    return gguf_files.read(exported(make_checkpoint(folder / "model", config, dense=heads), folder / "f32.gguf", "f32"))


def decoded(parts: Parts) -> Parts:
    """With the same values in float32, computed one by one."""
    tensors = {}
    for name, tensor in parts.tensors.items():
        if tensor.kind in BY_THE_BOOK:
            blocks = np.frombuffer(tensor.data, np.uint8).reshape(-1, TYPES[NUMBERS[tensor.kind]][2])
            tensors[name] = gguf_files.Content("F32", tensor.shape, values_of(tensor.kind, blocks).tobytes())
    return parts.with_tensors(tensors)


def test_other_types_give_the_vectors_of_their_values(wide: Parts, tmp_path: Path) -> None:
    parts = gguf_files.in_types(wide, ["Q6_K", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"])
    ours = EmbeddingGemma(gguf_files.write(parts, tmp_path / "types.gguf"))
    plain = EmbeddingGemma(gguf_files.write(decoded(parts), tmp_path / "f32.gguf"))
    assert ours.quantization is None  # what only float32 holds brings the others to it
    np.testing.assert_array_equal(ours.encode(TEXTS[:8]), plain.encode(TEXTS[:8]))


def test_what_is_held_in_float32_may_be_rounded_as_it_is_loaded(wide: Parts, tmp_path: Path) -> None:
    parts = gguf_files.in_types(wide, ["Q6_K", "Q4_K", "Q5_1"])
    ours = EmbeddingGemma(gguf_files.write(parts, tmp_path / "types.gguf"), quantization="q8_0")
    plain = EmbeddingGemma(gguf_files.write(decoded(parts), tmp_path / "f32.gguf"), quantization="q8_0")
    np.testing.assert_array_equal(ours.encode(TEXTS[:8]), plain.encode(TEXTS[:8]))


def test_types_with_the_values_of_q8_0_are_held_in_it(
    wide: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = gguf_files.write(gguf_files.in_types(wide, ["Q5_0", "IQ4_NL"]), tmp_path / "types.gguf")
    ours = EmbeddingGemma(path)
    assert ours.quantization == "q8_0"
    with (tmp_path / "q8_0.gguf").open("wb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the small tokenizer
        export(open_source(path), file, None)
    assert {tensor.kind for tensor in gguf_files.read(tmp_path / "q8_0.gguf").tensors.values()} == {"F32", "Q8_0"}
    np.testing.assert_array_equal(ours.encode(TEXTS[:8]), EmbeddingGemma(tmp_path / "q8_0.gguf").encode(TEXTS[:8]))
    theirs = open_source(gguf_files.write(decoded(gguf_files.read(path)), tmp_path / "f32.gguf")).tensors
    for name, tensor in open_source(tmp_path / "q8_0.gguf").tensors.items():
        np.testing.assert_array_equal(tensor.float32(), theirs[name].float32(), err_msg=name)
    print_info(path)
    assert "held         IQ4_NL, Q5_0 as q8_0\n" in capsys.readouterr().out


def test_info_says_what_is_held_in_float32(wide: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = gguf_files.write(gguf_files.in_types(wide, ["Q6_K", "Q4_K", "Q5_0"]), tmp_path / "types.gguf")
    print_info(path)
    out = capsys.readouterr().out
    assert "held         Q4_K, Q5_0, Q6_K as float32\n" in out
    assert "MB of weights in float32" in out
    assert out.endswith("can run      yes\n")


def test_heads_that_only_float32_holds_are_rounded_with_a_rounded_trunk(wide: Parts, tmp_path: Path) -> None:
    parts = gguf_files.in_types(wide, ["Q5_0"])
    heads = {name: gguf_files.in_types(wide, ["Q6_K"]).tensors[name] for name in ("dense_2.weight", "dense_3.weight")}
    path = gguf_files.write(parts.with_tensors(heads), tmp_path / "heads.gguf")
    floats = {name: decoded(Parts({}, heads)).tensors[name] for name in heads}
    plain = gguf_files.write(parts.with_tensors(floats), tmp_path / "floats.gguf")
    ours = EmbeddingGemma(path)
    assert ours.quantization == "q8_0"
    np.testing.assert_array_equal(ours.encode(TEXTS[:5]), EmbeddingGemma(plain).encode(TEXTS[:5]))


def test_a_file_without_heads_is_refused_with_what_to_do(files: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"no Dense heads.*--dense.*--no-dense \(dense=False\)"):
        EmbeddingGemma(files["headless"])


def test_heads_may_come_from_the_checkpoint(small: Path, files: dict[str, Path]) -> None:
    model = EmbeddingGemma(files["headless"], dense=small)
    whole = EmbeddingGemma(small)
    np.testing.assert_array_equal(model.encode(TEXTS[:5]), whole.encode(TEXTS[:5]))
    assert model.prompts == whole.prompts
    with pytest.raises(InputError, match="has its own Dense heads"):
        EmbeddingGemma(files["f32"], dense=small)
    with pytest.raises(InputError, match="dense is for GGUF files"):
        EmbeddingGemma(small, dense=False)


def test_heads_may_come_from_a_quantised_folder(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    EmbeddingGemma(small).save_pretrained(folder, format="q8_0")
    model = EmbeddingGemma(exported(folder, tmp_path / "headless.gguf", heads=False), dense=folder)
    np.testing.assert_array_equal(model.encode(TEXTS[:5]), EmbeddingGemma(folder).encode(TEXTS[:5]))


def test_float_heads_of_a_rounded_trunk_are_rounded_to_q8_0(
    small: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    headless = exported(small, tmp_path / "headless.gguf", "q8_0", heads=False)
    model = EmbeddingGemma(headless, dense=small)
    np.testing.assert_array_equal(model.encode(TEXTS[:5]), EmbeddingGemma(files["q8_0"]).encode(TEXTS[:5]))


def test_without_heads_the_mean_has_length_1(small: Path, files: dict[str, Path]) -> None:
    model, whole = EmbeddingGemma(files["headless"], dense=False), EmbeddingGemma(small)
    vector, tokens = model.encode("a text"), whole.encode("a text", output_value="token_embeddings")
    mean = tokens.astype(np.float64).mean(axis=0)
    # the mean of a few tokens, and a length, whose 64 squares are off by sqrt(64) 2^-24 where errors are random, 5e-7
    np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(EmbeddingGemma(files["f32"], dense=False).encode("a text"), vector)


def test_a_pickle_opens_the_file_again(small: Path, files: dict[str, Path]) -> None:
    import pickle

    model = EmbeddingGemma(files["headless"], dense=small, truncate_dim=16)
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.encode("a text"), model.encode("a text"))


def changed(file: GGUF, **settings: Any) -> GGUF:
    """A file with other metadata; None takes an entry out. Two underscores are a dot."""
    named = {f"{KEY}.{key.replace('__', '.')}": value for key, value in settings.items()}
    metadata = {key: value for key, value in {**file.metadata, **named}.items() if value is not None}
    return replace(file, metadata=metadata)


def layers(file: GGUF, **settings: Any) -> tuple[Layer, ...]:
    return gguf_config(changed(file, **settings)).layers


def test_what_a_file_leaves_out_is_as_llama_cpp_reads_it(file: GGUF) -> None:
    plain = gguf_config(file).layers
    assert layers(file, rope__freq_base_swa=None) == plain  # 10,000
    assert layers(file, attention__sliding_window_pattern=None) == plain  # every sixth layer
    assert {layer.theta for layer in layers(file, rope__freq_base=None)} == {1e4}
    assert layers(file, attention__head_count=np.array([2] * 6, np.int32)) == plain
    assert layers(file, pooling_type=None, attention__causal=False, rope__scaling__factor=1.0) == plain
    assert layers(file, attention__head_count_kv=None)[0].K == 2
    assert layers(file, attention__key_length=None)[0].H == 32


def test_windows_and_patterns_are_read(file: GGUF) -> None:
    def radii(**settings: Any) -> list[int | None]:
        return [layer.radius for layer in layers(file, **settings)]

    assert radii(attention__sliding_window=512) == [256] * 5 + [None]
    assert radii(attention__sliding_window=257) == [256] * 5 + [None]  # an exclusive bound, see config.py
    assert radii(attention__sliding_window_pattern=2) == [16, None] * 3
    assert radii(attention__sliding_window_pattern=0) == [16] * 6
    assert radii(attention__sliding_window_pattern=np.array([True, False, False] * 2)) == [16, None, None] * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_count": None}, r"block_count is missing"),
        ({"block_count": 0}, r"block_count = 0, expected a positive integer"),
        ({"block_count": 10**6}, "expected at most 10000"),
        ({"embedding_length": "64"}, "embedding_length = '64'"),
        ({"attention__layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is missing"),
        ({"attention__layer_norm_rms_epsilon": float("nan")}, "layer_norm_rms_epsilon = nan"),
        ({"attention__sliding_window": None}, "sliding_window is missing"),
        ({"attention__sliding_window_pattern": np.array([True])}, "neither a number nor 6 truth values"),
        ({"attention__head_count_kv": 3}, "expected a multiple"),
        ({"attention__value_length": 16}, "value_length = 16 would change the result"),
        ({"attention__causal": True}, "causal = True would change the result"),
        ({"pooling_type": 2}, "pooling_type = 2 would change the result"),
        ({"rope__dimension_count": 16}, "dimension_count = 16"),
        ({"rope__scaling__type": "yarn"}, "'yarn'"),
        ({"rope__scaling__factor": 8.0}, "factor = 8.0"),
    ],
)
def test_settings_that_are_not_served_are_refused_by_name(settings: Any, message: str, file: GGUF) -> None:
    with pytest.raises(ConfigError, match=message):
        gguf_config(changed(file, **settings))


def test_another_architecture_is_refused(file: GGUF) -> None:
    with pytest.raises(ConfigError, match=r"general\.architecture = 'llama'; gemma_np runs EmbeddingGemma"):
        gguf_config(replace(file, metadata={**file.metadata, "general.architecture": "llama"}))


# ---- Ollama's way --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["f32", "q8_0"])
def test_ollama_s_own_file_is_the_same_model(format: str, files: dict[str, Path], tmp_path: Path) -> None:
    path = gguf_files.write(gguf_files.as_ollama(gguf_files.read(files[format])), tmp_path / "sha256-0123")
    ours, theirs = EmbeddingGemma(path), EmbeddingGemma(files[format])
    assert (ours.config, ours.modules) == (theirs.config, theirs.modules)
    np.testing.assert_array_equal(ours.encode(TEXTS), theirs.encode(TEXTS))


def test_older_names_of_ollama_s_keys_and_of_its_last_norm_are_read(files: dict[str, Path], tmp_path: Path) -> None:
    parts = gguf_files.as_ollama(gguf_files.read(files["f32"]))
    older = parts.renamed(lambda key: key, lambda name: name.replace("output_norm", "norm")).with_metadata(
        gemma3__rope__freq_base=None,
        gemma3__rope__global__freq_base=5e5,
        gemma3__rope__local__freq_base=2e4,
        gemma3__attention__layer_norm_rms_epsilon=None,
    )
    source = open_source(gguf_files.write(older, tmp_path / "older.gguf"))
    assert {(layer.theta, layer.eps) for layer in source.config.layers} == {(5e5, 1e-6), (2e4, 1e-6)}
    norm = open_source(files["f32"]).tensors["norm.weight"].float32()
    np.testing.assert_array_equal(source.tensors["norm.weight"].float32(), norm)
    bare = older.with_metadata(gemma3__rope__global__freq_base=None, gemma3__rope__local__freq_base=None)
    plain = open_source(files["f32"]).config
    assert open_source(gguf_files.write(bare, tmp_path / "bare.gguf")).config.layers == plain.layers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gemma3__attention__causal": True}, r"gemma3\.attention\.causal = True would change"),
        ({"gemma3__pooling_type": 2}, r"gemma3\.pooling_type = 2 would change"),
        ({"gemma3__rope__freq_scale": 0.125}, r"gemma3\.rope\.freq_scale = 0\.125 would change"),
        ({"gemma3__embedding_length": None}, r"gemma3\.embedding_length is missing"),
        ({"tokenizer__ggml__add_space_prefix": True}, r"add_space_prefix is true"),
    ],
)
def test_what_ollama_s_file_may_not_say_is_refused(
    changes: Any, message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    parts = gguf_files.as_ollama(gguf_files.read(files["f32"])).with_metadata(**changes)
    with pytest.raises(GemmaError, match=message):
        EmbeddingGemma(gguf_files.write(parts, tmp_path / "ollama.gguf"))


def test_a_language_model_of_gemma_3_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    parts = gguf_files.as_ollama(gguf_files.read(files["headless"])).with_metadata(gemma3__attention__causal=None)
    with pytest.raises(ConfigError, match="a Gemma 3 language model, no EmbeddingGemma encoder"):
        EmbeddingGemma(gguf_files.write(parts, tmp_path / "chat.gguf"), dense=False)


def test_texts_without_their_end_are_told(
    files: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    EmbeddingGemma(files["f32"])
    assert caplog.messages == []
    parts = gguf_files.read(files["f32"]).with_metadata(tokenizer__ggml__add_eos_token=None)
    EmbeddingGemma(gguf_files.write(parts, tmp_path / "endless.gguf"))
    assert ["do not end with <eos>" in message for message in caplog.messages] == [True]


def test_missing_and_misshapen_tensors_are_named(files: dict[str, Path], tmp_path: Path) -> None:
    for found, other, message in (
        (b"blk.5.ffn_up.weight", b"blk.5.ffn_xx.weight", r"blk\.5\.ffn_up\.weight is missing, expected \(96, 64\)"),
        (b"output_norm.weight", b"output_xxxx.weight", r"output_norm\.weight is missing"),
    ):
        path = tmp_path / "model.gguf"
        path.write_bytes(files["f32"].read_bytes().replace(found, other))
        with pytest.raises(WeightsError, match=message):
            open_gguf_source(path)
    file = open_gguf(files["f32"])
    wider = replace(gguf_config(file), F=97)
    with pytest.raises(WeightsError, match=r"has shape \(96, 64\), expected \(97, 64\)"):
        gguf_tensors(file, wider, TRUNK_ALONE)


def test_a_type_that_is_not_served_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    name = b"blk.0.attn_q.weight"
    content = bytearray(files["f32"].read_bytes())
    place = content.index(name) + len(name) + 4 + 16
    content[place] = 26  # I32, of the same size
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"blk\.0\.attn_q\.weight has the type I32; served are F32, .*in Q8_0, or"
    ):
        EmbeddingGemma(tmp_path / "model.gguf")


def test_half_a_file_is_an_error_of_ours(files: dict[str, Path], tmp_path: Path) -> None:
    content = files["q8_0"].read_bytes()
    for size in np.linspace(0, len(content) - 1, 25).astype(int):
        (tmp_path / "model.gguf").write_bytes(content[:size])
        with pytest.raises(GemmaError, match=r"model\.gguf"):
            EmbeddingGemma(tmp_path / "model.gguf")


def test_a_file_is_known_by_its_first_bytes_too(files: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(files["f32"], tmp_path / "sha256-0123")
    assert EmbeddingGemma(tmp_path / "sha256-0123").full_dim == 64
