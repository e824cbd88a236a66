"""A repository or folder that holds nothing but GGUF files: one of them is taken, and told."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from test_gguf_source import exported
from test_hub import MAIN, NAME, NO_NETWORK, OTHER, TEXT, TOKEN, Client, Hub

from gemma_np import CheckpointError, EmbeddingGemma, hub
from gemma_np.cli import main as cli
from gemma_np.repository import Repository

KINDS = {"BF16": "bf16", "Q8_0": "q8_0", "Q4_0": "q4_0"}
PLAIN = f"EmbeddingGemma({NAME!r})"


@pytest.fixture(scope="module")
def folder(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three GGUF files of `small`, and what else such a repository has."""
    folder = tmp_path_factory.mktemp("gguf")
    for kind, format in KINDS.items():
        exported(small, folder / f"small-{kind}.gguf", format)
    (folder / "mmproj-F16.gguf").write_bytes(b"not for us")
    shutil.copy(small / "config.json", folder / "config.json")
    (folder / "README.md").write_text("not for us")
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[Hub]:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with Hub(files) as hub:
        hub.commits[OTHER] = {"deep/one-Q4_0.gguf": files["small-Q4_0.gguf"]}
        Thread(target=hub.serve_forever, args=[0.01], daemon=True).start()
        yield hub
        hub.shutdown()


@pytest.fixture
def client(server: Hub, tmp_path: Path) -> Client:
    return Client(server, tmp_path / "home")


def vector(folder: Path, kind: str) -> np.ndarray:
    found: np.ndarray = EmbeddingGemma(folder / f"small-{kind}.gguf").encode(TEXT)
    return found


def test_of_several_files_q8_0_is_taken_and_told(client: Client, server: Hub, folder: Path) -> None:
    done = client.python(f"logging.getLogger().handlers.clear(); a, b = {PLAIN}, {PLAIN}; print(a.folder.name)")
    assert done.stdout == "small-Q8_0.gguf\n", done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("gemma-np: ")]
    there = f"there are also BF16, F16, Q4_0 ({NAME}:TYPE or {NAME}/FILE.gguf)"
    assert told == [f"gemma-np: {NAME}: small-Q8_0.gguf is taken; {there}"]  # once
    assert server.fetched() == {"config.json", "small-Q8_0.gguf"}
    np.testing.assert_array_equal(client.vector(PLAIN), vector(folder, "Q8_0"))


@pytest.mark.parametrize("wanted", [":Q4_0", ":q4_0", "/small-Q4_0.gguf"])
def test_another_may_be_named(wanted: str, client: Client, server: Hub, folder: Path) -> None:
    np.testing.assert_array_equal(client.vector(f"EmbeddingGemma({NAME + wanted!r})"), vector(folder, "Q4_0"))
    assert server.fetched() == {"small-Q4_0.gguf"}


def test_what_is_not_there_is_said_with_what_there_is(client: Client, server: Hub) -> None:
    for wanted in (":Q2_K", "/small-Q2_K.gguf"):
        message = client.refusal(f"EmbeddingGemma({NAME + wanted!r})")
        assert message.startswith(f"{NAME}: none of its GGUF files is {wanted[1:]}; it has small-BF16.gguf, ")
    assert server.fetched() == set()


def test_a_file_in_a_folder_of_a_revision(client: Client, folder: Path) -> None:
    expected = vector(folder, "Q4_0")
    for call in (
        f"EmbeddingGemma({NAME!r}, revision='v2')",
        f"EmbeddingGemma('{NAME}/deep/one-Q4_0.gguf', revision='v2')",
    ):
        np.testing.assert_array_equal(client.vector(call), expected)


