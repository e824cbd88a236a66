import pytest

from gemma_np import InputError
from gemma_np.prompts import known_prompts, prompt_named, titled

GEMMA = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "STS": "task: sentence similarity | query: ",
    "Clustering": "task: clustering | query: ",
    "Classification": "task: classification | query: ",
    "InstructionRetrieval": "task: code retrieval | query: ",
}


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("query", "task: search result | query: "),
        ("retrieval_query", "task: search result | query: "),
        ("retrieval_document", "title: none | text: "),
        ("question_answering", "task: question answering | query: "),
        ("qa_query", "task: question answering | query: "),
        ("fact_checking", "task: fact checking | query: "),
        ("classification", "task: classification | query: "),
        ("clustering", "task: clustering | query: "),
        ("semantic_similarity", "task: sentence similarity | query: "),
        ("code_retrieval", "task: code retrieval | query: "),
    ],
)
def test_friendly_names_and_the_checkpoints_own_both_work(name: str, prompt: str) -> None:
    assert prompt_named(name, GEMMA) == prompt


def test_the_checkpoints_own_name_wins() -> None:
    assert prompt_named("clustering", {**GEMMA, "clustering": "mine: "}) == "mine: "


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'retrieval' is unknown; known are .*document, .*query, .*retrieval_query"):
        prompt_named("retrieval", GEMMA)


def test_a_model_with_other_prompts_is_not_offered_embeddinggemmas() -> None:
    assert set(known_prompts({"query": "q: "})) == {"query", "retrieval_query"}


def test_a_title_takes_the_place_of_none() -> None:
    assert titled("title: none | text: ", "Moby-Dick") == "title: Moby-Dick | text: "
    assert titled("title: none | text: ", None) == "title: none | text: "
    assert titled("title: none | text: ", "none of this") == "title: none of this | text: "
    with pytest.raises(InputError, match="needs the document prompt"):
        titled("task: clustering | query: ", "Moby-Dick")
