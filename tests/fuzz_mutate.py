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


def gguf_fields(data: bytes) -> list[tuple[int, int]]:
    """Where a valid GGUF file's header has numbers, and how many bytes each has; of a long array's texts some."""
    found, at = [(4, 4), (8, 8), (16, 8)], 24

    def number(width: int) -> int:
        nonlocal at
        if at + width > len(data):
            raise IndexError
        found.append((at, width))
        at += width
        return int.from_bytes(data[at - width : at], "little")

    def value(kind: int) -> None:
        nonlocal at
        if kind == 8:
            at += number(8)
        elif kind == 9:
            inner, count = number(4), number(8)
            kept = len(found) + 20
            for _ in range(count):
                value(inner)
                del found[kept:]
        else:
            number({0: 1, 1: 1, 2: 2, 3: 2, 7: 1, 10: 8, 11: 8, 12: 8}.get(kind, 4))

    tensors, entries = (int.from_bytes(data[place : place + 8], "little") for place in (8, 16))
    for _ in range(entries):
        value(8)
        value(number(4))
    for _ in range(tensors):
        value(8)
        for _ in range(number(4)):
            number(8)
        number(4), number(8)
    return found


def mutate_gguf(rng: random.Random, data: bytes) -> bytes:
    """Counts, lengths, types, axes and offsets overwritten, by numbers that mean something; or any bytes."""
    try:
        fields = gguf_fields(data)
    except (IndexError, RecursionError):
        fields = []
    if not fields or rng.random() < 0.3:
        return mutate_bytes(rng, data)
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, width = rng.choice(fields)
        own = int.from_bytes(data[at : at + width], "little")
        number = rng.choice((own + 1, own - 1, own * 2, own * 32, own << 32, len(data) - at, *rng.sample(NUMBERS, 6)))
        changed[at : at + width] = (number % 256**width).to_bytes(width, rng.choice(("little", "little", "big")))
    return bytes(changed)
