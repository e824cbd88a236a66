"""Which GGUF file of several is taken: by type, in an order that is written down."""

import pytest

from gemma_np.gguf.choosing import ORDER, chosen, type_of

# As repositories of EmbeddingGemma on the hub have them.
NAMES = [
    "embeddinggemma-300M-F32.gguf",
    "embeddinggemma-300M-BF16.gguf",
    "embeddinggemma-300m-qat-Q4_0.gguf",
    "embeddinggemma-300M-Q8_0.gguf",
    "embeddinggemma-300M-Q4_K_M.gguf",
    "embeddinggemma-300M-IQ4_XS.gguf",
]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("embeddinggemma-300M-Q8_0.gguf", "Q8_0"),
        ("embeddinggemma-300m.q4_k_m.gguf", "Q4_K_M"),
        ("Q5_1/model_Q5_1.GGUF", "Q5_1"),
        ("gemma-qat-q4_0-unquantized-fp16.gguf", "F16"),
        ("model-bf16.gguf", "BF16"),
        ("x-UD-Q8_K_XL.gguf", "Q8_K_XL"),
        ("x-IQ2_XXS.gguf", "IQ2_XXS"),
        ("F32.gguf", "F32"),
        ("q8.gguf", "Q8"),
        ("embeddinggemma-300m.gguf", ""),
        ("faq.gguf", ""),
        ("model-Q8_0.bin", ""),
    ],
)
def test_a_type_is_read_from_a_name(name: str, kind: str) -> None:
    assert type_of(name) == kind


def test_the_order_is_followed_whatever_the_names_order() -> None:
    left = list(NAMES)
    taken = []
    while left:
        taken.append(chosen(reversed(left)))
        left.remove(taken[-1])
    assert [type_of(name) for name in taken] == ["Q8_0", "BF16", "F32", "Q4_0", "Q4_K_M", "IQ4_XS"]
    assert chosen(["a-Q6_K_L.gguf", "a-Q5_K_M.gguf"]) == "a-Q6_K_L.gguf"
    assert chosen([f"a-{kind}.gguf" for kind in reversed(ORDER)]) == f"a-{ORDER[0]}.gguf"


def test_one_file_is_taken_whatever_its_name() -> None:
    for name in ("model.gguf", "a-Q2_K.gguf"):
        assert chosen([name]) == name
    assert chosen(["zz-Q8_0.gguf", "model.gguf"]) == "zz-Q8_0.gguf"
    assert chosen(["b/x-Q8_0.gguf", "x-Q8_0.gguf", "a-qat-Q8_0.gguf"]) == "x-Q8_0.gguf"


def test_a_type_or_a_file_may_be_named() -> None:
    assert chosen(NAMES, "Q4_0") == chosen(NAMES, "q4_0") == NAMES[2]
    assert chosen(NAMES, "Q4_K_M") == NAMES[4]
    assert chosen(NAMES, NAMES[0]) == NAMES[0]


@pytest.mark.parametrize(
    ("names", "wanted", "message"),
    [
        (NAMES, "Q3_K", r"none of its GGUF files is Q3_K; it has embeddinggemma-300M-BF16\.gguf, "),
        (NAMES, "Q4_K", "none of its GGUF files is Q4_K; it has"),
        (NAMES, "other.gguf", r"none of its GGUF files is other\.gguf; it has"),
        (["a-Q8_0.gguf", "b-Q8_0.gguf"], "Q8_0", r"2 of its GGUF files are Q8_0; name one of a-Q8_0\.gguf, b-Q8_0"),
        (["a-Q8_0-00001-of-00002.gguf", "mmproj-F16.gguf"], None, r"none that holds a whole model \(parts must be"),
        ([f"{i}.gguf" for i in range(20)], "Q8_0", r"0\.gguf, 1\.gguf, .* and 12 more"),
    ],
)
def test_what_cannot_be_chosen_is_said_with_what_there_is(names: list[str], wanted: str | None, message: str) -> None:
    with pytest.raises(LookupError, match=message):
        chosen(names, wanted)


def test_what_is_no_model_is_never_taken() -> None:
    names = ["mmproj-model-Q8_0.gguf", "x/imatrix_unsloth.gguf", "m-Q8_0-00001-of-00002.gguf", "m-Q4_0.gguf"]
    assert chosen(names) == "m-Q4_0.gguf"
