"""modules.json and the files around it, as sentence-transformers has written them over the years."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import CheckpointError, ConfigError
from gemma_np.checkpoint.defaults import Defaults, read_defaults, read_max_seq_length
from gemma_np.config import Config, Layer
from gemma_np.modules import Dense, Modules, Normalize, check_widths, resolve_modules

CONFIG = Config(V=100, D=768, F=1152, max_positions=2048, layers=(Layer(256, 1e4, 3, 1, 256, 1 / 16, 1e-6),))
IDENTITY = "torch.nn.modules.linear.Identity"
OLD = {
    "Transformer": "sentence_transformers.models.Transformer",
    "Pooling": "sentence_transformers.models.Pooling",
    "Dense": "sentence_transformers.models.Dense",
    "Normalize": "sentence_transformers.models.Normalize",
}
NEW = {  # sentence-transformers 6.2
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}
OLD_POOLING = {
    "word_embedding_dimension": 768,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
    "pooling_mode_weightedmean_tokens": False,
    "pooling_mode_lasttoken": False,
    "include_prompt": True,
}
NEW_POOLING = {"embedding_dimension": 768, "pooling_mode": "mean", "include_prompt": True}
OLD_DENSE = {"in_features": 768, "out_features": 3072, "bias": False, "activation_function": IDENTITY}
ROUTE = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
ABSENT = object()


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def chain(*modules: tuple[str, str], types: dict[str, str] = OLD) -> list[dict[str, object]]:
    """modules.json with these (kind, path)."""
    return [
        {"idx": i, "name": str(i), "path": path, "type": types.get(kind, kind)}
        for i, (kind, path) in enumerate(modules)
    ]


FULL = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Dense", "3_Dense"), ("Normalize", "4"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """EmbeddingGemma's module files as they were published; tests change single ones."""
    write(tmp_path / "modules.json", chain(*FULL))
    write(tmp_path / "1_Pooling/config.json", OLD_POOLING)
    write(tmp_path / "2_Dense/config.json", OLD_DENSE)
    write(tmp_path / "3_Dense/config.json", {**OLD_DENSE, "in_features": 3072, "out_features": 768})
    return tmp_path


Dense2 = Callable[..., Dense]


@pytest.fixture
def dense(folder: Path) -> Dense2:
    """2_Dense with some keys of its config changed, read."""

    def write_and_read(**changes: Any) -> Dense:
        settings = {key: value for key, value in {**OLD_DENSE, **changes}.items() if value is not ABSENT}
        write(folder / "2_Dense/config.json", settings)
        head = resolve_modules(folder).heads[0]
        assert isinstance(head, Dense)
        return head

    return write_and_read


EXPECTED = Modules(
    trunk="",
    pooling="1_Pooling",
    include_prompt=True,
    heads=(
        Dense("2_Dense", 768, 3072, False, "Identity"),
        Dense("3_Dense", 3072, 768, False, "Identity"),
        Normalize("4"),
    ),
)


# ---- both generations --------------------------------------------------------------------------------------------


def test_the_published_files_give_the_whole_chain(folder: Path) -> None:
    modules = resolve_modules(folder)
    assert modules == EXPECTED
    assert modules.normalizes
    assert check_widths(CONFIG, modules, folder) == 768


def test_the_files_of_the_newest_version_give_the_same_chain(folder: Path) -> None:
    write(folder / "modules.json", chain(*FULL, types=NEW))
    write(folder / "1_Pooling/config.json", NEW_POOLING)
    write(folder / "2_Dense/config.json", {**OLD_DENSE, **ROUTE})
    write(folder / "3_Dense/config.json", {**OLD_DENSE, **ROUTE, "in_features": 3072, "out_features": 768})
    write(folder / "4/config.json", ROUTE)
    assert resolve_modules(folder) == EXPECTED


