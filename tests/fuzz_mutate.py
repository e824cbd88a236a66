"""Valid files -> hostile ones: JSON, safetensors, GGUF, folders as text (fuzz_targets.pack) and any bytes."""

import random
import re
import struct

POWERS = [2**n + more for n in (7, 8, 15, 16, 24, 31, 32, 48, 53, 60, 62, 63, 64) for more in (-1, 0, 1)]
NUMBERS = [*range(-3, 12), *POWERS, *(-power for power in POWERS), 10**30]
HOSTILE = [  # as JSON
    *(str(number).encode() for number in NUMBERS),
    *b"-0 0.0 -0.0 1.5 1e999 -1e999 1e-400 5e-324 1e5 2E0 NaN Infinity -Infinity true false null 00 +1 0x1".split(),
    *(b"9" * n for n in (19, 20, 309, 4300, 4301, 100_000)),
    *(b'""', b"[]", b"{}", b"[{}]", b"[null]", b'{"a":1}', b'"\\u0000"', b'"\\ud800"', b'"\\udfff\\ud800"', b'"\xff"'),
    *(
        b'"a\xe2\x96\x81"',
        b'"..',
        b'"."',
        b'".."',
        b'"../x"',
        b'"/etc/passwd"',
        b'"/dev/zero"',
        b'"a/b"',
        b'"a\\u0000b"',
    ),
    *(b'"%s"' % (b"x" * n) for n in (256, 5000)),
    *(b"[" * n + b"]" * n for n in (64, 500, 900, 960, 980, 990, 5000)),
    *(b'{"a":' * n + b"1" + b"}" * n for n in (64, 900, 980, 5000)),
    *(b"[" + b"[]," * n + b"1]" for n in (64, 3000)),
]
TOKEN = re.compile(rb'\n=== .*|"(?:[^"\\]|\\.)*"|[\w.+-]+|\s+|[^\w]')


def closing(tokens: list[bytes], i: int) -> int:
    """Where the value ends that begins at i: behind the bracket that closes it; with its value, if it is a name."""
    depth, rest = 0, i
    while rest < len(tokens):
        token = tokens[rest]
        depth += (token in (b"[", b"{")) - (token in (b"]", b"}"))
        rest += 1
        if depth <= 0 and not (rest < len(tokens) and (tokens[rest] == b":" or token == b":" or token.isspace())):
            break
    return rest


