"""Text -> token ids: byte-fallback BPE as in Gemma's tokenizer. gemma_np/tokens/bpe.py says in Python what it means.

A text is cut three times before anything merges, each time where no piece can reach across:

- at added tokens, which are taken out of it first;
- before a space (in pieces U+2581), unless some piece has the very byte before it followed by a space;
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
def encode_texts(call: int) -> None:
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
    """The ids of the text from `begin` to `end`, after the `count` that are there; how many there are then."""
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


@kernel
def spell(call: int, begin: int, end: int) -> int:
    """The letters of the text from `begin` to `end`, spaces as U+2581; how many bytes there are."""
    text, letters = field(call, "text"), field(call, "letters")
    size = 0
    for i in range(begin, end):
        byte = byte_at(text, i)
        if byte == SPACE:
            set_byte_at(letters, size, 0xE2)
            set_byte_at(letters, size + 1, 0x96)
            byte = 0x81
            size += 2
        set_byte_at(letters, size, byte)
        size += 1
    return size


@kernel
def merge_words(call: int, begin: int, end: int, count: int) -> int:
    """Ids of the text from `begin` to `end`, in which no added token is, after the `count` that are there."""
    letters, bytes_before_space, out = field(call, "letters"), field(call, "bytes_before_space"), field(call, "out")
    begins, sums, ids = field(call, "begins"), field(call, "sums"), field(call, "ids")
    size = spell(call, begin, end)
    n = i = total = 0
    after_space = False
    while i < size:
        lead = byte_at(letters, i)
        width = min(1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4, size - i)
        space = width == 3 and lead == 0xE2 and byte_at(letters, i + 1) == 0x96 and byte_at(letters, i + 2) == 0x81
        if space and n > 0 and not after_space and byte_at(bytes_before_space, byte_at(letters, i - 1)) == 0:
            count = merge(call, n, count)
            n = 0
        after_space = space
        set_int32_at(begins, n, i)
        set_int32_at(sums, n, total)
        for k in range(i, i + width):
            total = folded(total * HASH_BASE + byte_at(letters, k) + 1)
        set_int32_at(begins, n + 1, i + width)
        set_int32_at(sums, n + 1, total)
        piece = find(call, n, n + 1)
        if piece < 0:
            count = merge(call, n, count)
            for k in range(i, i + width):
                set_int32_at(out, count, int32_at(field(call, "byte_ids"), byte_at(letters, k)))
                count += 1
            n = 0
        else:
            set_int32_at(ids, n, piece)
            n += 1
        i += width
    return merge(call, n, count)


@kernel
def merge(call: int, n: int, count: int) -> int:
    """The ids of a word of n symbols, after the `count` that are there."""
    keys, tree, ids, made = field(call, "keys"), field(call, "tree"), field(call, "ids"), field(call, "made")
    after, before, out = field(call, "after"), field(call, "before"), field(call, "out")
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
    begins, after = field(call, "begins"), field(call, "after")
    j = int32_at(after, i)
    if j >= n:
        return NONE
    k = int32_at(after, j)
    piece = find(call, i, k)
    if piece < 0:
        return NONE
    left, right = int32_at(begins, j) - int32_at(begins, i), int32_at(begins, k) - int32_at(begins, j)
    rank, split = int32_at(field(call, "ranks"), piece), byte_at(field(call, "splits"), piece)
    if rank < 0 or (split > 0 and split != left):
        return NONE
    set_int32_at(field(call, "made"), i, piece)
    return (rank << 16) | ((255 - left) << 8) | (255 - right)


@kernel
def find(call: int, i: int, k: int) -> int:
    """The piece that the letters from symbol i up to symbol k are, -1 if they are none."""
    begins, sums, letters = field(call, "begins"), field(call, "sums"), field(call, "letters")
    starts, pieces, slots = field(call, "starts"), field(call, "pieces"), field(call, "slots")
    begin = int32_at(begins, i)
    length = int32_at(begins, k) - begin
    if length > field(call, "longest"):
        return -1
    power = int32_at(field(call, "powers"), length)
    hash = folded(int32_at(sums, k) + (HASH_PRIME - int32_at(sums, i)) * power)
    bits, id_bits = field(call, "slot_bits"), field(call, "id_bits")
    last = (1 << bits) - 1
    for probe in range(last + 1):
        slot = int32_at(slots, (hash + probe) & last)
        if slot < 0:
            return -1
        if slot >> id_bits == hash >> bits:
            piece = slot & ((1 << id_bits) - 1)
            start = int32_at(starts, piece)
            same = int32_at(starts, piece + 1) - start == length
            for at in range(length if same else 0):
                same = same and byte_at(pieces, start + at) == byte_at(letters, begin + at)
            if same:
                return piece
    return -1


@kernel
def folded(x: int) -> int:
    """x modulo 2^31 - 1, for 0 <= x < 2^63."""
    x = (x & HASH_PRIME) + (x >> 31)
    x = (x & HASH_PRIME) + (x >> 31)
    return x - HASH_PRIME if x >= HASH_PRIME else x