def test_the_real_files_give_the_same_chain(shared: Path) -> None:
    modules = resolve_modules(shared / "data/embeddinggemma-300m")
    assert (modules.trunk, modules.include_prompt, modules.heads[:2]) == ("", True, EXPECTED.heads[:2])
    assert modules.heads[2:] == (Normalize("4_Normalize"),)  # whose folder was never published
    assert read_max_seq_length(shared / "data/embeddinggemma-300m", CONFIG) == 2048
    defaults = read_defaults(shared / "data/embeddinggemma-300m")
    assert defaults.prompts["document"] == "title: none | text: "
    assert len(defaults.prompts) == 14
    assert (defaults.default_prompt_name, defaults.similarity_fn_name, defaults.truncate_dim) == (None, "cosine", None)


@pytest.mark.parametrize(
    "pooling",
    [
        OLD_POOLING,
        {"word_embedding_dimension": 768, "pooling_mode_mean_tokens": True},
        {"word_embedding_dimension": 768},
        NEW_POOLING,
        {"embedding_dimension": 768, "pooling_mode": ["mean"]},
        {**NEW_POOLING, "pooling_mode": None},
    ],
)
def test_mean_pooling_is_known_in_all_its_spellings(folder: Path, pooling: dict[str, object]) -> None:
    write(folder / "1_Pooling/config.json", pooling)
    assert resolve_modules(folder) == EXPECTED


@pytest.mark.parametrize(
    ("changes", "mode"),
    [
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls_token"),
        ({"pooling_mode_cls_token": True}, r"'cls_token', 'mean'"),  # two at once are concatenated
        ({"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}, "max_tokens"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_weightedmean_tokens": True}, "weightedmean_tokens"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode": "cls"}, "'cls'"),
        ({"pooling_mode": "lasttoken"}, "'lasttoken'"),
        ({"pooling_mode": ["mean", "max"]}, "'mean', 'max'"),
        ({"pooling_mode": []}, r"\[\]"),
        ({"pooling_mode": {"mean": True}}, "'mean': True"),
    ],
)
def test_another_pooling_is_refused_by_name(folder: Path, changes: dict[str, object], mode: str) -> None:
    write(folder / "1_Pooling/config.json", {**OLD_POOLING, **changes})
    with pytest.raises(ConfigError, match=rf"pooling mode .*{mode}.* is not served; expected 'mean'"):
        resolve_modules(folder)


def test_the_prompt_may_be_left_out_of_the_mean(folder: Path) -> None:
    write(folder / "1_Pooling/config.json", {**OLD_POOLING, "include_prompt": False})
    assert not resolve_modules(folder).include_prompt
    for wrong in ("false", 0, None, []):
        write(folder / "1_Pooling/config.json", {**OLD_POOLING, "include_prompt": wrong})
        with pytest.raises(ConfigError, match=r"include_prompt = .*, expected true or false"):
            resolve_modules(folder)


# ---- Dense and Normalize -----------------------------------------------------------------------------------------


def test_what_a_dense_config_leaves_out_is_bias_and_tanh(dense: Dense2) -> None:
    head = dense(bias=ABSENT, activation_function=ABSENT)  # as sentence-transformers' Dense has it
    assert head == Dense("2_Dense", 768, 3072, True, "Tanh")


@pytest.mark.parametrize(
    ("activation", "kind"),
    [(IDENTITY, "Identity"), ("torch.nn.modules.activation.Tanh", "Tanh"), ("torch.nn.Tanh", "Tanh")],
)
def test_identity_and_tanh_are_served(dense: Dense2, activation: str, kind: str) -> None:
    assert dense(activation_function=activation).activation == kind


@pytest.mark.parametrize(
    "activation",
    [
        "torch.nn.modules.activation.GELU",
        "torch.nn.modules.activation.ReLU",
        "my_package.Tanh",
        "os.system",
        "Tanh",
        "",
        None,
        ["torch.nn.Tanh"],
    ],
)
def test_another_activation_is_refused_and_its_code_is_not_run(dense: Dense2, activation: object) -> None:
    with pytest.raises(ConfigError, match=r"activation_function = .*; torch\.nn's Identity and Tanh are served"):
        dense(activation_function=activation)


@pytest.mark.parametrize("key", ["in_features", "out_features"])
@pytest.mark.parametrize("value", [0, -1, 768.0, "768", True, None, 2**31, ABSENT])
def test_a_width_is_a_positive_integer(dense: Dense2, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=r"in_features, out_features = .*, expected positive integers"):
        dense(**{key: value})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"bias": "false"}, "bias = 'false', expected true or false"),
        ({"bias": None}, "bias = None, expected true or false"),
        ({"use_residual": True}, "use_residual = true is not served"),
        ({"module_input_name": "token_embeddings"}, "module_input_name = 'token_embeddings' is not served"),
        ({"module_output_name": "other"}, "module_output_name = 'other' is not served; expected 'sentence_embedding'"),
    ],
)
def test_what_a_dense_head_cannot_do_is_refused(dense: Dense2, changes: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=f"2_Dense.config.json: {why}"):
        dense(**changes)


