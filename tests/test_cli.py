"""The command line: what goes to stdout, what to stderr, and with which status it ends.

Most commands run in this process; those that meet signals, pipes or closed streams run in one of their own.
"""

import base64
import errno
import io
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from gemma_np.kernels.choice import choose

from gemma_np import EmbeddingGemma, InputError, __version__
from gemma_np.arrays import Float32
from gemma_np.cli import convert, embed, rank, writers
from gemma_np.cli import main as cli

COMMANDS = ("embed", "similarity", "rank", "info", "warmup", "verify")
TEXTS = ["Mars is red", "", 'a "quoted", text', "naïve 日本 🪐", "  spaces  "]
COMMAND = [sys.executable, "-c", "import sys; from gemma_np.cli.main import main; sys.exit(main())"]
ONE_LINE = re.compile(r"gemma-np: error: [^\n]+\n")


@dataclass
class Done:
    status: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode().splitlines()


Run = Callable[..., Done]


@pytest.fixture
def run(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process: arguments and stdin -> status, stdout, stderr."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def run(*arguments: object, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsysbinary.readouterr()
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit:
            status = int(exit.code or 0)
        sys.stdout.flush()
        out, err = capsysbinary.readouterr()
        return Done(status, out, err.decode())

    return run


@pytest.fixture(scope="module")
def model(small: Path) -> EmbeddingGemma:
    return EmbeddingGemma(small)


@pytest.fixture
def process(small: Path) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Starts a command in a process of its own, which cannot outlive the test, whatever it waits for."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: object, shell: str | None = None, **options: Any) -> "subprocess.Popen[bytes]":
        command = [*COMMAND, *map(str, arguments)]
        if shell is not None:  # a shell can redirect and close what Popen cannot
            command = ["sh", "-c", f'exec "$@" {shell}', "sh", *command]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        environment |= {"HF_HUB_OFFLINE": "1", **options.pop("env", {})}
        popen = subprocess.Popen(command, **{**pipes, "env": environment, **options})
        watchdog = threading.Timer(120, popen.kill)
        watchdog.daemon = True
        watchdog.start()
        started.append(popen)
        return popen

    yield start
    for popen in started:
        popen.kill()
        popen.wait()
        for pipe in (popen.stdin, popen.stdout, popen.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def vectors_of(format: str, out: bytes) -> Float32:
    """The vectors that a format holds."""
    if format == "npy":
        loaded: Float32 = np.load(io.BytesIO(out), allow_pickle=False)
        return loaded
    lines = out.decode().splitlines()
    if format == "json":
        rows = json.loads(out)
    elif format == "jsonl":
        rows = [json.loads(line)["embedding"] for line in lines]
    elif format == "csv":
        assert re.fullmatch("# gemma_np fingerprint [0-9a-f]{64}", lines[0])
        rows = [line.split(",") for line in lines[1:]]
    else:
        return np.stack([np.frombuffer(base64.b64decode(line, validate=True), "<f4") for line in lines])
    return np.array(rows, dtype=np.float64).astype(np.float32)


def same_bits(a: Float32, b: Float32) -> bool:
    return a.dtype == b.dtype == np.float32 and a.shape == b.shape and a.tobytes() == b.tobytes()


# Embed


@pytest.mark.parametrize("format", embed.FORMATS)
def test_every_format_holds_the_vectors_of_encode_bit_for_bit(
    run: Run, small: Path, model: EmbeddingGemma, format: str
) -> None:
    done = run("embed", "-m", small, "--format", format, *TEXTS)
    assert (done.status, done.err) == (0, "")
    assert same_bits(vectors_of(format, done.out), model.encode(TEXTS))


@pytest.mark.parametrize("format", embed.FORMATS)
def test_o_writes_the_same_bytes_as_stdout(run: Run, small: Path, tmp_path: Path, format: str) -> None:
    shown = run("embed", "-m", small, "--format", format, *TEXTS)
    done = run("embed", "-m", small, "--format", format, *TEXTS, "-o", tmp_path / "out")
    assert (done.status, done.out, done.err) == (0, b"", "")
    assert (tmp_path / "out").read_bytes() == shown.out
    assert os.listdir(tmp_path) == ["out"]


def test_json_is_the_default_and_jsonl_holds_the_texts(run: Run, small: Path) -> None:
    assert run("embed", "-m", small, "a").out == run("embed", "-m", small, "--format", "json", "a").out
    done = run("embed", "-m", small, "--format", "jsonl", *TEXTS)
    assert [json.loads(line)["text"] for line in done.lines] == TEXTS


def test_texts_come_as_arguments_from_a_file_or_from_stdin(run: Run, small: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_bytes("\n".join(TEXTS).encode())
    expected = run("embed", "-m", small, *TEXTS).out
    assert run("embed", "-m", small, "-i", file).out == expected
    assert run("embed", "-m", small, stdin=file.read_bytes()).out == expected
    assert run("embed", "-m", small, "-i", "-", stdin=file.read_bytes()).out == expected


def test_a_line_is_a_text_and_a_blank_line_an_empty_one(run: Run, small: Path) -> None:
    for stdin, texts in (
        (b"a\n\nb\n", ["a", "", "b"]),
        (b"a\r\nb", ["a", "b"]),
        (b"\n", [""]),
        (b" a\t\n", [" a\t"]),
        ("a\u2028b\x85c\rd\n".encode(), ["a\u2028b\x85c\rd"]),  # only \n ends a line
        (b"", []),
    ):
        done = run("embed", "-m", small, "--format", "jsonl", stdin=stdin)
        assert done.status == 0
        assert [json.loads(line)["text"] for line in done.out.decode().split("\n")[:-1]] == texts


@pytest.mark.parametrize(
    ("format", "nothing"), [("json", b"[]\n"), ("jsonl", b""), ("csv", None), ("base64", b""), ("npy", None)]
)
def test_no_texts_are_no_vectors(
    run: Run, small: Path, model: EmbeddingGemma, format: str, nothing: bytes | None
) -> None:
    done = run("embed", "-m", small, "--format", format, stdin=b"")
    assert (done.status, done.err) == (0, "")
    if format == "csv":
        assert vectors_of("csv", done.out).shape == (0,)
    elif nothing is not None:
        assert done.out == nothing
    else:
        assert vectors_of("npy", done.out).shape == (0, model.get_embedding_dimension())
        assert vectors_of("npy", run("embed", "-m", small, "--format", "npy", "--dim", 8).out).shape == (0, 8)


@pytest.mark.parametrize("name", ["query", "STS", "retrieval_document", "fact_checking"])
def test_prompt_name_is_the_prompt_of_encode(run: Run, small: Path, model: EmbeddingGemma, name: str) -> None:
    done = run("embed", "-m", small, "--prompt-name", name, *TEXTS)
    assert same_bits(vectors_of("json", done.out), model.encode(TEXTS, prompt_name=name))


def test_title_is_the_title_of_encode_document(run: Run, small: Path, model: EmbeddingGemma) -> None:
    done = run("embed", "-m", small, "--title", "Planets", *TEXTS)
    assert same_bits(vectors_of("json", done.out), model.encode_document(TEXTS, titles=["Planets"] * len(TEXTS)))
    done = run("embed", "-m", small, "--title", "", *TEXTS)  # a script's empty variable is still a document's title
    assert same_bits(vectors_of("json", done.out), model.encode_document(TEXTS))
    done = run("embed", "-m", small, "--title", "Planets", "--prompt-name", "query", "a")
    assert done.status == 2
    assert "a title needs the document prompt" in done.err


def test_dim_is_the_truncation_of_encode(run: Run, small: Path, model: EmbeddingGemma) -> None:
    for format in embed.FORMATS:
        done = run("embed", "-m", small, "--dim", 16, "--format", format, *TEXTS)
        assert same_bits(vectors_of(format, done.out), model.encode(TEXTS, truncate_dim=16))


def test_threads_change_no_text(run: Run, small: Path) -> None:
    done = run("embed", "-m", small, "--threads", 1, "--format", "jsonl", *TEXTS)
    assert (done.status, done.err) == (0, "")
    assert [json.loads(line)["text"] for line in done.lines] == TEXTS


def test_options_may_stand_between_the_texts(run: Run, small: Path) -> None:
    expected = run("embed", "-m", small, "--dim", 8, "a", "b", "c").out
    assert run("embed", "a", "-m", small, "b", "--dim", 8, "c").out == expected
    assert run("rank", "a", "-m", small, "b", "--top", 2, "c").out == run("rank", "-m", small, "a", "b", "c").out
    assert run("similarity", "a", "-m", small, "b").status == 0


def test_after_two_dashes_all_words_are_texts(run: Run, small: Path) -> None:
    done = run("embed", "-m", small, "--format", "jsonl", "--", "-m", "--", "--dim")
    assert [json.loads(line)["text"] for line in done.lines] == ["-m", "--", "--dim"]
    done = run("embed", "x", "-m", small, "--format", "jsonl", "--", "-m")
    assert [json.loads(line)["text"] for line in done.lines] == ["x", "-m"]


def test_a_warning_goes_to_stderr_as_one_line(run: Run, small: Path) -> None:
    done = run(
        "embed", "-m", small, "--prompt-name", "query", "--format", "base64", "task: search result | query: Mars"
    )
    assert done.status == 0
    assert len(done.lines) == 1
    assert re.fullmatch(r"gemma-np: warning: [^\n]+ begins with the prompt already[^\n]+\n", done.err)


# Streams


@pytest.mark.parametrize("format", ["json", "jsonl", "csv", "base64"])
def test_the_first_vectors_come_before_the_last_texts(process: Any, small: Path, format: str) -> None:
    running = process("embed", "-m", small, "--dim", 4, "--format", format)
    running.stdin.write(b"a text\n" * 32)  # a batch
    running.stdin.flush()
    first = running.stdout.readline()  # would wait for ever if it wanted stdin to end
    running.stdin.write(b"the last\n")
    running.stdin.close()
    assert len(vectors_of(format, first + running.stdout.read())) == 33
    assert running.stderr.read() == b""
    assert running.wait() == 0


def test_a_reader_that_has_seen_enough_is_no_error(process: Any, small: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").write_bytes(b"a text\n" * 400)  # more output than a pipe holds
    running = process("embed", "-m", small, "--format", "jsonl", "-i", tmp_path / "texts")
    assert running.stdout.readline()
    running.stdout.close()
    assert running.stderr.read() == b""
    assert running.wait() == 0


def test_a_table_without_a_reader_is_no_error(process: Any, small: Path) -> None:
    running = process("rank", "-m", small, "query")
    running.stdout.close()
    running.stdin.write(b"a text\n")
    running.stdin.close()
    assert running.stderr.read() == b""
    assert running.wait() == 0


STOPS = [
    (signal.SIGINT, 130, b"gemma-np: interrupted\n"),
    (signal.SIGTERM, 143, b""),
    (signal.SIGHUP, 129, b""),
    (signal.SIGXCPU, 152, b""),
]


def heard() -> None:
    """A process in the background may have been started with signals ignored."""
    for number, *_ in STOPS:
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "status", "said"), STOPS)
def test_a_run_that_is_stopped_leaves_an_existing_file_as_it_was(
    process: Any, small: Path, tmp_path: Path, number: int, status: int, said: bytes
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("from yesterday")
    running = process(
        *("embed", "-m", small, "--format", "jsonl", "-o", out),
        preexec_fn=heard,
    )
    running.stdin.write(b"a text\n" * 32)
    running.stdin.flush()
    while running.poll() is None and not [path for path in tmp_path.glob(".*") if path.stat().st_size]:
        time.sleep(0.01)  # until vectors have been written; from then on it waits for more texts
    running.send_signal(number)
    _, err = running.communicate()
    assert (running.returncode, err) == (status, said)
    assert os.listdir(tmp_path) == ["out.jsonl"]
    assert out.read_text() == "from yesterday"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_that_is_ignored_stays_ignored(process: Any, small: Path, tmp_path: Path, number: int) -> None:
    """As SIGHUP under nohup: who logs out does not stop the run."""
    running = process(
        *("embed", "-m", small, "--format", "jsonl", "-o", tmp_path / "out"),
        preexec_fn=lambda: signal.signal(number, signal.SIG_IGN),
    )
    running.stdin.write(b"a text\n" * 32)
    running.stdin.flush()
    while running.poll() is None and not [path for path in tmp_path.glob(".*") if path.stat().st_size]:
        time.sleep(0.01)
    running.send_signal(number)
    out, err = running.communicate(b"the last\n")
    assert (running.returncode, out, err) == (0, b"", b"")
    assert (tmp_path / "out").read_bytes().count(b"\n") == 33


# Runs a command, and waits for a signal as soon as there is something half-written.
HALF_WRITTEN = """
import sys, time
from gemma_np.files import writing
from gemma_np.checkpoint import saving
from gemma_np.gguf import export
def half(*_):
    print("half-written", flush=True)
    time.sleep(100)
saving.write_safetensors = saving.write_float = export.model_metadata = half
from gemma_np.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize(("number", "status", "said"), STOPS)
@pytest.mark.parametrize("command", ["quantize", "dequantize", "export-gguf"])
def test_a_conversion_that_is_stopped_leaves_nothing(
    small: Path, tmp_path: Path, command: str, number: int, status: int, said: bytes
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HALF_WRITTEN, command, str(small), "-o", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heard,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"half-written\n"
        assert os.listdir(tmp_path) != []
        running.send_signal(number)
        _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (status, said)
    assert os.listdir(tmp_path) == []


def test_a_second_signal_does_not_stop_the_tidying_up(small: Path, tmp_path: Path) -> None:
    """A shell that is hung up passes it on, and then the system sends it again."""
    code = HALF_WRITTEN.replace(
        "from gemma_np.cli",
        "import shutil, signal; remove = shutil.rmtree\n"
        "shutil.rmtree = lambda *a, **k: (signal.raise_signal(signal.SIGHUP), remove(*a, **k))\n"
        "def half(*_): signal.raise_signal(signal.SIGHUP)\n"
        "saving.write_safetensors = half\n"
        "from gemma_np.cli",
    )
    command = [sys.executable, "-c", code, "quantize", str(small), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, preexec_fn=heard)
    assert (done.returncode, done.stdout, done.stderr) == (129, b"", b"")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("redirection", [">/dev/full", "-o /dev/full"])
@pytest.mark.parametrize("format", embed.FORMATS)
def test_a_full_disk_is_one_line(process: Any, small: Path, redirection: str, format: str) -> None:
    running = process("embed", "-m", small, "--format", format, *TEXTS, shell=redirection)
    out, err = running.communicate()
    assert (running.returncode, out) == (1, b"")
    assert re.fullmatch(rb"gemma-np: error: (stdout|/dev/full): No space left on device\n", err)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line_for_every_command(process: Any, small: Path) -> None:
    for arguments in (["similarity", "-m", small, "a", "b"], ["rank", "-m", small, "a", "b"], ["info", small]):
        for unbuffered in ("", "1"):  # the one fails when all is printed, the other while it is
            running = process(*arguments, shell=">/dev/full", env={"PYTHONUNBUFFERED": unbuffered})
            _, err = running.communicate()
            assert (running.returncode, err) == (1, b"gemma-np: error: stdout: No space left on device\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["embed", "--help"]])
def test_help_that_cannot_be_written_is_one_line(process: Any, words: list[str]) -> None:
    for unbuffered in ("", "1"):
        running = process(*words, shell=">/dev/full", env={"PYTHONUNBUFFERED": unbuffered})
        _, err = running.communicate()
        assert (running.returncode, err) == (1, b"gemma-np: error: stdout: No space left on device\n")


def test_help_without_a_reader_is_no_error(process: Any) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    running = process("embed", "--help", stdout=writer)
    os.close(writer)
    assert (running.communicate()[1], running.returncode) == (b"", 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_full_disks_on_both_sides_are_a_status(process: Any, small: Path) -> None:
    running = process("similarity", "-m", small, "a", "b", shell=">/dev/full 2>/dev/full")
    assert running.communicate() == (b"", b"")
    assert running.returncode == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "stdout: No space left on device"),
        (OSError(errno.EIO, "Input/output error"), "gemma-np similarity: Input/output error"),
        (OSError(errno.EACCES, "Permission denied", "a/file"), "a/file: Permission denied"),
        (OSError(errno.EACCES, "Permission denied", b"a/file"), "a/file: Permission denied"),
        (OSError("out of luck"), "gemma-np similarity: out of luck"),
        (OSError(), "gemma-np similarity: OSError"),
        (TimeoutError(), "gemma-np similarity: TimeoutError"),
    ],
)
def test_an_error_of_the_system_says_where(
    run: Run, small: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, said: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(rank, "loaded", fail)
    done = run("similarity", "-m", small, "a", "b")
    assert (done.status, done.out, done.err) == (1, b"", f"gemma-np: error: {said}\n")


def test_closed_streams_are_no_crash(process: Any, small: Path) -> None:
    for shell, arguments, expected in (
        ("<&-", ["embed", "-m", small], (0, b"[]\n", b"")),
        (">&-", ["embed", "-m", small, "a"], (1, b"", b"gemma-np: error: stdout is closed; ")),
        (">&-", ["similarity", "-m", small, "a", "b"], (1, b"", b"gemma-np: error: stdout is closed; ")),
        ("2>&-", ["embed", "-m", small, "--dim", 0, "a"], (2, b"", b"")),
        ("2>&-", ["embed", "-m", small, "--prompt-name", "bogus", "a"], (2, b"", b"")),
    ):
        running = process(*arguments, shell=shell)
        out, err = running.communicate()
        assert (running.returncode, out) == expected[:2]
        assert err.startswith(expected[2])
        assert err.count(b"\n") == (1 if expected[2] else 0)


# Files


def test_a_full_disk_leaves_an_existing_file_as_it_was(
    run: Run, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(file: IO[bytes], batches: writers.Batches, about: writers.About) -> None:
        file.write(b"[0.1, 0.2")
        file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setitem(writers.WRITERS, "json", fill)
    out = tmp_path / "out.json"
    out.write_text("from yesterday")
    done = run("embed", "-m", small, "-o", out, "a")
    assert (done.status, done.out) == (1, b"")
    assert done.err == f"gemma-np: error: {out}: No space left on device\n"
    assert os.listdir(tmp_path) == ["out.json"]
    assert out.read_text() == "from yesterday"


def test_an_error_in_mid_run_leaves_an_existing_file_as_it_was(run: Run, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("from yesterday")
    done = run("embed", "-m", small, "--format", "jsonl", "-o", out, stdin=b"a\n" * 40 + b"b\xff\n")
    assert (done.status, done.out) == (2, b"")
    assert done.err == (
        "gemma-np: error: line 41 of stdin is not UTF-8 from its byte 2 on; convert the file; nothing had been "
        "written\n"
    )
    assert os.listdir(tmp_path) == ["out.jsonl"]
    assert out.read_text() == "from yesterday"


def test_o_keeps_links_and_permissions(run: Run, small: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    real, link = tmp_path / "folder" / "real.csv", tmp_path / "link.csv"
    real.touch(0o640)
    link.symlink_to(real)
    assert run("embed", "-m", small, "--format", "csv", "-o", link, "a").status == 0
    assert link.is_symlink()
    assert real.read_bytes().count(b"\n") == 2  # the model's fingerprint, and the vector
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    umask = os.umask(0o027)
    try:
        run("embed", "-m", small, "-o", tmp_path / "new", "a")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_o_may_be_the_file_of_the_texts(run: Run, small: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_text("a\nb\n")
    assert run("embed", "-m", small, "--format", "csv", "-i", file, "-o", file).status == 0
    assert file.read_bytes() == run("embed", "-m", small, "--format", "csv", "a", "b").out


def test_output_that_cannot_be_written_is_named(run: Run, small: Path, tmp_path: Path) -> None:
    for out, why in ((tmp_path / "no" / "out", "No such file or directory"), (tmp_path, "Is a directory")):
        done = run("embed", "-m", small, "-o", out, "a")
        assert (done.status, done.out, done.err) == (1, b"", f"gemma-np: error: {out}: {why}\n")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", [["embed", "a"], ["export-gguf"]])
@pytest.mark.parametrize("name", ["x/", "x/.", "..", ""])
def test_a_folder_is_no_name_for_a_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], name: str
) -> None:
    """`-o x/` wrote a file named x."""
    monkeypatch.chdir(tmp_path)
    done = run(*command, "-m", "/no/model", "-o", name)
    assert (done.status, done.out) == (2, b"")
    assert f"argument -o/--output: {name!r} names a folder, expected a file; see gemma-np {command[0]}" in done.err
    assert os.listdir(tmp_path) == []


def test_input_that_cannot_be_read_is_named_before_the_model_is_loaded(run: Run, tmp_path: Path) -> None:
    for command in (["embed"], ["rank", "query"]):
        for file, why in ((tmp_path / "no", "No such file or directory"), (tmp_path, "Is a directory")):
            done = run(*command, "-m", "/no/model", "-i", file)
            assert (done.status, done.out, done.err) == (1, b"", f"gemma-np: error: {file}: {why}\n")


def test_a_line_that_is_not_utf8_is_named(run: Run, small: Path, tmp_path: Path) -> None:
    file = tmp_path / "latin1.txt"
    file.write_bytes("plain\nnaïve\n".encode("latin-1"))
    for command, written in ((["embed"], "; nothing had been written"), (["rank", "query"], "")):
        done = run(*command, "-m", small, "-i", file)
        assert done.status == 2
        said = f"line 2 of {file} is not UTF-8 from its byte 3 on; convert the file{written}"
        assert done.err == f"gemma-np: error: {said}\n"


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model takes no text that holds "bad": a stand-in for what only a model can know."""
    tokenized = EmbeddingGemma.tokenized

    def refuse(self: EmbeddingGemma, texts: list[str], prompts: Any = "", first: int = 0, **more: Any) -> Any:
        for i, text in enumerate(texts, first):
            if "bad" in text:
                raise InputError(f"text {i} holds something bad; take it out", text=i)
        return tokenized(self, texts, prompts, first, **more)

    monkeypatch.setattr(EmbeddingGemma, "tokenized", refuse)


BAD = "holds something bad; take it out"


@pytest.mark.usefixtures("picky")
@pytest.mark.parametrize("before", [0, 1, 16, 31, 32, 33, 100])
def test_a_bad_line_is_named_as_people_count(run: Run, small: Path, tmp_path: Path, before: int) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"a\n" * before + b"bad\n" + b"a\n" * 3)
    where = f"line {before + 1} of {file}"
    done = run("rank", "-m", small, "query", "-i", file)
    assert (done.status, done.out, done.err) == (2, b"", f"gemma-np: error: {where} {BAD}\n")
    done = run("embed", "-m", small, "-i", file, "-o", tmp_path / "out", "--format", "csv")
    assert (done.status, done.out) == (2, b"")
    assert done.err == f"gemma-np: error: {where} {BAD}; nothing had been written\n"
    assert os.listdir(tmp_path) == ["lines"]


@pytest.mark.usefixtures("picky")
@pytest.mark.parametrize("format", embed.FORMATS)
def test_a_bad_line_says_what_had_been_written_to_stdout(run: Run, small: Path, format: str) -> None:
    done = run("embed", "-m", small, "--format", format, "--dim", 4, stdin=b"a\n" * 70 + b"bad\n")
    written = len(re.findall(rb"\n", done.out)) + (format == "json")  # its last line has no end yet
    assert written - (format == "csv") == (0 if format == "npy" else 64)  # two batches, and a comment
    assert done.status == 2
    said = "nothing" if format == "npy" else "the first 64 vectors"
    assert done.err == f"gemma-np: error: line 71 of stdin {BAD}; {said} had been written\n"


@pytest.mark.usefixtures("picky")
def test_a_bad_argument_is_named_as_people_count(run: Run, small: Path) -> None:
    for words, where, rest in (
        (["embed", "a", "bad"], "the 2nd TEXT", "; nothing had been written"),
        (["embed", *["a"] * 10, "bad"], "the 11th TEXT", "; nothing had been written"),
        (["rank", "query", "a", "b", "bad"], "the 3rd TEXT", ""),
        (["rank", "bad", "a"], "QUERY", ""),
        (["similarity", "bad", "b"], "A", ""),
        (["similarity", "a", "bad"], "B", ""),
    ):
        done = run(*words, "-m", small)
        assert (done.status, done.out, done.err) == (2, b"", f"gemma-np: error: {where} {BAD}{rest}\n")


def test_an_argument_that_is_not_utf8_is_refused(process: Any, small: Path) -> None:
    running = process("embed", "-m", small, "fine", shell="\"$(printf 'na\\357ve')\"")
    out, err = running.communicate()
    assert (running.returncode, out) == (2, b"")
    assert err.startswith(b"gemma-np: error: the 2nd TEXT holds the lone surrogate U+DCEF at character 2, ")
    assert err.count(b"\n") == 1


def test_warnings_name_texts_as_people_count_and_come_once(run: Run, small: Path, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    long = "word " * 3000
    file.write_text(f"a\n{long}\nb\n{long}\n")
    cut = "a text had more than 2,048 tokens and was cut there"
    for words, said in (
        (["embed", "-i", file], [f"lines 2, 4 of {file}: {cut}"]),
        (["rank", "query", "-i", file], [f"lines 2, 4 of {file}: {cut}"]),
        (["embed", "a", long], [f"the 2nd TEXT: {cut}"]),
        (["rank", long, "a", long], [f"QUERY: {cut}", f"the 2nd TEXT: {cut}"]),
        (["similarity", long, "b"], [f"A: {cut}"]),
        (["similarity", long, long], [f"A, B: {cut}"]),
        (
            ["embed", *[long] * 12],
            [f"the 1st, 2nd, 3rd, 4th, 5th, 6th, 7th, 8th, 9th, 10th, ... (12 in all) TEXT: {cut}"],
        ),
    ):
        done = run(*words, "-m", small)
        assert done.status == 0
        assert done.err.splitlines() == [f"gemma-np: warning: {line}" for line in said]


def test_a_warning_is_printed_once_as_one_line(run: Run, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: object) -> None:
        for _ in range(3):
            exec("import warnings; warnings.warn('over\\n  there')", {})  # as from another place each time
        raise InputError("enough")

    monkeypatch.setattr(embed, "loaded", load)
    done = run("embed", "-m", small, "a")
    assert done.err == "gemma-np: warning: over there\ngemma-np: error: enough\n"


# Similarity and rank


def test_similarity_is_one_number(run: Run, small: Path, model: EmbeddingGemma) -> None:
    for options, settings in (
        ([], {"prompt_name": "STS"}),
        (["--prompt-name", "query"], {"prompt_name": "query"}),
        (["--dim", 8], {"prompt_name": "STS", "truncate_dim": 8}),
    ):
        a, b = model.encode(["a cat", "a kitten"], **settings)  # type: ignore[arg-type]
        done = run("similarity", "-m", small, *options, "a cat", "a kitten")
        assert (done.status, done.err) == (0, "")
        assert done.out == f"{model.similarity(a, b)[0, 0]:.4f}\n".encode()


def test_similarity_works_without_the_sts_prompt(run: Run, writable: Path) -> None:
    (writable / "config_sentence_transformers.json").unlink()
    assert run("similarity", "-m", writable, "a", "a").out == b"1.0000\n"


def ranked(lines: list[str]) -> list[tuple[int, float, str]]:
    """The table of `rank`: place, score, text."""
    rows = [re.fullmatch(r" *(\d+) +(-?\d\.\d{4})  (.*)", line) for line in lines]
    assert all(rows)
    return [(int(row[1]), float(row[2]), row[3]) for row in rows if row]


def test_rank_is_a_table_with_the_best_first(run: Run, small: Path, model: EmbeddingGemma) -> None:
    texts = [f"text {i} of many" for i in range(12)]
    scores = model.similarity(model.encode_query("many texts"), model.encode_document(texts))[0]
    best = np.argsort(-scores, kind="stable")
    done = run("rank", "-m", small, "many texts", *texts)
    assert (done.status, done.err) == (0, "")
    assert ranked(done.lines) == [(n, float(f"{scores[i]:.4f}"), texts[i]) for n, i in enumerate(best, 1)]
    cut = model.similarity(
        model.encode_query("many texts", truncate_dim=8), model.encode_document(texts, truncate_dim=8)
    )
    done = run("rank", "-m", small, "--dim", 8, "many texts", *texts)
    assert [text for _, _, text in ranked(done.lines)] == [texts[i] for i in np.argsort(-cut[0], kind="stable")]


def test_rank_takes_a_file_or_stdin_and_prints_the_top(run: Run, small: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_text("".join(f"{text}\n" for text in TEXTS))
    lines = run("rank", "-m", small, "red", *TEXTS).lines
    assert len(lines) == len(TEXTS)
    assert run("rank", "-m", small, "red", "-i", file).lines == lines
    assert run("rank", "-m", small, "red", stdin=file.read_bytes()).lines == lines
    assert run("rank", "-m", small, "red", "-i", file, "--top", 2).lines == lines[:2]
    assert run("rank", "-m", small, "red", "-i", file, "--top", 99).lines == lines
    assert run("rank", "-m", small, "red", stdin=b"").lines == []


def test_equal_texts_keep_their_order(run: Run, small: Path) -> None:
    lines = run("rank", "-m", small, "a", "b", "a", "b", "b").lines
    assert sorted(text for _, _, text in ranked(lines)) == ["a", "b", "b", "b"]
    assert [place for place, _, _ in ranked(lines)] == [1, 2, 3, 4]


def test_letters_that_the_terminal_lacks_are_escaped(process: Any, small: Path) -> None:
    out, err = process("rank", "-m", small, "q", "日本", env={"PYTHONIOENCODING": "ascii"}).communicate()
    assert err == b""
    assert out.endswith(b"  \\u65e5\\u672c\n")


# Warmup


def test_warmup_is_one_line_with_column_threads_and_format(
    run: Run, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("warmup", small)
    done = run("warmup", small, "--threads", 1)
    assert (done.status, done.err) == (0, "")
    assert done.lines == [f"ready: {choose().name} with 1 threads, float32"]
    monkeypatch.setenv("GEMMA_NP_KERNELS", "numpy")
    done = run("warmup", small)
    assert (done.status, done.err) == (0, "")
    assert done.lines == [f"nothing to compile: NumPy runs {small}, because GEMMA_NP_KERNELS asks for it"]


# Usage and failure


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bogus"],
        ["embed", "--bogus", "a"],
        ["embed", "a", "--format", "xml"],
        ["embed", "a", "--dim", "many"],
        ["embed", "a", "--dim", "0"],
        ["embed", "a", "--dim", "-4"],
        ["embed", "a", "--dim"],
        ["embed", "a", "--prompt-name", "bogus"],
        ["embed", "--prompt-name", "bogus"],
        ["embed", "a", "-i", "file"],
        ["embed", "a", "--threads", "1.5"],
        ["similarity", "a"],
        ["similarity", "a", "b", "c"],
        ["similarity", "a", "b", "--prompt-name", "bogus"],
        ["similarity", "a", "b", "--dim", "0"],
        ["rank"],
        ["rank", "a", "b", "--top", "0"],
        ["rank", "a", "b", "--min", "2"],
        ["rank", "a", "b", "--vectors", "file"],
        ["split", "--max-tokens", "0"],
        ["embed", "a", "--errors", "ignore"],
        ["rank", "a", "b", "-i", "file"],
        ["info", "a", "b"],
        ["info", "a"],
        ["warmup", "a"],
        ["verify", "a"],
    ],
)
def test_usage_errors_are_one_line_and_status_2(run: Run, small: Path, arguments: list[str]) -> None:
    done = run(*arguments, *(["-m", small] if arguments and arguments[0] in COMMANDS else []))
    assert (done.status, done.out) == (2, b"")
    assert ONE_LINE.fullmatch(done.err)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", [["--threads", "0"], ["--quantization", "q9_0"]])
def test_every_command_refuses_what_it_cannot_honour(run: Run, small: Path, command: str, option: list[str]) -> None:
    texts = {"embed": ["a"], "similarity": ["a", "b"], "rank": ["a", "b"]}.get(command, [])
    done = run(command, "-m", small, *option, *texts)
    assert (done.status, done.out) == (2, b"")
    assert ONE_LINE.fullmatch(done.err)
    assert option[0] in done.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_a_model_and_says_why_it_cannot_be_opened(
    run: Run, small: Path, tmp_path: Path, command: str
) -> None:
    texts = {"embed": ["a"], "similarity": ["a", "b"], "rank": ["a", "b"]}.get(command, [])
    for model, why in (
        (tmp_path / "no" / "model", "is neither a folder nor a hub id"),
        (tmp_path, "no config.json|config.json is missing|modules.json is missing"),
        (small / "config.json", "is a file, expected the folder"),
        ("nobody/nothing", "not \\(or not completely\\) in the cache"),
    ):
        done = run(command, "--model", model, *texts)
        assert done.status == 1
        assert ONE_LINE.fullmatch(done.err)
        assert re.search(why, done.err)


def test_a_terminal_without_texts_is_told_how(run: Run, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(io, "TextIOWrapper", Terminal)
    done = run("embed", "-m", small)
    assert done.status == 2
    assert "no texts; give them as arguments, with -i FILE, or on stdin" in done.err


def test_too_little_memory_is_one_line(run: Run, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(embed, "loaded", full)
    done = run("embed", "-m", small, "a")
    assert (done.status, done.out, done.err) == (1, b"", "gemma-np: error: there is not enough memory\n")


def test_a_damaged_model_is_one_line_for_every_command(run: Run, writable: Path) -> None:
    content = (writable / "model.safetensors").read_bytes()
    (writable / "model.safetensors").write_bytes(content[: len(content) // 2])
    for arguments in (["embed", "a"], ["similarity", "a", "b"], ["rank", "a", "b"], ["info"], ["warmup"], ["verify"]):
        done = run(arguments[0], "-m", writable, *arguments[1:])
        assert done.status == 1
        assert ONE_LINE.fullmatch(done.err)
        assert "damaged" in done.err


# Help


def test_version_is_data(run: Run) -> None:
    assert run("--version").out == f"gemma-np {__version__}\n".encode()


@pytest.mark.parametrize("command", [None, *COMMANDS])
@pytest.mark.parametrize("width", ["40", "80"])
def test_every_help_ends_with_an_example_that_runs(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str | None, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("GEMMA_NP_MODEL", "nano")
    done = run(*([command] if command else []), "--help")
    assert (done.status, done.err) == (0, "")
    example = done.lines[-1]
    assert example.startswith(f"example:  gemma-np {command or 'rank'} ")
    words = shlex.split(example)[2:]
    if command == "verify":  # the only model that it is for
        assert words == ["verify", "google/embeddinggemma-300m"]
        return
    done = run(*words)
    assert (done.status, done.err) == (0, "")
    assert done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_names_the_common_options(run: Run, command: str) -> None:
    text = run(command, "--help").out.decode()
    for option in ("-m MODEL", "--model MODEL", "--threads N", "--quantization FORMAT"):
        assert option in text


def test_choices_are_those_of_the_code_that_honours_them() -> None:
    """They are typed twice, because the originals come with NumPy."""
    from gemma_np.gguf import export
    from gemma_np.weights import quantize

    assert tuple(writers.WRITERS) == embed.FORMATS
    assert convert.GGUF_FORMATS == export.MATRIX_TYPES
    assert convert.QUANTIZATIONS == quantize.QUANTIZATIONS


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["embed", "--help"], ["embed", "--bogus"], ["bogus"]])
def test_help_and_mistakes_do_not_wait_for_numpy(words: list[str]) -> None:
    code = (
        "import sys; from gemma_np.cli.main import parsed\n"
        f"try: parsed({words!r})\n"
        "except SystemExit: sys.exit('numpy' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_stands_in_the_readme(command: str) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert re.search(rf"^    gemma-np {command} ", readme, re.MULTILINE)


def test_the_installed_command_is_this_one() -> None:
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="console_scripts", name="gemma-np")
    assert entry.load() is cli.main
