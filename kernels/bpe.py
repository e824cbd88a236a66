"""Text -> token ids: byte-fallback BPE as in Gemma's tokenizer. gemma_np/bpe.py says in Python what it means.

A text is cut three times before anything merges, each time where no piece can reach across:

- at added tokens, which are taken out of it first;
- in front of a space (in pieces U+2581), unless some piece has the very byte before it in front of a space;
- at characters that are no piece: they become bytes, and bytes never merge.

In what is left, a word, the pair with the lowest key merges first: its piece's rank; then the longer left part; then
the longer right part; then the place. A word of up to 16 symbols is searched from end to end each time. Longer ones
have a tree over groups of 16, so that a step costs the logarithm of the length.

Every symbol is the text between two places, so a pair is one piece of text too: its hash comes from two running hashes.
"""

from .plan import BPE, GROUP_SYMBOLS, HASH_BASE, HASH_PRIME
from .simd import byte_at, int32_at, int_at, kernel, record, set_byte_at, set_int32_at, set_int_at

NONE = 2**62  # the key of what does not merge
SPACE = 32

field, _ = record(BPE)


@kernel
def encode(call: int) -> None:
    """The ids of some texts. `call` is a record of plan.BPE."""
    ends, counts, out = field(call, "ends"), field(call, "counts"), field(call, "out")
    first, first_count = field(call, "prefix"), field(call, "prefix_count")
    last, last_count = field(call, "suffix"), field(call, "suffix_count")
    begin = count = 0
    for text in range(field(call, "texts")):
        before = count
        for i in range(first_count):
            set_int32_at(out, count + i, int32_at(first, i))
        count = encode_text(call, begin, int_at(ends, text), count + first_count)
        for i in range(last_count):
            set_int32_at(out, count + i, int32_at(last, i))
        count += last_count
        set_int_at(counts, text, count - before)
        begin = int_at(ends, text)


@kernel
def encode_text(call: int, begin: int, end: int, count: int) -> int:
    """The ids of the text from `begin` to `end`, behind the `count` that are there; how many there are then."""
    text, out, starts, added_from = (
        field(call, "text"),
        field(call, "out"),
        field(call, "starts"),
        field(call, "added_from"),
    )
    i = begin
    while i < end:
        byte = byte_at(text, i)
        low, high = int32_at(added_from, byte), int32_at(added_from, byte + 1)
        token = added_token(call, i, end, low, high) if low < high else -1
        if token < 0:
            i += 1
            continue
        count = merge_words(call, begin, i, count)
        set_int32_at(out, count, token)
        count += 1
        i += int32_at(starts, token + 1) - int32_at(starts, token)
        begin = i
    return merge_words(call, begin, end, count)


@kernel
def added_token(call: int, i: int, end: int, low: int, high: int) -> int:
    """The longest added token with which the text goes on at i, -1 if there is none. They are sorted, and those from
    `low` to `high` begin with the right byte."""
    text, added, starts = field(call, "text"), field(call, "added"), field(call, "starts")
    found, depth = -1, 1
    while low < high:
        token = int32_at(added, low)
        if int32_at(starts, token + 1) - int32_at(starts, token) == depth:
            found = token
        if i + depth >= end:
            break
        byte = byte_at(text, i + depth)
        low = lower(call, low, high, depth, byte)
        high = lower(call, low, high, depth, byte + 1)
        depth += 1
    return found


@kernel
def lower(call: int, low: int, high: int, depth: int, byte: int) -> int:
    """The first of some sorted added tokens, alike up to `depth`, that has `byte` or a higher one there."""
    added, starts, pieces = field(call, "added"), field(call, "starts"), field(call, "pieces")
    while low < high:
        middle = (low + high) // 2
        token = int32_at(added, middle)
        place = int32_at(starts, token) + depth
        if place >= int32_at(starts, token + 1) or byte_at(pieces, place) < byte:
            low = middle + 1
        else:
            high = middle
    return low