def test_settings_that_say_the_usual_are_no_matter(dense: Dense2) -> None:
    usual = dense(use_residual=False, module_input_name=None, module_output_name="sentence_embedding")
    assert usual == EXPECTED.heads[0]


def test_each_head_must_take_what_the_one_before_gives(folder: Path, dense: Dense2) -> None:
    dense(out_features=3071)
    with pytest.raises(ConfigError, match=r"3_Dense.config\.json: in_features = 3072, but it is given 3071"):
        check_widths(CONFIG, resolve_modules(folder), folder)
    dense(in_features=640)
    with pytest.raises(ConfigError, match=r"2_Dense.config\.json: in_features = 640, but it is given 768"):
        check_widths(CONFIG, resolve_modules(folder), folder)


def test_any_chain_of_dense_and_normalize_is_served_in_its_order(folder: Path) -> None:
    front = FULL[:2]
    write(folder / "modules.json", chain(*front, ("Normalize", "2_Normalize"), ("Dense", "2_Dense")))
    modules = resolve_modules(folder)
    assert modules.heads == (Normalize("2_Normalize"), EXPECTED.heads[0])
    assert not modules.normalizes
    assert check_widths(CONFIG, modules, folder) == 3072
    write(folder / "modules.json", chain(*front))
    assert resolve_modules(folder).heads == ()
    assert not resolve_modules(folder).normalizes
    assert check_widths(CONFIG, resolve_modules(folder), folder) == 768


def test_normalize_must_work_on_the_sentences_vector(folder: Path) -> None:
    write(folder / "4/config.json", {**ROUTE, "module_input_name": "token_embeddings"})
    with pytest.raises(ConfigError, match="module_input_name = 'token_embeddings' is not served"):
        resolve_modules(folder)


# ---- modules.json ------------------------------------------------------------------------------------------------


def test_a_trunk_may_lie_in_a_folder_of_its_own(folder: Path) -> None:
    write(folder / "modules.json", chain(("Transformer", "0_Transformer"), *FULL[1:]))
    assert resolve_modules(folder).trunk == "0_Transformer"


def test_a_folder_without_modules_is_refused_and_told_what_it_lacks(folder: Path) -> None:
    (folder / "modules.json").unlink()
    with pytest.raises(ConfigError, match=r"modules\.json is missing: without it pooling and Dense heads are unknown"):
        resolve_modules(folder)


