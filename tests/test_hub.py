"""Models by their id: the real huggingface_hub client, in a process of its own, against a small hub on 127.0.0.1."""

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import adapters
import numpy as np
import pytest
from test_gguf_source import exported

from gemma_np import CheckpointError, EmbeddingGemma, HubError, hub
from gemma_np.arrays import Float32
from gemma_np.checkpoint.bundle import read_manifest

NAME = "somebody/small-gemma"
TOKEN = "hf_SecretSecretSecretSecret"
TEXT = "Which planet is red?"
MAIN, OTHER = "a" * 40, "b" * 40  # commits
NOT_OURS = ["README.md", ".gitattributes", "pytorch_model.bin", "onnx/model.onnx", "tokenizer.model", "model.gguf"]
NOT_OURS += ["openvino/openvino_model.xml", "2_Dense/pytorch_model.bin", "generation_config.json", "images/a.png"]


class Hub(ThreadingHTTPServer):
    """One model in two revisions, a record of the requests, and faults to order."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        cut = {**files, "config_sentence_transformers.json": b'{"truncate_dim": 8}'}
        self.commits = {MAIN: files, OTHER: cut}
        self.revisions = {"main": MAIN, "v2": OTHER, MAIN: MAIN, OTHER: OTHER}
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.fault: Callable[[str], tuple[int, dict[str, str]] | None] = lambda path: None
        self.broken: str | None = None  # a file that never arrives whole

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fetched(self) -> set[str]:
        """The files that were asked for."""
        return {path.partition(f"/resolve/{MAIN}/")[2] for _, path in self.requests if "/resolve/" in path}


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        self.server.tokens.add(self.headers["Authorization"])
        if fault := self.server.fault(path):
            return self.answer(fault[0], b"<html>no</html>", fault[1])
        if match := re.fullmatch(rf"/api/models/{NAME}(?:/(revision|tree)/([^/]+))?", path):
            return self.describe(match[1], match[2] or "main")
        if match := re.fullmatch(rf"/{NAME}/resolve/({MAIN}|{OTHER})/(.+)", path):
            return self.send_file(match[1], match[2])
        return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def describe(self, what: str | None, revision: str) -> None:
        commit = self.server.revisions.get(revision)
        if commit is None:
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files = self.server.commits[commit]
        about: object = {"id": NAME, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
        if what == "tree":
            about = [
                {"type": "file", "path": name, "size": len(content), "oid": sha1(content).hexdigest()}
                for name, content in files.items()
            ]
        return self.answer(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

    def send_file(self, commit: str, name: str) -> None:
        content = self.server.commits[commit][name]
        headers = {"ETag": f'"{sha1(content).hexdigest()}"', "X-Repo-Commit": commit}
        if name == self.server.broken and self.command == "GET":
            self.answer(200, content[: len(content) // 2], {**headers, "Content-Length": str(len(content))})
            self.close_connection = True
            return
        self.answer(200, content, headers)


@pytest.fixture
def server(small: Path) -> Iterator[Hub]:
    files = {path.relative_to(small).as_posix(): path.read_bytes() for path in small.rglob("*") if path.is_file()}
    with Hub(files | dict.fromkeys(NOT_OURS, b"not for us")) as hub:
        Thread(target=hub.serve_forever, args=[0.01], daemon=True).start()
        yield hub
        hub.shutdown()


class Client:
    """Runs Python in a fresh process that knows no hub but ours."""

    def __init__(self, server: Hub, home: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        self.environment = kept | {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "*",
        }

    def python(self, code: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", START + code, *arguments],
            env=self.environment | environment,
            capture_output=True,
            text=True,
        )

    def vector(self, call: str, start: str = "", **environment: str) -> Float32:
        """The vector of TEXT from the model that `call` opens."""
        done = self.python(f"{start}\nprint({call}.encode({TEXT!r}).tobytes().hex())", **environment)
        assert done.returncode == 0, done.stderr
        return np.frombuffer(bytes.fromhex(done.stdout), np.float32)

    def refusal(self, call: str, start: str = "", **environment: str) -> str:
        """The HubError that `call` raises."""
        code = f"try:\n    {call}\nexcept HubError as error:\n    print(error)\nelse:\n    sys.exit('no error')"
        done = self.python(f"{start}\n{code}", **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


# All that anybody logs goes to stderr, where some tests look for the token. The client sleeps between its attempts.
START = """
import logging, os, sys, time
logging.basicConfig(level=logging.DEBUG)
time.sleep = lambda seconds: None
from gemma_np import EmbeddingGemma, HubError
"""
# Whoever opens a connection ends the process, so that no `except` can hide it.
NO_NETWORK = """
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        os._exit(77)
sys.addaudithook(watch)
"""
OPEN = f"EmbeddingGemma({NAME!r})"


@pytest.fixture
def client(server: Hub, tmp_path: Path) -> Client:
    return Client(server, tmp_path / "home")


@pytest.fixture
def expected(small: Path) -> Float32:
    vector: Float32 = EmbeddingGemma(small).encode(TEXT)
    return vector


def test_a_model_by_its_id_is_the_model_of_the_folder(client: Client, expected: Float32) -> None:
    np.testing.assert_array_equal(client.vector(OPEN), expected)


def test_only_what_the_engine_reads_is_downloaded(client: Client, server: Hub, small: Path) -> None:
    client.vector(OPEN)
    assert not server.fetched() & set(NOT_OURS)
    needed = {"config.json", "model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"}
    needed |= {"2_Dense/config.json", "2_Dense/model.safetensors", "config_sentence_transformers.json"}
    assert needed <= server.fetched()


def test_of_a_model_that_lends_its_heads_no_more_than_these_is_downloaded(
    client: Client, server: Hub, small: Path, tmp_path: Path, expected: Float32
) -> None:
    file = exported(small, tmp_path / "headless.gguf", heads=False)
    np.testing.assert_array_equal(client.vector(f"EmbeddingGemma({str(file)!r}, dense={NAME!r})"), expected)
    assert {"modules.json", "2_Dense/model.safetensors", "3_Dense/model.safetensors"} <= server.fetched()
    assert not {"config.json", "model.safetensors", "tokenizer.json"} & server.fetched()


def test_shards_and_a_trunk_in_a_folder_are_downloaded_too() -> None:
    from huggingface_hub.utils import filter_repo_objects

    wanted = ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    wanted += ["0_Transformer/config.json", "0_Transformer/model.safetensors", "0_Transformer/tokenizer.json"]
    assert list(filter_repo_objects(wanted + NOT_OURS, allow_patterns=hub.FILES)) == wanted


def test_a_quantised_folder_is_downloaded_whole() -> None:
    """Also what only its checksums and `dequantize` ask for."""
    from huggingface_hub.utils import filter_repo_objects

    wanted = [*read_manifest(hub.NANO_FOLDER)[1], "bundle.json"]
    assert set(filter_repo_objects(wanted, allow_patterns=hub.FILES)) == set(wanted)


def test_a_revision_is_a_branch_or_a_commit(client: Client, expected: Float32) -> None:
    for revision in ("v2", OTHER):
        assert client.vector(f"EmbeddingGemma({NAME!r}, revision={revision!r})").shape == (8,)
    np.testing.assert_array_equal(client.vector(f"EmbeddingGemma({NAME!r}, revision='main')"), expected)


def test_a_cache_folder_of_ones_own_is_used(client: Client, server: Hub, tmp_path: Path, expected: Float32) -> None:
    call = f"EmbeddingGemma({NAME!r}, cache_folder={str(tmp_path / 'mine')!r}"
    client.vector(f"{call})")
    assert list((tmp_path / "mine").rglob("config.json"))
    assert not list((tmp_path / "home").rglob("config.json"))
    server.requests.clear()
    np.testing.assert_array_equal(client.vector(f"{call}, local_files_only=True)", NO_NETWORK), expected)
    assert server.requests == []


def test_what_is_in_the_cache_needs_no_network(client: Client, server: Hub, expected: Float32) -> None:
    client.vector(OPEN)
    server.requests.clear()
    offline = f"EmbeddingGemma({NAME!r}, local_files_only=True)"
    np.testing.assert_array_equal(client.vector(offline, NO_NETWORK), expected)
    np.testing.assert_array_equal(client.vector(OPEN, NO_NETWORK, HF_HUB_OFFLINE="1"), expected)
    assert server.requests == []


def test_nothing_is_downloaded_twice(client: Client, server: Hub) -> None:
    client.vector(OPEN)
    server.requests.clear()
    client.vector(OPEN)
    assert server.fetched() == set()


def test_what_is_in_the_cache_is_used_while_the_hub_is_down(client: Client, server: Hub, expected: Float32) -> None:
    client.vector(OPEN)
    server.fault = lambda path: (500, {})
    np.testing.assert_array_equal(client.vector(OPEN), expected)


def test_offline_and_not_in_the_cache_is_said(client: Client, server: Hub) -> None:
    for call, environment in (
        (f"EmbeddingGemma({NAME!r}, local_files_only=True)", {}),
        (OPEN, {"HF_HUB_OFFLINE": "1"}),
    ):
        message = client.refusal(call, NO_NETWORK, **environment)
        assert "not (or not completely) in the cache" in message
        assert "HF_HUB_OFFLINE" in message
    assert server.requests == []


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("where", ["/api/", "/resolve/"])
def test_a_gated_model_says_where_its_licence_is_accepted(client: Client, server: Hub, where: str, status: int) -> None:
    server.fault = lambda path: (status, {"X-Error-Code": "GatedRepo"}) if where in path else None
    message = client.refusal(OPEN)
    assert message.startswith(f"{NAME}: it is gated; accept its licence at https://huggingface.co/{NAME} ")
    assert "`hf auth login`" in message
    assert "HF_TOKEN" in message


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_refused_is_said(client: Client, server: Hub, status: int) -> None:
    server.fault = lambda path: (status, {"X-Error-Message": "Invalid credentials in Authorization header"})
    message = client.refusal(f"EmbeddingGemma({NAME!r}, token={TOKEN!r})")
    assert f"refuses access ({status})" in message
    assert "`hf auth login`" in message


def test_a_name_that_the_hub_does_not_know_is_said(client: Client) -> None:
    message = client.refusal("EmbeddingGemma('nobody/nothing')")
    assert message.startswith("nobody/nothing: there is no such folder here, and no such model on the hub")
    assert "`hf auth login`" in message


def test_a_revision_that_the_hub_does_not_know_is_said(client: Client) -> None:
    for revision in ("v3", "c" * 40):
        message = client.refusal(f"EmbeddingGemma({NAME!r}, revision={revision!r})")
        assert message.startswith(f"{NAME}: there is no revision '{revision}'")


def test_a_hub_that_fails_is_not_called_offline(client: Client, server: Hub) -> None:
    server.fault = lambda path: (500, {})
    assert "answers with status 500" in client.refusal(OPEN)
    server.fault = lambda path: (500, {}) if path.endswith("tokenizer.json") else None
    assert "answers with status 500" in client.refusal(OPEN)


def test_a_hub_that_cannot_be_reached_is_said(client: Client, server: Hub) -> None:
    message = client.refusal(OPEN, HF_ENDPOINT="http://127.0.0.1:1")
    assert "cannot be downloaded: ConnectError" in message


def test_a_broken_download_is_an_error_and_the_next_call_succeeds(
    client: Client, server: Hub, expected: Float32
) -> None:
    server.broken = "model.safetensors"
    message = client.refusal(OPEN)
    assert "cannot be downloaded: " in message
    assert "not (or not completely) in the cache" in client.refusal(OPEN, HF_HUB_OFFLINE="1")
    server.broken = None
    np.testing.assert_array_equal(client.vector(OPEN), expected)


def test_the_token_is_sent_and_never_shown(client: Client, server: Hub) -> None:
    show = f"model = EmbeddingGemma({NAME!r}, token={TOKEN!r}); print(model, repr(model), vars(model))"
    done = client.python(show)
    assert done.returncode == 0, done.stderr
    assert server.tokens == {f"Bearer {TOKEN}"}
    assert "resolve" in done.stderr  # the client does log there
    assert TOKEN not in done.stdout + done.stderr


def test_a_failure_does_not_show_the_token(client: Client, server: Hub) -> None:
    server.broken = "config.json"
    for call in (
        f"EmbeddingGemma({NAME!r}, token={TOKEN!r})",
        f"EmbeddingGemma({NAME!r}, token={TOKEN + chr(10) + 'x'!r})",  # no header can hold it: the client logs it
        f"EmbeddingGemma({NAME!r}, token={TOKEN + 'é'!r})",
        f"EmbeddingGemma('nobody/nothing', token={TOKEN!r})",
        f"EmbeddingGemma({NAME!r}, token={TOKEN!r}, truncate_dim=0)",
    ):
        done = client.python(call)
        assert done.returncode == 1
        assert re.search(r"^gemma_np\.errors\.\w+Error: ", done.stderr, re.M)
        assert TOKEN not in done.stdout + done.stderr


def test_a_token_from_the_environment_is_sent_too(client: Client, server: Hub) -> None:
    client.vector(OPEN, HF_TOKEN=TOKEN)
    assert server.tokens == {f"Bearer {TOKEN}"}


def test_a_token_that_was_read_from_a_file_may_end_with_a_newline(client: Client, server: Hub) -> None:
    client.vector(f"EmbeddingGemma({NAME!r}, token={TOKEN + chr(10)!r})")
    assert server.tokens == {f"Bearer {TOKEN}"}


def test_a_stored_token_that_is_not_there_is_said(client: Client, server: Hub) -> None:
    assert "there is none; log in with `hf auth login`" in client.refusal(f"EmbeddingGemma({NAME!r}, token=True)")


def test_a_pickle_holds_the_id_and_the_commit_and_not_the_token(
    client: Client, server: Hub, tmp_path: Path, expected: Float32
) -> None:
    pickled = tmp_path / "model.pickle"
    done = client.python(
        "import pickle, pathlib\n"
        f"pathlib.Path(sys.argv[1]).write_bytes(pickle.dumps(EmbeddingGemma({NAME!r}, token={TOKEN!r})))",
        str(pickled),
    )
    assert done.returncode == 0, done.stderr
    content = pickled.read_bytes()
    assert NAME.encode() in content
    assert MAIN.encode() in content
    assert TOKEN.encode() not in content
    assert str(tmp_path / "home").encode() not in content
    server.requests.clear()
    call = f"__import__('pickle').loads(open({str(pickled)!r}, 'rb').read())"
    np.testing.assert_array_equal(client.vector(call, NO_NETWORK), expected)
    server.revisions["main"] = OTHER  # the hub moves on; the copy stays the same model
    client.environment["HF_HOME"] = str(tmp_path / "elsewhere")
    np.testing.assert_array_equal(client.vector(call), expected)


def test_a_revision_may_end_an_id(client: Client) -> None:
    assert client.vector(f"EmbeddingGemma('{NAME}@v2')").shape == (8,)
    done = client.python(f"EmbeddingGemma('{NAME}@v2', revision='main')")
    assert "InputError" in done.stderr
    assert "the revision is given twice" in done.stderr


def test_an_adapter_s_base_is_found_by_its_id(client: Client, server: Hub, small: Path, tmp_path: Path) -> None:
    adapter = adapters.write(tmp_path / "adapter", NAME, adapters.halves(small))
    expected = EmbeddingGemma(adapter, base=small).encode(TEXT)
    np.testing.assert_array_equal(client.vector(f"EmbeddingGemma({str(adapter)!r})"), expected)
    np.testing.assert_array_equal(client.vector(f"EmbeddingGemma({str(adapter)!r}, base='{NAME}@main')"), expected)
    adapters.edit(adapter / "adapter_config.json", revision="v2")  # of the base
    assert client.vector(f"EmbeddingGemma({str(adapter)!r})").shape == (8,)
    adapters.edit(adapter / "adapter_config.json", base_model_name_or_path="nobody/nothing")
    message = client.refusal(f"EmbeddingGemma({str(adapter)!r})")
    assert re.search("adapter_config.json: the base: nobody/nothing: .* --base MODEL, in Python base=", message)


def test_an_adapter_on_the_hub_and_in_a_pickle(client: Client, server: Hub, small: Path, tmp_path: Path) -> None:
    adapter = adapters.beside(small, adapters.write(tmp_path / "adapter", f"{NAME}@{MAIN}", adapters.halves(small)))
    expected = EmbeddingGemma(adapter, base=small).encode(TEXT)
    whole = {path.relative_to(adapter).as_posix(): path.read_bytes() for path in adapter.rglob("*") if path.is_file()}
    server.commits[OTHER] = whole | dict.fromkeys(NOT_OURS, b"not for us")
    pickled = tmp_path / "model.pickle"
    made = f"EmbeddingGemma({NAME!r}, revision='v2')"
    done = client.python(f"import pickle\nopen({str(pickled)!r}, 'wb').write(pickle.dumps({made}))")
    assert done.returncode == 0, done.stderr
    for commit in (MAIN, OTHER):
        assert f"{NAME}@{commit}".encode() in pickled.read_bytes()
    call = f"__import__('pickle').loads(open({str(pickled)!r}, 'rb').read())"
    np.testing.assert_array_equal(client.vector(call, NO_NETWORK), expected)


def test_a_path_that_does_not_exist_is_no_id(tmp_path: Path) -> None:
    for model in (
        tmp_path / "nothing",
        "./nothing",
        "nothing",
        "a/b/c",
        "~nobody-of-this-name/model",
        "-/",
        "owner/",
        "",
        "x" * 300,
        "a\0b",
        "http://127.0.0.1/a",
    ):
        with pytest.raises(CheckpointError, match=r"neither a folder nor a hub id|has no config\.json"):
            EmbeddingGemma(model)


def test_names_that_no_model_can_have_are_refused_by_name(client: Client, server: Hub) -> None:
    for name in ("a--b/c", "owner/name.git", "owner/" + "x" * 100, "-a/b"):
        assert "no model on the hub can have this name" in client.refusal(f"EmbeddingGemma({name!r})")
    assert server.requests == []


def test_a_file_in_place_of_a_folder_is_said(small: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a file, expected the folder"):
        EmbeddingGemma(small / "model.safetensors")


def test_a_folder_wins_over_an_id(client: Client, server: Hub, small: Path, tmp_path: Path) -> None:
    (tmp_path / NAME).parent.mkdir()
    (tmp_path / NAME).symlink_to(small)
    client.vector(f"os.chdir({str(tmp_path)!r}) or {OPEN}")
    assert server.requests == []


def test_the_command_line_ends_with_one_line_and_status_1(client: Client, server: Hub) -> None:
    command = (
        "import logging; logging.getLogger().handlers.clear(); from gemma_np.cli.main import main; sys.exit(main())"
    )
    gated = {"X-Error-Code": "GatedRepo"}
    server.fault = lambda path: (401, gated) if "/resolve/" in path else None
    for arguments in (["embed", "-m", NAME, TEXT], ["info", NAME], ["verify", NAME]):
        done = client.python(command, *arguments)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith(f"gemma-np: error: {NAME}: it is gated")
        assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("filename", [None, "/cache/blobs/x.incomplete"])
def test_a_disk_that_is_full_is_not_called_the_network(
    number: int, filename: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def download(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), filename)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    where = filename or rf"the cache \({re.escape(huggingface_hub.constants.HF_HUB_CACHE)}\)"
    with pytest.raises(HubError, match=f"cannot be kept: {where}: {os.strerror(number)}; .* HF_HOME") as caught:
        EmbeddingGemma(NAME)
    assert "connection" not in str(caught.value)
    with pytest.raises(HubError, match=f"cannot be kept: {filename or r'the cache .mine.'}: "):
        EmbeddingGemma(NAME, cache_folder="mine")


@pytest.mark.parametrize(
    "error",
    [TimeoutError(110, "Connection timed out"), ConnectionResetError(104, "Connection reset by peer"), OSError()],
)
def test_a_network_that_fails_is_not_called_a_disk(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    said = error.strerror or "OSError"
    with pytest.raises(HubError, match=f"cannot be downloaded: {said}; check the connection"):
        EmbeddingGemma(NAME)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs RLIMIT_FSIZE")
def test_a_download_that_does_not_fit_says_where_it_was_to_go(client: Client, server: Hub) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    message = client.refusal(OPEN, limited)
    assert "its download cannot be kept: " in message
    assert "File too large" in message
    assert "None" not in message
