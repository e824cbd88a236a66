"""Do two checkouts give the same vectors, bit for bit?

    python tools/same_bits.py write OUT.jsonl MODEL [--checkout DIR] [--quantization FORMAT] [--texts N | --again FILE]
    python tools/same_bits.py compare OLD.jsonl NEW.jsonl

`write` embeds N texts of 16 to 2,048 tokens, in a hundred languages, half of them with a prompt, with the gemma_np of a
checkout, and writes a SHA-256 of each vector. GEMMA_NP_KERNELS=numpy in the environment does it with NumPy. `compare`
names the texts whose vectors differ, and fails if there are any. `--again` takes the texts of an earlier file, since to
find texts of certain lengths takes most of the time. Needs the development data in ../shared.
"""

import argparse
import hashlib
import json
import lzma
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
SENTENCES = ROOT.parent / "shared" / "data" / "train" / "multi_sentences.tsv.xz"
SHORTEST, LONGEST = 16, 2048
PROMPTS = (None, "query", None, "document")


def sentences(count: int) -> list[str]:
    """Every hundredth sentence of the file, which is sorted by language."""
    with lzma.open(SENTENCES, "rt", encoding="utf-8") as file:
        lines = [line.rstrip("\n").split("\t")[-1] for i, line in enumerate(file) if i % 100 == 0]
    return [lines[i * 7919 % len(lines)] for i in range(count)]


def text_of(model: Any, tokens: int, prompt_name: str | None, i: int, known: list[str]) -> str:
    """Sentences of several languages, cut to as many tokens as fit with the prompt, BOS and EOS."""
    text = ""
    while model.count_tokens(text, prompt_name) < tokens:
        text += known[i % len(known)] + " "
        i += 13
    low, high = 0, len(text)  # the longest beginning that fits
    while low < high:
        middle = (low + high + 1) // 2
        fits = model.count_tokens(text[:middle], prompt_name) <= tokens
        low, high = (middle, high) if fits else (low, middle - 1)
    return text[:low]


def made_texts(model: Any, count: int) -> list[tuple[str, str | None]]:
    """Texts with the names of their prompts, from the shortest to the longest."""
    known = sentences(5000)
    lengths = np.geomspace(SHORTEST, LONGEST, count).round().astype(int).tolist()
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(count)]
    return [(text_of(model, lengths[i], prompts[i], i, known), prompts[i]) for i in range(count)]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(out: Path, name: str, quantization: str | None, count: int, again: Path | None) -> None:
    from gemma_np import EmbeddingGemma

    model = EmbeddingGemma(name, quantization=quantization)
    model.max_seq_length = LONGEST
    texts = [(row["text"], row["prompt_name"]) for row in rows_of(again)] if again else made_texts(model, count)
    with out.open("w") as file:
        for text, prompt_name in texts:
            vector = model.encode([text], prompt_name=prompt_name)[0]
            row = {
                "text": text,
                "tokens": model.count_tokens(text, prompt_name),
                "prompt_name": prompt_name,
                "vector": hashlib.sha256(vector.tobytes()).hexdigest(),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def compare(old: Path, new: Path) -> int:
    """0 if all vectors are the same."""
    rows = [rows_of(path) for path in (old, new)]
    keys = [[(row["text"], row["prompt_name"]) for row in half] for half in rows]
    if keys[0] != keys[1]:
        raise SystemExit(f"{old} and {new} are of different texts")
    differ = [row["tokens"] for row, other in zip(*rows, strict=True) if row["vector"] != other["vector"]]
    tokens = [row["tokens"] for row in rows[0]]
    span = f"{min(tokens)} to {max(tokens)} tokens"
    print(f"{new.name}: {len(tokens) - len(differ)} of {len(tokens)} vectors ({span}) are the same bits")
    if differ:
        print(f"  different: those of {', '.join(map(str, differ[:10]))} tokens")
    return bool(differ)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write")
    writing.add_argument("out", type=Path)
    writing.add_argument("model")
    writing.add_argument("--checkout", type=Path, default=ROOT, help="whose gemma_np runs; default: this one")
    writing.add_argument("--quantization")
    writing.add_argument("--texts", type=int, default=300, help="how many to make; default: 300")
    writing.add_argument("--again", type=Path, help="a file of an earlier run, whose texts are taken")
    comparing = commands.add_parser("compare")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "compare":
        return compare(arguments.old, arguments.new)
    sys.path.insert(0, str(arguments.checkout))
    write(arguments.out, arguments.model, arguments.quantization, arguments.texts, arguments.again)
    return 0


if __name__ == "__main__":
    sys.exit(main())
