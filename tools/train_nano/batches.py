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
    """Draws rows: round r gets the r-th share of every source, each shuffled anew when it has been gone through."""

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        clusters: NDArray[np.int64],
        prompts: dict[str, str],
        config: dict[str, Any],
    ) -> None:
        self.corpus, self.tokenizer, self.clusters, self.config = corpus, tokenizer, clusters, config
        weights = config["prompts"]
        self.prompts = ["" if name == "" else prompts[name] for name in weights]
        self.chances = np.array(list(weights.values())) / sum(weights.values())
        english = {name: [(row, row) for row in rows] for name, rows in corpus.sources.items()}
        groups = {"english": english, "translations": corpus.translations, "pairs": corpus.pairs}
        self.groups = {
            group: {name: [r for r in rows if r[0] % HELD_OUT and r[1] % HELD_OUT] for name, rows in sources.items()}
            for group, sources in groups.items()
        }

    def round(self, number: int) -> list[Batch]:
        """All batches of a round, shuffled; the same number gives the same batches."""
        rng = np.random.default_rng((self.config["seed"], number))
        budget = self.config["round"]["tokens_per_batch"]
        singles = [*self.draw("english", number), *self.draw("translations", number)]
        chosen = rng.choice(len(self.prompts), len(singles), p=self.chances)
        texts = [self.prompts[p] + self.corpus.texts[text] for p, (text, _) in zip(chosen, singles, strict=True)]
        batches = list(self.batches(texts, [target for _, target in singles], budget))
        batches += self.pair_batches(self.draw("pairs", number), budget)
        return [batches[i] for i in rng.permutation(len(batches))]

    def draw(self, group: str, number: int) -> list[Row]:
        sources = self.groups[group]
        weights = self.config["weights"][group]
        sizes = {name: len(rows) * weights.get(name, weights.get("other", 1)) for name, rows in sources.items()}
        share = self.config["round"]["shares"][group] * self.config["round"]["texts"] / sum(sizes.values())
        drawn: list[Row] = []
        for index, (name, rows) in enumerate(sources.items()):
            if not rows:
                continue
            first, last = (int(sizes[name] * share * n) for n in (number, number + 1))
            for epoch in range(first // len(rows), max(first, last - 1) // len(rows) + 1):
                order = np.random.default_rng((self.config["seed"], index, epoch)).permutation(len(rows))
                begin, end = (min(max(n - epoch * len(rows), 0), len(rows)) for n in (first, last))
                drawn += [rows[i] for i in order[begin:end]]
        return drawn

    def batches(self, texts: Sequence[str], targets: Sequence[int], budget: int) -> Iterator[Batch]:
        """Texts of about one length together, neighbours side by side; at most `budget` tokens, padding included."""
        ids = self.encode(texts)
        order = sorted(range(len(ids)), key=lambda i: (band(len(ids[i])), self.clusters[targets[i]]))
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

    def validation(self) -> dict[str, list[Batch]]:
        """The texts held out, in English and translated, with the prompt for sentences."""
        english = [(i, i) for i in range(0, self.corpus.english, HELD_OUT)]
        rows = [row for rows in self.corpus.translations.values() for row in rows]
        translated = [row for row in rows if row[0] % HELD_OUT == 0 and row[0] >= self.corpus.english]
        prompt = self.prompts[list(self.config["prompts"]).index("STS")]
        held_out = {"english": english, "translations": translated}
        texts = {name: [prompt + self.corpus.texts[text] for text, _ in rows] for name, rows in held_out.items()}
        return {name: list(self.batches(texts[name], [t for _, t in rows], 4096)) for name, rows in held_out.items()}

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