# ---- a word's arrays: n symbols, with room for as many as all texts have bytes, and a few more
#
#     keys     int64, of each symbol and its right neighbour; NONE behind the last one, up to a whole group
#     tree     int64, the groups' lowest keys in the leaves, 2^k of them; node i is the lower one of 2 i and 2 i + 1
#     begins   int32, where each symbol begins among the letters; one more at the end
#     sums     int32, the hash of all letters in front of it; one more at the end
#     ids      int32, its piece
#     made     int32, the piece that it makes with its right neighbour
#     after, before  int32, its neighbours
#     letters  uint8, the word in UTF-8, spaces as U+2581

TREE, BEGINS, SUMS, IDS, MADE, AFTER, BEFORE, LETTERS = 8, 10, 14, 18, 22, 26, 30, 34  # times the room: where they are


@kernel
def room(call: int) -> int:
    """See plan.bpe_scratch."""
    return (field(call, "size") + GROUP_SYMBOLS) // GROUP_SYMBOLS * GROUP_SYMBOLS


@kernel
def merge_words(call: int, begin: int, end: int, count: int) -> int:
    """Ids of the text from `begin` to `end`, in which no added token is, behind the `count` that are there."""
    text, out, glue, byte_ids = field(call, "text"), field(call, "out"), field(call, "glue"), field(call, "byte_ids")
    N, scratch = room(call), field(call, "scratch")
    begins, sums, ids, letters = scratch + BEGINS * N, scratch + SUMS * N, scratch + IDS * N, scratch + LETTERS * N
    set_int32_at(begins, 0, 0)
    set_int32_at(sums, 0, 0)
    n = offset = total = last = 0
    i = begin
    while i < end:
        lead = byte_at(text, i)
        width = min(1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4, end - i)
        space = lead == SPACE
        if lead == 0xE2 and width == 3:
            space = byte_at(text, i + 1) == 0x96 and byte_at(text, i + 2) == 0x81
        if space and n > 0 and last != SPACE and byte_at(glue, last) == 0:
            count = merge(call, n, count)
            n = offset = total = 0
        length = 3 if space else width
        hash = 0
        for k in range(length):
            last = byte_at(text, i + k) if lead != SPACE else 0xE2 if k == 0 else 0x96 if k == 1 else 0x81
            set_byte_at(letters, offset + k, last)
            hash = folded(hash * HASH_BASE + last + 1)
            total = folded(total * HASH_BASE + last + 1)
        last = SPACE if space else last
        piece = find(call, letters + offset, length, hash)
        if piece < 0:
            count = merge(call, n, count)
            for k in range(length):
                set_int32_at(out, count + k, int32_at(byte_ids, byte_at(letters, offset + k)))
            count += length
            n = offset = total = 0
        else:
            set_int32_at(ids, n, piece)
            n += 1
            offset += length
            set_int32_at(begins, n, offset)
            set_int32_at(sums, n, total)
        i += width
    return merge(call, n, count)