def test_what_is_in_the_cache_needs_no_network(client: Client, server: Hub, folder: Path) -> None:
    client.vector(PLAIN)
    server.requests.clear()
    for call, environment in (
        (PLAIN, {"HF_HUB_OFFLINE": "1"}),
        (f"EmbeddingGemma('{NAME}:Q8_0', local_files_only=True)", {}),
    ):
        np.testing.assert_array_equal(client.vector(call, NO_NETWORK, **environment), vector(folder, "Q8_0"))
    assert server.requests == []
    message = client.refusal(f"EmbeddingGemma('{NAME}:Q4_0', local_files_only=True)", NO_NETWORK)
    assert "none of its GGUF files is Q4_0; it has small-Q8_0.gguf" in message


def test_what_is_in_the_cache_is_used_while_the_hub_is_down(client: Client, server: Hub, folder: Path) -> None:
    client.vector(PLAIN)
    server.fault = lambda path: (500, {})
    np.testing.assert_array_equal(client.vector(PLAIN), vector(folder, "Q8_0"))
    assert "answers with status 500" in client.refusal(f"EmbeddingGemma('{NAME}:Q8_0', cache_folder='elsewhere')")


def test_a_pickle_holds_the_file_and_the_commit(client: Client, server: Hub, folder: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "model.pickle"
    done = client.python(
        "import pickle, pathlib\n"
        f"pathlib.Path(sys.argv[1]).write_bytes(pickle.dumps(EmbeddingGemma('{NAME}:Q4_0', token={TOKEN!r})))",
        str(pickled),
    )
    assert done.returncode == 0, done.stderr
    content = pickled.read_bytes()
    assert f"{NAME}/small-Q4_0.gguf".encode() in content
    assert MAIN.encode() in content
    assert TOKEN.encode() not in content
    server.revisions["main"] = OTHER
    client.environment["HF_HOME"] = str(tmp_path / "elsewhere")
    call = f"__import__('pickle').loads(open({str(pickled)!r}, 'rb').read())"
    np.testing.assert_array_equal(client.vector(call), vector(folder, "Q4_0"))


def test_the_token_is_sent_for_the_list_too_and_never_shown(client: Client, server: Hub) -> None:
    done = client.python(f"model = EmbeddingGemma('{NAME}:Q8_0', token={TOKEN + chr(10)!r}); print(model, vars(model))")
    assert done.returncode == 0, done.stderr
    assert server.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in done.stdout + done.stderr
    assert TOKEN not in repr(Repository(NAME, None, TOKEN, None, False))


def test_a_checkpoint_wins_over_gguf_files_beside_it(small: Path, folder: Path, tmp_path: Path) -> None:
    both = Path(shutil.copytree(small, tmp_path / "both"))
    shutil.copy(folder / "small-Q8_0.gguf", both)
    assert hub.locate(both) == both


def test_of_a_folder_a_file_is_taken_and_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hub.locate(folder) == folder / "small-Q8_0.gguf"
    told = f"gemma-np: {folder}: small-Q8_0.gguf is taken; there are also BF16, F16, Q4_0 (say its path)\n"
    assert capsys.readouterr().err == told
    shutil.copy(folder / "small-Q4_0.gguf", tmp_path / "any name.gguf")
    assert EmbeddingGemma(tmp_path).quantization == "q4_0"
    assert capsys.readouterr().err == ""  # there is no choice
    assert cli.main(["info", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"GGUF file    {tmp_path / 'any name.gguf'}\n")


def test_parts_of_a_model_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "small-Q4_0.gguf", tmp_path / "small-00001-of-00002.gguf")
    with pytest.raises(CheckpointError, match="none that holds a whole model"):
        EmbeddingGemma(tmp_path)


def test_names_that_are_neither_paths_nor_ids_are_refused() -> None:
    for name in ("a/b:", "a/b:Q8_0/c", "a:Q8_0", "a/b/c", "a/b/../c.gguf", "a/b/.c.gguf", "a/b//c.gguf", "/a/b.gguf"):
        with pytest.raises(CheckpointError, match="neither a folder nor a hub id"):
            EmbeddingGemma(name)
