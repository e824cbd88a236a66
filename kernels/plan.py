"""What a forward pass is told: records of int64 in memory, addresses and numbers. engine.py fills them in.

Letters: T tokens and B texts of the pass, one after the other without padding, and the letters of MODEL.md.
"""


def words(text: str) -> list[str]:
    return text.split()


PLAN = words("""
    threads shared scratch scratch_bytes ones last
    L D layers norm eps
    T B blocks token_table text_table block_table
    x a b qkv q keys values h slots
    heads head_table head_a head_b pooled
""")
"""threads      how many run the pass
shared       SHARED_BYTES, zeroed once, when it is allocated
scratch      scratch_bytes for each thread
ones         float32 1s, a tile's rows of them
last         the pass ends after this step, 8 * layer + its place in STEPS; -1: it does not
layers       L records of LAYER
norm, eps    of the last norm; the norms' weights here are 1 + the checkpoint's, eps is a float32's bits
token_table  [T, 2]: the token's position in its text, its slot among the keys
text_table   [B, 4]: first token, tokens, first slot (a multiple of 64), first token of the mean
block_table  [blocks, 3]: text, first position of its queries, the position after the last. With a layer's K key/value
             heads there are K * blocks items to compute: item k * blocks + i is block i of head k
x            float32 [T, D], embeddings scaled by sqrt(D): the residual stream, overwritten
a, b         activations as the products read them, see rows.put_group
qkv          float32 [T, (N + 2K) H]
q            float32 [K, T, G, H]
keys         float32 [K, slots / 32, H, 32]
values       float32 [K, T, H]
h            float32 [T, D]
heads        number of Dense heads, `head_table` their MATRIX records
head_a       activations of B rows; head_b: the last head's output, and the one before
pooled       float32 [B, D]: the means
"""

MATRICES = ["qkv", "o_proj", "gate_up", "down_proj"]
NORMS = words("""
    input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm q_norm k_norm
""")
LAYER = [*MATRICES, *NORMS, "K", "G", "H", "radius", "scale", "eps", "cos", "sin"]
"""MATRICES     addresses of MATRIX records; q, k and v are one matrix, gate and up are one in turns of 16 rows
NORMS        addresses of float32 [D], or [H] for q_norm and k_norm: 1 + the checkpoint's weights
scale, eps   float32, as their bits
cos, sin     float32 [tokens, H / 2] of the layer's RoPE base
"""

MATRIX = ["format", "codes", "scales", "outputs", "inputs", "rounded"]
"""format   a number of FORMATS
rounded  1 if it multiplies activations rounded to int8, 0 for float32
"""

BPE = words("""
    text size texts ends out counts
    keys tree begins sums ids made after before letters
    prefix prefix_count suffix suffix_count
    pieces starts ranks splits slots slot_bits id_bits powers longest
    added added_from bytes_before_space byte_ids
""")
"""text, size   UTF-8 of some texts, one after the other; how many bytes they are
texts, ends  how many they are, and where each one ends, int64
out, counts  their ids, int32 with room for 3 size + texts (prefix_count + suffix_count); how many each has, int64
keys ... letters   room for what is in bpe_scratch, see there
prefix       int32 [prefix_count], the ids before each text; suffix: after it
pieces       uint8, all pieces one after the other, in UTF-8; piece i is from starts[i] to starts[i + 1], int32
ranks        int32: the lowest merges first; -1: no merge makes the piece
splits       uint8: 0: any two pieces merge into it; k: only those of which the left one has k bytes
slots        int32 [2^slot_bits], open addressing: -1, or (hash >> slot_bits) << id_bits | id; begins at the hash's low
             bits. Tokens that are only added are not in it
powers       int32 [256]: powers of the hash's base
longest      the longest piece in bytes, 255 at most
added        int32, tokens that are cut out of the text before anything else, sorted by their bytes; tokens that
             begin with the byte b from added_from[b] to added_from[b + 1], int32 [257]
bytes_before_space         uint8 [256]: 1 where a piece has this byte followed by a space
byte_ids     int32 [256]: the ids that stand for single bytes
"""

# ---- sizes that the kernels and those who call them must agree on

GROUP = 32  # inputs that share a scale
# Bytes of a group of activations: 32 codes; float32 scale; int32 -(sum of codes and 128 * excess); 4 bytes of excess,
# all but one of them 0; int32, where the weights for these 4 are among those for the group.
ACTIVATIONS = 48
UNPACKED = 32  # bytes for each input of q4_0's codes as a tile takes them: up to two vectors of outputs
PANEL = 64  # outputs of a product that are computed together
BLOCK = 256  # rows of a product that are computed together
POSITIONS = 16  # of queries that attend together, at most: a cache line holds as many numbers of keys
MAX_TEXTS = 256  # of a pass
SHARED_BYTES = 256  # what threads see of each other, see barrier.py

FORMATS = ("f32", "q8_0", "q4_0")
FORWARD, ENCODE = "gemma_np_forward", "gemma_np_encode"  # the entries' names in an object

# A layer's steps, named after what they compute.
STEPS = ("input_layernorm", "qkv", "rotated", "attention", "o_proj", "pre_feedforward_layernorm", "geglu", "down_proj")

# ---- the tokenizer's hash: the bytes + 1 of a piece as digits to the base HASH_BASE, modulo the prime 2^31 - 1

HASH_PRIME = 2**31 - 1
HASH_BASE = 1_000_003
GROUP_SYMBOLS = 16  # symbols of a word whose keys are searched one by one; the groups' lowest keys are a tree


def bpe_scratch(size: int) -> dict[str, tuple[str, int]]:
    """The arrays of a word of n symbols, as dtype and number of elements, large enough for any in `size` bytes of text.

    keys     one per symbol: the key of the pair (symbol, right neighbour); NONE for the last symbol and the padding to
             a whole group
    tree     the groups' lowest keys in the leaves, 2^k of them; node i is the lower one of 2 i and 2 i + 1
    begins   where each symbol begins among the letters; one more at the end
    sums     the hash of all letters before it; one more at the end
    ids      its piece
    made     the piece that it makes with its right neighbour
    after, before  its neighbours
    letters  UTF-8 of all letters between two added tokens, spaces as U+2581
    """
    n = -(-(size + 1) // GROUP_SYMBOLS) * GROUP_SYMBOLS
    int32 = dict.fromkeys(("begins", "sums", "ids", "made", "after", "before"), ("int32", n))
    return {"keys": ("int64", n), "tree": ("int64", n // 4), **int32, "letters": ("uint8", 3 * n)}
