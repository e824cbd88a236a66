"""The task prompts: the checkpoint's own names, and the friendly names that people expect."""

from collections.abc import Iterable, Mapping

from gemma_np.errors import InputError

SEARCH = "task: search result | query: "  # EmbeddingGemma's query prompt
DOCUMENT = "title: none | text: "

# EmbeddingGemma's own, for files that have no room for prompts.
PUBLISHED = {
    "query": SEARCH,
    "document": DOCUMENT,
    "BitextMining": SEARCH,
    "Clustering": "task: clustering | query: ",
    "Classification": "task: classification | query: ",
    "InstructionRetrieval": "task: code retrieval | query: ",
    "MultilabelClassification": "task: classification | query: ",
    "PairClassification": "task: sentence similarity | query: ",
    "Reranking": SEARCH,
    "Retrieval": SEARCH,
    "Retrieval-query": SEARCH,
    "Retrieval-document": DOCUMENT,
    "STS": "task: sentence similarity | query: ",
    "Summarization": "task: summarization | query: ",
}

# Friendly name -> the checkpoint's name for the same task.
FRIENDLY = {
    "retrieval_query": "query",
    "retrieval_document": "document",
    "classification": "Classification",
    "clustering": "Clustering",
    "semantic_similarity": "STS",
    "code_retrieval": "InstructionRetrieval",
    "summarization": "Summarization",
}
# Tasks that only the model card names; offered to models that use EmbeddingGemma's prompts.
CARD = {
    "question_answering": "task: question answering | query: ",
    "qa_query": "task: question answering | query: ",
    "fact_checking": "task: fact checking | query: ",
}


def known_prompts(prompts: Mapping[str, str]) -> dict[str, str]:
    """Every name that `prompt_name` accepts, with its prompt; the checkpoint's own names win."""
    friendly = {name: prompts[own] for name, own in FRIENDLY.items() if own in prompts}
    card = CARD if prompts.get("query") == SEARCH else {}
    return {**card, **friendly, **prompts}


def prompt_named(name: str, prompts: Mapping[str, str]) -> str:
    """The prompt of a task; InputError lists the known names."""
    known = known_prompts(prompts)
    if not isinstance(name, str) or name not in known:
        raise InputError(f"prompt_name = {name!r} is unknown; known are {', '.join(sorted(known)) or 'none'}")
    return known[name]


def first_known(names: Iterable[str], prompts: Mapping[str, str]) -> str | None:
    """The first of some names that has a prompt; None: none has."""
    return next((name for name in names if name in prompts), None)


def titled(prompt: str, title: str | None, number: int = 0) -> str:
    """The document prompt with its title filled in: `title: {title} | text: `; without a title it stays `none`.

    number   the title's, for messages
    """
    if not isinstance(title, str | None):
        raise InputError(f"title {number} is {type(title).__name__}, expected a string or None")
    if not title:
        return prompt
    if prompt != DOCUMENT:
        raise InputError(f"a title needs the document prompt {DOCUMENT!r}, but the prompt in use is {prompt!r}")
    return DOCUMENT.replace("none", title, 1)
