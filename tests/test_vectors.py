"""Files of vectors, as `gemma-np embed` writes them, read back, compared and ranked; and what is told of bad ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_np import EmbeddingGemma, GemmaError, InputError
from gemma_np.cli.main import main
from gemma_np.cli.vectors import read_vectors

Capture = pytest.CaptureFixture[str]
LINES = ["Mars is red", "Venus is hot", "Mars is red", "", 'a "quoted" text']


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


@pytest.fixture
def model(small: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddingGemma:
    monkeypatch.setenv("GEMMA_NP_MODEL", str(small))
    return EmbeddingGemma(small)


def embedded(lines: Path, name: str, *options: str) -> str:
    out = lines.with_name(name)
    assert main(["embed", "-i", str(lines), "--format", out.suffix[1:], "-o", str(out), *options]) == 0
    return str(out)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.npy"])
def test_what_embed_writes_comes_back(model: EmbeddingGemma, lines: Path, name: str) -> None:
    found = read_vectors(embedded(lines, name, "--prompt-name", "document"))
    np.testing.assert_array_equal(found.rows, model.encode_document(LINES))
    assert found.fingerprint == (None if name == "a.npy" else model.fingerprint())
    assert found.texts == (LINES if name == "a.jsonl" else [])


def test_jsonl_tells_of_each_text(model: EmbeddingGemma, lines: Path, capsys: Capture) -> None:
    lines.write_bytes(b"fine\nbad \xff line\n" + b"word " * 3000 + b"\n")
    path = embedded(lines, "a.jsonl", "--errors", "mark")
    fine, bad, long = [json.loads(line) for line in Path(path).read_text().splitlines()]
    assert (fine["tokens"], fine["truncated"], "error" in fine) == (model.count_tokens("fine"), False, False)
    assert (bad["embedding"], bad["tokens"]) == (None, 0)
    assert "text 1 holds the lone surrogate" in bad["error"]
    assert (long["truncated"], long["tokens"]) == (True, model.count_tokens("word " * 3000))
    err = capsys.readouterr().err
    assert f"line 2 of {lines}: a text has no vector\n" in err
    assert f"line 3 of {lines}: a text had more than" in err
    with pytest.raises(InputError, match=r"line 2 of .*a\.jsonl has no vector \(text 1 holds"):
        read_vectors(path)


@pytest.mark.parametrize(("format", "marked"), [("json", "null"), ("csv", "nan,nan"), ("npy", None)])
def test_other_formats_mark_too(model: EmbeddingGemma, lines: Path, format: str, marked: str | None) -> None:
    lines.write_bytes(b"fine\n\xff\n")
    path = Path(embedded(lines, f"a.{format}", "--errors", "mark"))
    if marked is None:
        assert np.isnan(np.load(path)).all(axis=1).tolist() == [False, True]
        with pytest.raises(InputError, match="vector 2 is not finite"):
            read_vectors(str(path))
    else:
        assert marked in path.read_text()


def test_csv_is_what_numpy_and_pandas_read(model: EmbeddingGemma, lines: Path) -> None:
    path = embedded(lines, "a.csv")
    np.testing.assert_array_equal(np.loadtxt(path, np.float32, delimiter=","), model.encode(LINES))
    pandas = pytest.importorskip("pandas", reason="needs the extra `parity`: pandas")
    assert pandas.read_csv(path, comment="#", header=None).shape == (5, 64)


def test_ranking_a_file_is_ranking_its_texts(model: EmbeddingGemma, lines: Path, capsys: Capture) -> None:
    main(["rank", "red planet", "-i", str(lines)])
    expected = capsys.readouterr().out
    assert main(["rank", "red planet", "--vectors", embedded(lines, "a.jsonl", "--prompt-name", "document")]) == 0
    assert capsys.readouterr().out == expected


def test_of_equal_scores_the_first_is_first(model: EmbeddingGemma, lines: Path, capsys: Capture) -> None:
    """A matrix product gives equal rows unequal scores, by where they stand; 67 rows are in several of its blocks."""
    path = lines.with_name("a.npy")
    row = np.random.default_rng(0).normal(size=64).astype(np.float32)
    np.save(path, np.tile(row, (67, 1)))
    assert main(["rank", "red planet", "--vectors", str(path)]) == 0
    rows = [int(line.split(" row ")[1].split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert rows == list(range(1, 68))


def test_low_scores_are_hidden_and_calibrated(model: EmbeddingGemma, lines: Path, capsys: Capture) -> None:
    assert main(["rank", "red planet", "-i", str(lines), "--calibrate"]) == 0
    out, err = capsys.readouterr()
    # 5 lines with 4 others each: the percentile of a score is a multiple of a twentieth
    queries, documents = model.encode_query(LINES), model.encode_document(LINES)
    pairs = model.similarity(queries, documents)[~np.eye(5, dtype=bool)]
    for line in out.splitlines():
        _, score, percentile = line.split()[:3]
        assert float(percentile) == pytest.approx(100 * (pairs < float(score)).mean(), abs=5.01)  # 4 digits are printed
    assert "20 random pairs of these lines: 50 % below" in err
    best = float(out.split()[1])
    main(["rank", "red planet", "-i", str(lines), "--min", f"{best - 1e-4:.4f}"])
    assert 1 <= len(capsys.readouterr().out.splitlines()) < 5
    for wrong in ("2", "x", "nan"):
        with pytest.raises(SystemExit):
            main(["rank", "q", "a", "--min", wrong])


def test_two_models_are_not_mixed(model: EmbeddingGemma, lines: Path, capsys: Capture) -> None:
    ours = embedded(lines, "a.jsonl")
    other = embedded(lines, "b.csv", "--quantization", "q8_0")
    for command in (["similarity", "--vectors", ours, other], ["rank", "q", "--vectors", other]):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert "were made by two models" in err
        assert err.count(model.fingerprint()) == 1
    mixed = Path(ours).with_name("mixed.jsonl")
    first = Path(ours).read_text().splitlines(keepends=True)[0]
    mixed.write_text(first + first.replace(model.fingerprint(), "0" * 64))
    assert main(["rank", "q", "--vectors", str(mixed)]) == 2
    assert "line 2 of" in capsys.readouterr().err


def test_lines_of_two_files(model: EmbeddingGemma, lines: Path, capsys: Capture) -> None:
    a, b = embedded(lines, "a.jsonl"), embedded(lines, "b.npy", "--prompt-name", "STS")
    assert main(["similarity", "--vectors", a, b]) == 0
    expected = model.similarity_pairwise(model.encode(LINES), model.encode(LINES, "STS"))
    assert capsys.readouterr().out.split() == [f"{value:.4f}" for value in expected]
    short = Path(b).with_name("short.npy")
    np.save(short, np.load(b)[:2])
    assert main(["similarity", "--vectors", a, str(short)]) == 2
    assert "5 vectors of 64 dimensions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "holds no vectors"),
        ("a.jsonl", b"not json\n", "line 1 of .* is no vector"),
        ("a.jsonl", b'{"text": "a"}\n', "line 1 of .* is no vector .*embedding"),
        (
            "a.jsonl",
            b'{"embedding": [1, 2]}\n{"embedding": [1]}\n',
            r"line 2 of .* has shape \(1,\), expected 2 numbers",
        ),
        ("a.jsonl", b'{"embedding": "x"}\n', "line 1 of .* is no vector"),
        ("a.jsonl", b'{"embedding": []}\n', r"shape \(0,\)"),
        ("a.jsonl", b"[1]\n", "line 1 of .* is no vector"),
        ("a.jsonl", b'{"embedding": [1, NaN]}\n', "vector 1 is not finite"),
        ("a.jsonl", b"\xff\n", "line 1 of .* is not UTF-8"),
        ("a.csv", b"1,2\n1,x\n", "line 2 of .* is no vector"),
        ("a.csv", b"# a comment\n\n", "holds no vectors"),
        ("a.npy", b"garbage", "is not a file of NumPy"),
        ("a.npy", b"", "is not a file of NumPy"),
    ],
)
def test_hostile_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_vectors(str(path))


def test_other_arrays_and_no_file(tmp_path: Path) -> None:
    for array in (np.zeros(3), np.zeros((2, 3), np.int64), np.array([{}], object)):
        np.save(tmp_path / "a.npy", array, allow_pickle=True)
        with pytest.raises(InputError, match=r"a\.npy"):
            read_vectors(str(tmp_path / "a.npy"))
    with pytest.raises(GemmaError, match="cannot be read: No such file"):
        read_vectors(str(tmp_path / "none.jsonl"))


def test_vectors_stand_in_place_of_texts(model: EmbeddingGemma, tmp_path: Path, capsys: Capture) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 65), np.float32))
    for options, message in (
        (["text"], "in place of texts"),
        (["--calibrate"], "no --calibrate"),
        ([], "65 dimensions"),
    ):
        assert main(["rank", "q", *options, "--vectors", str(tmp_path / "a.npy")]) == 2
        assert message in capsys.readouterr().err


def test_a_text_in_pieces(model: EmbeddingGemma, tmp_path: Path, capsys: Capture) -> None:
    text = "The red planet is Mars. It has two moons. " * 20
    (tmp_path / "a.txt").write_text("\ufeff" + text)
    assert main(["split", str(tmp_path / "a.txt"), "--max-tokens", "64", "--overlap", "8"]) == 0
    found: list[Any] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found == [piece._asdict() for piece in model.split(text, 64, 8, "document")]
    (tmp_path / "a.txt").write_bytes(b"a\xff")
    assert main(["split", str(tmp_path / "a.txt")]) == 2
    assert "is not UTF-8 from its byte 2 on" in capsys.readouterr().err
    assert main(["split", str(tmp_path / "none.txt")]) == 1


def test_a_narrower_fingerprint(small: Path) -> None:
    model, same = EmbeddingGemma(small), EmbeddingGemma(small, truncate_dim=9999)
    whole = model.fingerprint("query", model.full_dim)
    assert whole == same.fingerprint("query", 5000) == model.fingerprint("retrieval_query", model.full_dim)
    others = {
        model.fingerprint(),
        model.fingerprint("query", 8),
        model.fingerprint("document"),
        model.fingerprint(dim=8),
    }
    assert len({whole, *others}) == 5
    model.max_seq_length = 16
    assert model.fingerprint("query", model.full_dim) != whole
    with pytest.raises(InputError, match="is unknown"):
        model.fingerprint("nonsense")