@pytest.mark.parametrize("part", ["1_Pooling", "2_Dense"])
def test_a_module_without_its_folder_is_refused(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(CheckpointError, match=rf"{part}.config\.json is missing"):
        resolve_modules(folder)


@pytest.mark.parametrize("content", [{}, [], "text", None, 1, ["Pooling"], [None], chain(*FULL)[0]])
def test_modules_that_are_no_list_of_modules_are_refused(folder: Path, content: object) -> None:
    write(folder / "modules.json", content)
    with pytest.raises(ConfigError, match="expected a list of modules"):
        resolve_modules(folder)


@pytest.mark.parametrize("changes", [{"type": None}, {"type": 1}, {"path": None}, {"path": ["1_Pooling"]}])
def test_a_module_has_a_type_and_a_path(folder: Path, changes: dict[str, object]) -> None:
    modules = chain(*FULL)
    modules[1].update(changes)
    write(folder / "modules.json", modules)
    with pytest.raises(ConfigError, match="has no type and path"):
        resolve_modules(folder)


@pytest.mark.parametrize("path", ["../1_Pooling", "/etc", "1_Pooling/../../x", "..", "..\\x", "C:\\x", "1_Pooling\0"])
@pytest.mark.parametrize("which", range(5))
def test_a_module_never_lies_outside_the_folder(folder: Path, which: int, path: str) -> None:
    modules = chain(*FULL)
    modules[which]["path"] = path
    write(folder / "modules.json", modules)
    with pytest.raises(ConfigError, match=r"leads out of the checkpoint's folder"):
        resolve_modules(folder)


@pytest.mark.parametrize("kind", ["Router", "Dropout", "LSTM", "WordEmbeddings", "SpladePooling", "LayerNorm", "CNN"])
def test_a_module_of_another_kind_is_refused_by_name(folder: Path, kind: str) -> None:
    write(folder / "modules.json", chain(*FULL, (f"sentence_transformers.models.{kind}", "5")))
    with pytest.raises(ConfigError, match=f"the module {kind} is not served; expected Transformer, Pooling, Dense"):
        resolve_modules(folder)


@pytest.mark.parametrize("kind", ["modeling_custom.Dense", "os.Pooling", "sentence_transformers_x.Dense", "Dense", ""])
def test_a_models_own_code_is_never_run(folder: Path, kind: str) -> None:
    modules = chain(*FULL)
    modules[2]["type"] = kind
    write(folder / "modules.json", modules)
    with pytest.raises(ConfigError, match="is code of the model's own, which is never run"):
        resolve_modules(folder)


@pytest.mark.parametrize(
    "order",
    [
        ["Pooling", "Transformer", "Dense"],
        ["Transformer", "Dense", "Pooling"],
        ["Transformer", "Normalize"],
        ["Transformer"],
        ["Pooling"],
        ["Dense"],
        ["Transformer", "Pooling", "Pooling"],
        ["Transformer", "Pooling", "Dense", "Transformer"],
        ["Transformer", "Transformer", "Pooling"],
    ],
)
def test_modules_in_another_order_are_refused(folder: Path, order: list[str]) -> None:
    write(folder / "modules.json", chain(*((kind, "") for kind in order)))
    with pytest.raises(ConfigError, match=f"modules are {', '.join(order)}; expected Transformer, Pooling, then Dense"):
        resolve_modules(folder)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([*OLD.values()]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["type", "path", "x"]), inner),
    max_leaves=10,
)
KEYS = ["in_features", "out_features", "bias", "activation_function", "pooling_mode", "include_prompt", "use_residual"]


@given(modules=st.just(chain(*FULL)) | ANY_JSON, settings=st.dictionaries(st.sampled_from(KEYS), ANY_JSON, max_size=3))
def test_whatever_the_files_say_they_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, modules: object, settings: dict[str, object]
) -> None:
    scratch = tmp_path_factory.getbasetemp() / "modules"
    write(scratch / "modules.json", modules)
    write(scratch / "1_Pooling/config.json", {**OLD_POOLING, **settings})
    write(scratch / "2_Dense/config.json", {**OLD_DENSE, **settings})
    write(scratch / "3_Dense/config.json", settings)
    write(scratch / "sentence_bert_config.json", settings)
    try:
        assert isinstance(resolve_modules(scratch), Modules)
    except (ConfigError, CheckpointError):
        return


# ---- the longest text --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sentence_bert", "tokenizer", "length"),
    [
        ({"max_seq_length": 2048, "do_lower_case": False}, {"model_max_length": 512}, 2048),
        ({"max_seq_length": 128}, None, 128),
        ({"max_seq_length": None}, {"model_max_length": 512}, 512),
        ({"transformer_task": "feature-extraction"}, {"model_max_length": 1024}, 1024),  # 6.2 writes it there
        ({}, {"model_max_length": int(1e30)}, 2048),  # transformers' way of saying: no limit
        ({}, {"model_max_length": 1e30}, 2048),
        ({}, {"model_max_length": 4096}, 2048),  # the model has no more positions
        ({}, {}, 2048),
        ({}, {"model_max_length": None}, 2048),
        (None, {"model_max_length": 2048}, 2048),
        (None, None, 2048),
    ],
)
def test_the_longest_text_is_what_the_files_say(
    tmp_path: Path, sentence_bert: object, tokenizer: object, length: int
) -> None:
    if sentence_bert is not None:
        write(tmp_path / "sentence_bert_config.json", sentence_bert)
    if tokenizer is not None:
        write(tmp_path / "tokenizer_config.json", tokenizer)
    assert read_max_seq_length(tmp_path, CONFIG) == length


