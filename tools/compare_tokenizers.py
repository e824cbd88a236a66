"""The arrays against the `tokenizers` package: are the ids the same, and how long do both take?

    python tools/compare_tokenizers.py TOKENIZER.JSON FILE...

A file is a text for each line, or .jsonl with texts in `a` and `b`, or .tsv, where the second half of a line's fields
are texts (source, languages, texts); .xz is unpacked. Times are processor time of one thread. Exits with 1 at the first
text whose ids differ.
"""

import argparse
import json
import lzma
import os
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

BATCH = 10_000  # texts


def texts(path: Path) -> Iterator[str]:
    kind = path.name.removesuffix(".xz").rpartition(".")[2]
    opened: Any = lzma.open if path.suffix == ".xz" else open
    with opened(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            line = line.rstrip("\n")
            if kind == "jsonl":
                row = json.loads(line)
                yield from (row["a"], row["b"])
            elif kind == "tsv":
                fields = line.split("\t")
                yield from fields[(len(fields) + 1) // 2 :]
            else:
                yield line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    import tokenizers
    from gemma_np.kernels.cache import kernels_for
    from gemma_np.kernels.choice import choose

    from gemma_np.tokens.bpe import Encoder
    from gemma_np.tokens.json_file import from_tokenizer_json

    column = choose().column
    ours = Encoder(from_tokenizer_json(arguments.tokenizer), kernels_for(column, ("q8_0",)).encode if column else None)
    theirs = tokenizers.Tokenizer.from_file(str(arguments.tokenizer))
    theirs.no_truncation()
    for path in arguments.files:
        count = size = 0
        seconds = [0.0, 0.0]
        stream = texts(path)
        while batch := list(islice(stream, BATCH)):
            times = [time.thread_time()]
            found = ours.encode(batch)
            times.append(time.thread_time())
            expected = theirs.encode_batch_fast(batch)
            times.append(time.thread_time())
            for text, ids, encoding in zip(batch, found, expected, strict=True):
                if ids.tolist() != encoding.ids:
                    print(f"{path.name}: {text!r}\nours   {ids.tolist()}\ntheirs {encoding.ids}")
                    return 1
            count, size = count + len(batch), size + sum(len(text.encode()) for text in batch)
            seconds = [total + end - begin for total, begin, end in zip(seconds, times, times[1:], strict=False)]
        rates = " ".join(
            f"{who} {count / spent / 1000:.0f}k texts/s, {size / spent / 1e6:.1f} MB/s;"
            for who, spent in zip((f"{column.name if column else 'Python'}", "tokenizers"), seconds, strict=True)
        )
        print(f"{path.name}: {count:,} texts, {size / 1e6:.0f} MB, all the same; {rates}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