@kernel
def merge(call: int, n: int, count: int) -> int:
    """The ids of a word of n symbols, behind the `count` that are there."""
    N, keys, out = room(call), field(call, "scratch"), field(call, "out")
    tree, ids, made, after, before = (
        keys + TREE * N,
        keys + IDS * N,
        keys + MADE * N,
        keys + AFTER * N,
        keys + BEFORE * N,
    )
    groups, leaves = (n + GROUP_SYMBOLS - 1) // GROUP_SYMBOLS, 1
    while leaves < groups:
        leaves *= 2
    for i in range(n):
        set_int32_at(after, i, i + 1)
        set_int32_at(before, i, i - 1)
    for i in range(GROUP_SYMBOLS * groups):
        set_int_at(keys, i, pair_key(call, i, n) if i < n - 1 else NONE)
    for group in range(leaves):
        set_int_at(tree, leaves + group, lowest(keys, group) if group < groups else NONE)
    for node in range(leaves - 1, 0, -1):
        set_int_at(tree, node, min(int_at(tree, 2 * node), int_at(tree, 2 * node + 1)))
    while n > 1 and int_at(tree, 1) < NONE:
        i = first_lowest(keys, tree, leaves)
        h, j = int32_at(before, i), int32_at(after, i)
        k = int32_at(after, j)
        set_int32_at(ids, i, int32_at(made, i))
        set_int32_at(after, i, k)
        if k < n:
            set_int32_at(before, k, i)
        set_int_at(keys, j, NONE)
        set_int_at(keys, i, pair_key(call, i, n))
        if h >= 0:
            set_int_at(keys, h, pair_key(call, h, n))
            renew(keys, tree, leaves, h // GROUP_SYMBOLS)
        renew(keys, tree, leaves, i // GROUP_SYMBOLS)
        renew(keys, tree, leaves, j // GROUP_SYMBOLS)
    i = 0
    while i < n:
        set_int32_at(out, count, int32_at(ids, i))
        count += 1
        i = int32_at(after, i)
    return count


@kernel
def lowest(keys: int, group: int) -> int:
    key = NONE
    for i in range(GROUP_SYMBOLS):
        key = min(key, int_at(keys, GROUP_SYMBOLS * group + i))
    return key


@kernel
def renew(keys: int, tree: int, leaves: int, group: int) -> None:
    """A group's lowest key once more, and the tree above it as far as it changes."""
    node, key = leaves + group, lowest(keys, group)
    while node > 0 and int_at(tree, node) != key:
        set_int_at(tree, node, key)
        key = min(key, int_at(tree, node ^ 1))
        node //= 2


@kernel
def first_lowest(keys: int, tree: int, leaves: int) -> int:
    """The first symbol that has the lowest key of all."""
    key, node = int_at(tree, 1), 1
    while node < leaves:
        node *= 2
        if int_at(tree, node) != key:
            node += 1
    i = GROUP_SYMBOLS * (node - leaves)
    while int_at(keys, i) != key:
        i += 1
    return i


@kernel
def pair_key(call: int, i: int, n: int) -> int:
    """The key of a symbol and its right neighbour; if they merge, `made` is what they make."""
    N, scratch = room(call), field(call, "scratch")
    begins, sums, after = scratch + BEGINS * N, scratch + SUMS * N, scratch + AFTER * N
    j = int32_at(after, i)
    if j >= n:
        return NONE
    k = int32_at(after, j)
    begin, middle, end = int32_at(begins, i), int32_at(begins, j), int32_at(begins, k)
    length = end - begin
    if length > field(call, "longest"):
        return NONE
    power = int32_at(field(call, "powers"), length)
    hash = folded(int32_at(sums, k) + (HASH_PRIME - int32_at(sums, i)) * power)
    piece = find(call, scratch + LETTERS * N + begin, length, hash)
    if piece < 0:
        return NONE
    rank, split = int32_at(field(call, "ranks"), piece), byte_at(field(call, "splits"), piece)
    if rank < 0 or (split > 0 and split != middle - begin):
        return NONE
    set_int32_at(scratch + MADE * N, i, piece)
    return (rank << 16) | ((255 - (middle - begin)) << 8) | (255 - (end - middle))


@kernel
def folded(x: int) -> int:
    """x modulo 2^31 - 1, for 0 <= x < 2^63."""
    x = (x & HASH_PRIME) + (x >> 31)
    x = (x & HASH_PRIME) + (x >> 31)
    return x - HASH_PRIME if x >= HASH_PRIME else x


@kernel
def find(call: int, place: int, length: int, hash: int) -> int:
    """The piece that these bytes are, -1 if they are none."""
    slots, bits, id_bits = field(call, "slots"), field(call, "slot_bits"), field(call, "id_bits")
    starts, pieces = field(call, "starts"), field(call, "pieces")
    last = (1 << bits) - 1
    for probe in range(last + 1):
        slot = int32_at(slots, (hash + probe) & last)
        if slot < 0:
            return -1
        if slot >> id_bits == hash >> bits:
            piece = slot & ((1 << id_bits) - 1)
            begin = int32_at(starts, piece)
            same = int32_at(starts, piece + 1) - begin == length
            for i in range(length if same else 0):
                same = same and byte_at(pieces, begin + i) == byte_at(place, i)
            if same:
                return piece
    return -1