@pytest.mark.parametrize("length", [0, -1, 2048.0, "2048", True, [2048]])
def test_a_length_is_a_positive_integer(tmp_path: Path, length: object) -> None:
    write(tmp_path / "sentence_bert_config.json", {"max_seq_length": length})
    with pytest.raises(ConfigError, match=r"max_seq_length = .*, expected a positive integer"):
        read_max_seq_length(tmp_path, CONFIG)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"do_lower_case": True}, "do_lower_case = true is not served; expected false or null"),
        (
            {"processing_kwargs": {"text": {"max_length": 5}}},
            r"processing_kwargs = .* is not served; expected \{\} or null",
        ),
        ({"transformer_task": "fill-mask"}, 'transformer_task = "fill-mask" is not served'),
        ({"query_length": 32}, "query_length = 32 is not served; expected null"),
    ],
)
def test_settings_that_change_how_texts_are_read_are_refused(tmp_path: Path, setting: object, message: str) -> None:
    write(tmp_path / "sentence_bert_config.json", {"max_seq_length": 2048, **setting})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=message):
        read_max_seq_length(tmp_path, CONFIG)


# ---- what a call uses when it does not say -----------------------------------------------------------------------


def test_prompts_and_defaults_are_read(tmp_path: Path) -> None:
    write(
        tmp_path / "config_sentence_transformers.json",
        {
            "prompts": {"query": "q: ", "document": None, "空": ""},
            "default_prompt_name": "query",
            "similarity_fn_name": "dot",
            "truncate_dim": 256,
            "__version__": {"sentence_transformers": "5.1.2"},
        },
    )
    # A prompt that is null, as 6.2 may have it, is the empty one.
    assert read_defaults(tmp_path) == Defaults({"query": "q: ", "document": "", "空": ""}, "query", "dot", 256)


def test_without_the_file_or_its_keys_there_are_no_prompts_and_the_cosine(tmp_path: Path) -> None:
    nothing = Defaults({}, None, "cosine", None)
    assert read_defaults(tmp_path) == nothing
    empty = {"prompts": None, "default_prompt_name": None, "similarity_fn_name": None, "truncate_dim": None}
    for settings in ({}, empty):
        write(tmp_path / "config_sentence_transformers.json", settings)
        assert read_defaults(tmp_path) == nothing


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"prompts": ["query"]}, "prompts = .*, expected names with strings"),
        ({"prompts": "query: "}, "prompts = 'query: ', expected"),
        ({"prompts": {"query": 1}}, "prompts = .*, expected names with strings"),
        ({"prompts": {"query": ["q: "]}}, "prompts = .*, expected names with strings"),
        ({"default_prompt_name": 1}, "default_prompt_name = 1, expected a name or null"),
        ({"default_prompt_name": ["query"]}, "default_prompt_name = .*, expected a name or null"),
        ({"similarity_fn_name": "jaccard"}, "similarity_fn_name = 'jaccard'; served are cosine, dot"),
        ({"similarity_fn_name": ["cosine"]}, "similarity_fn_name = "),
        ({"truncate_dim": 0}, "truncate_dim = 0, expected a positive integer"),
        ({"truncate_dim": "256"}, "truncate_dim = '256', expected"),
        ({"truncate_dim": True}, "truncate_dim = True, expected"),
        ({"truncate_dim": 256.0}, r"truncate_dim = 256\.0, expected"),
    ],
)
def test_defaults_of_a_wrong_type_are_refused(tmp_path: Path, settings: dict[str, object], why: str) -> None:
    write(tmp_path / "config_sentence_transformers.json", settings)
    with pytest.raises(ConfigError, match=why):
        read_defaults(tmp_path)
