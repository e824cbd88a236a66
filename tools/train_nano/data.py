"""The texts that nano learns from: four files of sentences, translations and pairs, and made scenes.

Each row of a file has its source:

- en_sentences.tsv.xz: source, sentence; distilled from the teacher
- parallel.tsv.xz: source, "eng", language, English, translation; the translation gets the English side's vector
- en_pairs.jsonl.xz: "src", "a", "b"; both are distilled, and a shall find b
- multi_sentences.tsv.xz: source, language, sentence; for the tokenizer alone, no teacher reads them
"""

import json
import lzma
from dataclasses import dataclass
from pathlib import Path

from scenes import scenes

SCENES = 300_000


@dataclass(frozen=True)
class Corpus:
    """Every text once, by number: what people wrote in English, then the translations, then the made scenes."""

    texts: list[str]
    english: int  # texts[:english]
    sources: dict[str, list[int]]  # English texts by source, each text under the first that has it
    translations: dict[str, list[tuple[int, int]]]  # by language: (text, the English text whose vector is its target)
    pairs: dict[str, list[tuple[int, int]]]  # by source: (query, document)


def read_corpus(folder: Path) -> Corpus:
    """Read and number the texts; the same files give the same numbers. Blank texts and rows are left out."""
    number: dict[str, int] = {}
    sources: dict[str, list[int]] = {}

    def add(text: str, source: str) -> int:
        if text not in number:
            number[text] = len(number)
            sources.setdefault(source, []).append(number[text])
        return number[text]

    for source, text in tsv(folder / "en_sentences.tsv.xz", 2):
        add(text, source)
    parallel = list(tsv(folder / "parallel.tsv.xz", 5))
    english = [add(text, source) for source, _, _, text, _ in parallel]
    pairs: dict[str, list[tuple[int, int]]] = {}
    with lzma.open(folder / "en_pairs.jsonl.xz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            query, document = row["a"].strip(), row["b"].strip()
            if query and document:
                source = row["src"]
                pair = add(query, f"{source} query"), add(document, f"{source} document")
                pairs.setdefault(source, []).append(pair)

    count = len(number)
    translations: dict[str, list[tuple[int, int]]] = {}
    for (_, _, language, _, text), target in zip(parallel, english, strict=True):
        translations.setdefault(language, []).append((number.setdefault(text, len(number)), target))
    for text in scenes(SCENES):
        add(text, "scenes")
    return Corpus(list(number), count, sources, translations, pairs)


def other_languages(folder: Path) -> list[tuple[str, str]]:
    """(language, sentence), without translations."""
    return [(language, text) for _, language, text in tsv(folder / "multi_sentences.tsv.xz", 3)]


def tsv(path: Path, columns: int) -> list[tuple[str, ...]]:
    with lzma.open(path, "rt", encoding="utf-8", newline="\n") as lines:
        rows = [tuple(cell.strip() for cell in line.rstrip("\n").split("\t")) for line in lines]
    return [row for row in rows if len(row) == columns and all(row)]
