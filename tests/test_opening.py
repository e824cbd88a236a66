"""A path to an opened model: which kind it is, and what a watcher is shown on the way."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file
from test_gguf_source import exported
from zoo import ZOO

from gemma_np import CheckpointError, ConfigError, EmbeddingGemma, GemmaError, InputError, WeightsError
from gemma_np.checkpoint.source import Settings, Source
from gemma_np.opening import open_source


@pytest.fixture(scope="module")
def models(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model in each form."""
    folder = tmp_path_factory.mktemp("models")
    EmbeddingGemma(small).save_pretrained(folder / "q8_0", format="q8_0")
    return {"checkpoint": small, "quantised": folder / "q8_0", "gguf": exported(small, folder / "model.gguf", "q8_0")}


class Watcher:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.settings: list[Settings] = []
        self.tensors: list[Mapping[str, Any]] = []
        self.order: list[str] = []

    def __call__(self, found: Settings | Mapping[str, Any]) -> None:
        if isinstance(found, Settings):
            self.settings.append(found)
            self.order.append("settings")
        else:
            self.tensors.append(found)
            self.order.append("tensors")


def watched(path: Path, error: type[GemmaError] | None = None) -> tuple[Watcher, Source | None]:
    watcher = Watcher()
    if error is None:
        return watcher, open_source(path, watch=watcher)
    with pytest.raises(error):
        open_source(path, watch=watcher)
    return watcher, None


@pytest.mark.parametrize(("kind", "quantization"), [("checkpoint", None), ("quantised", "q8_0"), ("gguf", "q8_0")])
def test_a_path_says_itself_what_kind_of_model_it_is(
    kind: str, quantization: str | None, models: dict[str, Path]
) -> None:
    source = open_source(models[kind])
    assert source.path == models[kind]
    assert source.quantization == quantization
    assert source.tensors.keys() >= {"embed_tokens.weight", "norm.weight", "3_Dense/linear.weight"}


@pytest.mark.parametrize("dense", [False, Path("heads")])
@pytest.mark.parametrize("kind", ["checkpoint", "quantised"])
def test_heads_from_elsewhere_are_for_gguf_files(kind: str, dense: Any, models: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"dense is for GGUF files; .* is a folder, whose modules\.json says"):
        open_source(models[kind], dense)


# ---- the watcher


def test_a_checkpoints_tensors_are_shown_by_their_own_names_and_then_checked(tmp_path: Path) -> None:
    path = ZOO["prefixed"].make(tmp_path / "checkpoint")
    watcher, source = watched(path)
    assert watcher.order == ["settings", "tensors", "tensors"]
    assert source is not None
    assert vars(watcher.settings[0]).items() <= vars(source).items()
    found, checked = watcher.tensors
    assert found.keys() == load_file(path / "model.safetensors").keys()
    assert "model.norm.weight" in found
    assert checked == source.tensors
    assert "norm.weight" in checked


def test_a_quantised_folders_tensors_are_shown_when_they_are_checked(models: dict[str, Path]) -> None:
    watcher, source = watched(models["quantised"])
    assert watcher.order == ["settings", "tensors"]
    assert source is not None
    assert watcher.tensors[0] == source.tensors


def test_a_gguf_files_tensors_are_shown_before_its_settings(models: dict[str, Path]) -> None:
    """The names and types in a file are known, whatever its settings say."""
    watcher, source = watched(models["gguf"])
    assert watcher.order == ["tensors", "settings", "tensors"]
    assert source is not None
    assert "blk.0.attn_q.weight" in watcher.tensors[0]
    assert watcher.tensors[1] == source.tensors
    assert vars(watcher.settings[0]).items() <= vars(source).items()


def test_a_model_that_cannot_be_opened_has_shown_all_up_to_its_fault(writable: Path) -> None:
    tensors = load_file(writable / "model.safetensors")
    lacking = {name: tensor for name, tensor in tensors.items() if name != "norm.weight"}
    save_file(lacking, writable / "model.safetensors")
    watcher, _ = watched(writable, WeightsError)
    assert watcher.order == ["settings", "tensors"]
    assert watcher.tensors[0].keys() == lacking.keys()
    (writable / "model.safetensors").unlink()
    assert watched(writable, CheckpointError)[0].order == ["settings"]
    (writable / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true}')
    assert watched(writable, ConfigError)[0].order == []


def test_a_gguf_file_of_another_model_has_shown_its_tensors(models: dict[str, Path], tmp_path: Path) -> None:
    content = models["gguf"].read_bytes()
    (tmp_path / "model.gguf").write_bytes(content.replace(b"gemma-embedding", b"gemma-something"))
    watcher, _ = watched(tmp_path / "model.gguf", ConfigError)
    assert watcher.order == ["tensors"]
    assert "blk.0.attn_q.weight" in watcher.tensors[0]