def mutate_json(rng: random.Random, data: bytes) -> bytes:
    """Values, names and brackets replaced, doubled, removed, moved; mostly still JSON."""
    tokens = TOKEN.findall(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        starts = [i for i, token in enumerate(tokens) if token not in (b",", b":", b"]", b"}") and not token.isspace()]
        if not starts:
            break
        first = i = rng.choice(starts)
        if b":" in tokens[max(i - 2, 0) : i] and starts[0] < i:  # a value: begin at its name
            first = i = starts[starts.index(i) - 1]
        end = closing(tokens, i)
        if b":" in tokens[i + 1 : i + 3] and rng.random() < 0.9:  # a name: go to its value
            i = next((j for j in starts if j > i), i)
        match rng.choice((0, 0, 0, 1, 2, 3, 4, 5, 6, 7)):
            case 0:
                tokens[i:end] = [rng.choice(HOSTILE)]
            case 1:
                del tokens[first:end]
            case 2:  # the same twice; a name, too
                tokens[end:end] = [b",", *tokens[first:end]] * rng.choice((1, 1, 2, 50))
            case 3:
                names = [token for token in (*tokens, *HOSTILE) if token.startswith(b'"')]
                tokens[first : first + 1 if i > first else end] = [rng.choice(names)]
            case 4:
                other = rng.choice(starts)
                value = tokens[other : closing(tokens, other)]
                tokens[i:end] = value if b":" not in value[1:3] else [b"{", *value, b"}"]
            case 5:
                tokens[i:end] = [b"[", *tokens[i:end], b"]"]
            case 6:
                tokens[i] = mutate_bytes(rng, tokens[i])
            case 7 if re.fullmatch(rb"-?\d+", tokens[i]):
                number = int(tokens[i][:30])
                new = rng.choice((number + 1, number - 1, -number, 2 * number, number * 10**6, number << 32))
                tokens[i] = str(new).encode()
    text = b"".join(tokens)
    return re.sub(rb"(?<=[\[{]),|,(?=\s*[,\]}])", b"", text) if rng.random() < 0.9 else text


def mutate_folder(rng: random.Random, data: bytes) -> bytes:
    """One file of a folder changed, by its kind; or its name or nature; or all files as one text."""
    separator = b"\n=== "
    parts = data.split(separator)
    if len(parts) < 2 or rng.random() < 0.05:
        return mutate_json(rng, data)
    for _ in range(rng.choice((1, 1, 2))):
        i = rng.randrange(1, len(parts))
        name, _, content = parts[i].partition(b"\n")
        match rng.randrange(12):
            case 0:
                name = name.partition(b" ")[0] + rng.choice((b" fifo", b" dir", b" -> /dev/zero", b" -> ..", b" -> a"))
            case 1:
                name = name.partition(b" ")[0] + b" -> " + rng.choice(parts[1:]).partition(b"\n")[0].split(b" ")[0]
            case 2:
                content = rng.choice(parts).partition(b"\n")[2]
            case _ if name.endswith(b".safetensors"):
                content = mutate_safetensors(rng, content)
            case _:
                content = mutate_json(rng, content)
        parts[i] = name + b"\n" + content
    return separator.join(parts)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes flipped, overwritten by numbers of either byte order, cut, moved."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(changed) + 1)
        length = rng.choice((1, 2, 4, 8, 16, 64))
        match rng.randrange(7):
            case 0 if changed:
                changed[min(at, len(changed) - 1)] ^= 1 << rng.randrange(8)
            case 1:
                width = rng.choice((1, 2, 4, 8))
                number = rng.choice((*NUMBERS, len(data), len(data) - at, at)) % 256**width
                changed[at : at + width] = number.to_bytes(width, rng.choice(("little", "little", "big")))
            case 2:
                del changed[at : at + length]
            case 3:
                other = rng.randrange(len(changed) + 1)
                changed[at : at + rng.choice((0, length))] = changed[other : other + length]
            case 4:
                changed[at:at] = rng.randbytes(length)
            case 5 if rng.random() < 0.3:
                del changed[at:]
            case _:
                changed[at : at + 1] = rng.randbytes(1)
    return bytes(changed)


def mutate_safetensors(rng: random.Random, data: bytes, content_only: float = 0.1) -> bytes:
    """The header as JSON, its length kept right, mostly; the tensors' bytes; or any bytes."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.1 or 8 + length > len(data):
        return mutate_bytes(rng, data)
    header, content = data[8 : 8 + length], data[8 + length :]
    if rng.random() < content_only:
        changed = mutate_bytes(rng, content)[: len(content)]
        return data[: 8 + length] + changed + content[len(changed) :]
    header = mutate_json(rng, header)
    length = len(header) if rng.random() < 0.95 else rng.choice(NUMBERS) % 2**64
    return struct.pack("<Q", length) + header + content


GGUF_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
GGUF_TEXT, GGUF_ARRAY = 8, 9
GGUF_VALUES = [  # with their types in front
    *(struct.pack("<If", 6, x) for x in (0, 1, -1, 1e-45, 3e38, float("nan"), float("inf"))),
    *(struct.pack("<Id", 12, x) for x in (0.5, 1e-300, 1e300, float("nan"))),
    *(struct.pack("<IQ", 10, n) for n in (0, 1, 2**31 - 1, 2**32, 2**63, 2**64 - 1)),
    *(struct.pack("<Iq", 11, n) for n in (-1, 3, -(2**63))),
    *(struct.pack("<IB", kind, n) for kind in (0, 7) for n in (0, 1, 2, 255)),
    *(struct.pack("<IQ", 8, len(text)) + text for text in (b"", b"llama", b"x" * 300, b"\xff", b"\0")),
    *(struct.pack("<IIQ", 9, kind, 0) for kind in (4, 6, 7, 8, 9)),
    *(struct.pack(f"<IIQ{len(n)}I", 9, 4, len(n), *n) for n in ((1,), (1, 2), (2, 2), (7,) * 270)),
    *(struct.pack(f"<IIQ{len(n)}B", 9, 7, len(n), *n) for n in ((1,), (1, 0), (255, 2))),
    *(struct.pack("<IIQ", 9, 8, n) + struct.pack("<QB", 1, 97) * n for n in (1, 2, 270)),
]


def gguf_fields(data: bytes) -> tuple[list[tuple[int, int]], list[tuple[int, int]], int]:
    """Of a valid GGUF file's header: where numbers are, and their widths (of an array the first 20); where metadata's
    values begin and end; where the header ends."""
    numbers, values, at = [(4, 4), (8, 8), (16, 8)], [], 24

    def number(code: str) -> int:
        nonlocal at
        numbers.append((at, struct.calcsize(code)))
        at += numbers[-1][1]
        return int.from_bytes(data[numbers[-1][0] : at], "little")

    def value(kind: int) -> None:
        nonlocal at
        if at > len(data):
            raise IndexError
        if kind == GGUF_TEXT:
            length = number("<Q")
            at += length
        elif kind == GGUF_ARRAY:
            inner, count = number("<I"), number("<Q")
            kept = len(numbers) + 20
            for _ in range(count):
                value(inner)
                del numbers[kept:]
        else:
            number(GGUF_NUMBERS[kind])

    tensors, entries = struct.unpack_from("<QQ", data, 8)
    for _ in range(entries):
        value(GGUF_TEXT)
        values.append((at, at))
        value(number("<I"))
        values[-1] = values[-1][0], at
    for _ in range(tensors):
        value(GGUF_TEXT)
        for code in ["<Q"] * min(number("<I"), 100) + ["<I", "<Q"]:
            number(code)
    return numbers, values, at


def gguf_with(data: bytes, begin: int, behind: int, end: int, value: bytes) -> bytes:
    """A GGUF file whose header ends at `end`, with another value. The tensors stay aligned."""
    header = data[:begin] + value + data[behind:end]
    return header + bytes(-len(header) % 32) + data[-(-end // 32) * 32 :]


def mutate_gguf(rng: random.Random, data: bytes) -> bytes:
    """Counts, lengths, types, axes and offsets overwritten by numbers that mean something; other values; any bytes."""
    try:
        numbers, values, end = gguf_fields(data)
    except (IndexError, KeyError, RecursionError, struct.error):  # it is damaged already
        return mutate_bytes(rng, data)
    changed = data
    for _ in range(rng.choice((1, 1, 2))):
        at, width = rng.choice(numbers)
        own = int.from_bytes(data[at : at + width], "little")
        near = (own + 1, own - 1, own * 2, own * 32, own << 32, len(data) - at)
        number = rng.choice((*near, *rng.sample(NUMBERS, 6))) % 256**width
        there = number.to_bytes(width, rng.choice(("little", "little", "little", "big")))
        changed = changed[:at] + there + changed[at + width :]
    match rng.randrange(5):
        case 0:
            return mutate_bytes(rng, data)
        case 1 | 2 if values:
            return gguf_with(data, *rng.choice(values), end, rng.choice(GGUF_VALUES))
    return changed
