"""What each round of training reads: texts drawn by weight, with prompts, in batches of nearly one length."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from data import Corpus
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from gemma_np.prompts import DOCUMENT, SEARCH

HELD_OUT = 997  # each 997th text is kept for validation

BAND = 1.15  # texts of a batch differ in length by this factor at most

Row = tuple[int, int]  # a text, and the text whose vector is its target; or a query and its document


@dataclass(frozen=True)
class Batch:
    """Padded ids [B, T], lengths [B], and the rows of the teacher's vectors [B]; of a pair, `other` is the document."""

    ids: Tensor
    lengths: Tensor
    targets: NDArray[np.int64]
    other: "Batch | None" = None


class Mixture:
    """Draws rows: round r gets the r-th share of every source, each shuffled anew when it has been gone through.

    recipe      the configuration as it holds for the round: seed, shares, weights and prompts
    clusters    the group of each text, int64 [texts]: groups stay together
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        prompts: dict[str, str],
    ) -> None:
        self.corpus, self.tokenizer, self.prompts = corpus, tokenizer, {"": "", **prompts}
        english = {name: [(row, row) for row in rows] for name, rows in corpus.sources.items()}
        groups = {"english": english, "translations": corpus.translations, "pairs": corpus.pairs}
        self.groups = {
            group: {name: [r for r in rows if r[0] % HELD_OUT and r[1] % HELD_OUT] for name, rows in sources.items()}
            for group, sources in groups.items()
        }

    def wanted(self, rounds: dict[int, dict[str, Any]]) -> NDArray[np.int64]:
        """The texts whose vectors these rounds, by number with their recipes, and the validation ask for, in order."""
        found = {target for rows in self.held_out().values() for _, target in rows}
        for number, recipe in rounds.items():
            for group in self.groups:
                rows = self.draw(group, number, recipe)
                found.update(target for _, target in rows)
                if group == "pairs":
                    found.update(query for query, _ in rows)
        return np.array(sorted(found))

    def round(self, number: int, recipe: dict[str, Any], clusters: NDArray[np.int64]) -> list[Batch]:
        """All batches of a round, shuffled; the same number gives the same batches."""
        rng = np.random.default_rng((recipe["seed"], number))
        budget = recipe["round"]["tokens_per_batch"]
        singles = [*self.draw("english", number, recipe), *self.draw("translations", number, recipe)]
        chances = np.array(list(recipe["prompts"].values())) / sum(recipe["prompts"].values())
        prompts = [self.prompts[name] for name in recipe["prompts"]]
        chosen = rng.choice(len(prompts), len(singles), p=chances)
        texts = [prompts[p] + self.corpus.texts[text] for p, (text, _) in zip(chosen, singles, strict=True)]
        batches = list(self.batches(texts, [target for _, target in singles], budget, clusters))
        batches += self.pair_batches(self.draw("pairs", number, recipe), budget)
        return [batches[i] for i in rng.permutation(len(batches))]

    def draw(self, group: str, number: int, recipe: dict[str, Any]) -> list[Row]:
        sources = self.groups[group]
        weights = recipe["weights"][group]
        sizes = {name: len(rows) * weights.get(name, weights.get("other", 1)) for name, rows in sources.items()}
        share = recipe["round"]["shares"][group] * recipe["round"]["texts"] / sum(sizes.values())
        drawn: list[Row] = []
        for index, (name, rows) in enumerate(sources.items()):
            if not rows:
                continue
            first, last = (int(sizes[name] * share * n) for n in (number, number + 1))
            for epoch in range(first // len(rows), max(first, last - 1) // len(rows) + 1):
                order = np.random.default_rng((recipe["seed"], index, epoch)).permutation(len(rows))
                begin, end = (min(max(n - epoch * len(rows), 0), len(rows)) for n in (first, last))
                drawn += [rows[i] for i in order[begin:end]]
        return drawn

    def batches(
        self, texts: Sequence[str], targets: Sequence[int], budget: int, clusters: NDArray[np.int64]
    ) -> Iterator[Batch]:
        """Texts of about one length together, neighbours side by side; at most `budget` tokens, padding included."""
        ids = self.encode(texts)
        order = sorted(range(len(ids)), key=lambda i: (band(len(ids[i])), clusters[targets[i]]))
        part: list[int] = []
        longest = 0
        for i in order:
            longer = max(longest, len(ids[i]))
            if part and (longer * (len(part) + 1) > budget or band(len(ids[i])) != band(longest)):
                yield self.batch([ids[i] for i in part], [targets[i] for i in part])
                part, longer = [], len(ids[i])
            part.append(i)
            longest = longer
        if part:
            yield self.batch([ids[i] for i in part], [targets[i] for i in part])

    def pair_batches(self, pairs: Sequence[Row], budget: int) -> Iterator[Batch]:
        """Queries with their documents; in a batch each document occurs once, so that no other is right."""
        queries = self.encode([SEARCH + self.corpus.texts[query] for query, _ in pairs])
        documents = self.encode([DOCUMENT + self.corpus.texts[document] for _, document in pairs])
        order = sorted(range(len(pairs)), key=lambda i: len(documents[i]), reverse=True)
        while order:
            count = max(2, budget // (len(documents[order[0]]) + 16))
            part, order = order[:count], order[count:]
            part = list({pairs[i][1]: i for i in {pairs[i][0]: i for i in part}.values()}.values())
            other = self.batch([documents[i] for i in part], [pairs[i][1] for i in part])
            first = self.batch([queries[i] for i in part], [pairs[i][0] for i in part])
            yield Batch(first.ids, first.lengths, first.targets, other)

    def held_out(self) -> dict[str, list[Row]]:
        english = [(i, i) for i in range(0, self.corpus.english, HELD_OUT)]
        rows = [row for rows in self.corpus.translations.values() for row in rows]
        translated = [row for row in rows if row[0] % HELD_OUT == 0 and row[0] >= self.corpus.english]
        return {"english": english, "translations": translated}

    def validation(self, clusters: NDArray[np.int64]) -> dict[str, list[Batch]]:
        """The texts held out, in English and translated, with the prompt for sentences."""
        found = {}
        for name, rows in self.held_out().items():
            texts = [self.prompts["STS"] + self.corpus.texts[text] for text, _ in rows]
            found[name] = list(self.batches(texts, [target for _, target in rows], 4096, clusters))
        return found

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]

    @staticmethod
    def batch(ids: Sequence[Sequence[int]], targets: Sequence[int]) -> Batch:
        lengths = torch.tensor([len(row) for row in ids])
        padded = torch.zeros((len(ids), int(lengths.max())), dtype=torch.int64)
        for row, values in zip(padded, ids, strict=True):
            row[: len(values)] = torch.tensor(values)
        return Batch(padded, lengths, np.array(targets, np.int64))


def band(length: int) -> int:
    return int(math.log(length, BAND))
