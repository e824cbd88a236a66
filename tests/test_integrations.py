"""Each adaptor in its real framework: the same vectors as encode_query and encode_document, bit for bit.

`.ci/run` has an environment with the frameworks; elsewhere those that are absent are skipped.
"""

import asyncio
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_np import EmbeddingGemma

ROOT = Path(__file__).parents[1]
TEXTS = ["Mars is called the red planet.", "Venus is very hot.", "My cat sleeps all day."]
QUERY = "Which planet is red?"

pytestmark = pytest.mark.frameworks


@pytest.fixture(scope="module")
def model() -> EmbeddingGemma:
    return EmbeddingGemma("nano")


@pytest.fixture(scope="module")
def query(model: EmbeddingGemma) -> list[float]:
    found: list[float] = model.encode_query(QUERY).tolist()
    return found


@pytest.fixture(scope="module")
def documents(model: EmbeddingGemma) -> list[list[float]]:
    found: list[list[float]] = model.encode_document(TEXTS).tolist()
    return found


def framework(name: str) -> Any:
    return pytest.importorskip(name, reason=f"needs {name}")


def test_langchain(model: EmbeddingGemma, query: Any, documents: Any) -> None:
    framework("langchain_core")
    from langchain_core.vectorstores import InMemoryVectorStore

    from gemma_np.integrations.langchain import GemmaEmbeddings

    embeddings = GemmaEmbeddings("nano")
    assert embeddings.embed_query(QUERY) == query
    assert embeddings.embed_documents(TEXTS) == documents
    assert asyncio.run(embeddings.aembed_query(QUERY)) == query
    assert asyncio.run(embeddings.aembed_documents(TEXTS)) == documents
    assert pickle.loads(pickle.dumps(embeddings)).embed_query(QUERY) == query
    assert len(GemmaEmbeddings(model, dim=128).embed_query(QUERY)) == 128
    store = InMemoryVectorStore.from_texts(TEXTS, embeddings)
    assert store.similarity_search(QUERY, k=1)[0].page_content == TEXTS[0]
    with pytest.raises(TypeError, match="threads: the model is open already"):
        GemmaEmbeddings(model, threads=1)


def test_llama_index(model: EmbeddingGemma, query: Any, documents: Any) -> None:
    framework("llama_index.core")
    from llama_index.core.schema import TextNode

    from gemma_np.integrations.llama_index import GemmaEmbedding

    embedding = GemmaEmbedding("nano", embed_batch_size=2)
    assert embedding.get_query_embedding(QUERY) == query
    assert embedding.get_text_embedding(TEXTS[0]) == documents[0]
    assert embedding.get_text_embedding_batch(TEXTS) == documents
    assert asyncio.run(embedding.aget_query_embedding(QUERY)) == query
    assert asyncio.run(embedding.aget_text_embedding_batch(TEXTS)) == documents
    assert [node.embedding for node in embedding([TextNode(text=text) for text in TEXTS])] == documents
    again = GemmaEmbedding.from_dict(GemmaEmbedding("nano", dim=64, options={"threads": 1}).to_dict())
    assert (again.dim, again.options, len(again.get_query_embedding(QUERY))) == (64, {"threads": 1}, 64)
    assert GemmaEmbedding(model).get_query_embedding(QUERY) == query


def test_an_open_models_settings_are_kept(tmp_path: Path) -> None:
    """A copy elsewhere is the same model, not the folder's with other prompts, sizes or formats."""
    from gemma_np.integrations.opened import opened

    model = EmbeddingGemma("nano", prompts={"query": "q: "}, truncate_dim=64)
    model.max_seq_length = 7
    same, name, options = opened(model, {})
    assert (same, name) == (model, "nano")
    again = EmbeddingGemma(name, **json.loads(json.dumps(options)))
    assert again.encode_query(QUERY * 9).tolist() == model.encode_query(QUERY * 9).tolist()
    assert opened("nano", {"threads": 1})[1:] == ("nano", {"threads": 1})


def test_haystack(model: EmbeddingGemma, query: Any, documents: Any) -> None:
    framework("haystack")
    from haystack import Document, Pipeline
    from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    from gemma_np.integrations.haystack import GemmaDocumentEmbedder, GemmaTextEmbedder

    found = GemmaDocumentEmbedder("nano").run([Document(content=text) for text in TEXTS])["documents"]
    assert [document.embedding for document in found] == documents
    titled = GemmaDocumentEmbedder("nano", title_field="title", meta_fields_to_embed=["place", "none"])
    (one,) = titled.run([Document(content="It is red.", meta={"title": "Mars", "place": "sky"})])["documents"]
    assert one.embedding == model.encode_document("sky\nIt is red.", titles="Mars").tolist()
    assert one.content == "It is red."
    assert asyncio.run(titled.run_async([Document(content="a")]))["documents"][0].embedding
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    store.write_documents(found)
    pipeline = Pipeline()
    pipeline.add_component("embedder", GemmaTextEmbedder("nano"))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    result = pipeline.run({"embedder": {"text": QUERY}})
    assert result["retriever"]["documents"][0].content == TEXTS[0]
    assert GemmaTextEmbedder("nano").run(QUERY)["embedding"] == query
    for component in (titled, GemmaTextEmbedder("nano", dim=64, options={"threads": 1})):
        again = type(component).from_dict(component.to_dict())
        assert again.to_dict() == component.to_dict()
    for wrong in (lambda: GemmaTextEmbedder("nano").run([QUERY]), lambda: titled.run("text")):
        with pytest.raises(TypeError, match="Embedder takes"):
            wrong()


def test_chroma(model: EmbeddingGemma, query: Any, documents: Any, tmp_path: Path) -> None:
    chromadb = framework("chromadb")
    from gemma_np.integrations.chroma import GemmaFunction

    client = chromadb.PersistentClient(str(tmp_path))
    collection = client.create_collection("notes", embedding_function=GemmaFunction("nano", dim=128))
    collection.add(ids=["a", "b", "c"], documents=TEXTS)
    kept = collection.get(ids=["a"], include=["embeddings"])["embeddings"]
    # Chroma brings vectors to length 1 once more: two roundings, of 2^-24 each
    np.testing.assert_allclose(kept[0], model.encode_document(TEXTS[0], truncate_dim=128), rtol=2**-22)
    # A process that has only imported the module opens the collection by its name.
    code = f"""
import chromadb, gemma_np.integrations.chroma
collection = chromadb.PersistentClient({str(tmp_path)!r}).get_collection("notes")
print(collection.query(query_texts=[{QUERY!r}], n_results=1)["ids"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[['a']]", done.stderr
    function = GemmaFunction(model)
    np.testing.assert_array_equal(function(TEXTS), model.encode_document(TEXTS))
    np.testing.assert_array_equal(function.embed_query([QUERY])[0], model.encode_query(QUERY))
    with pytest.raises(ValueError, match="model cannot change from 'nano' to 'other'"):
        function.validate_config_update({"model": "nano"}, {"model": "other"})
    with pytest.raises(ValueError, match="has no wrong"):
        function.validate_config({"wrong": 1})


@pytest.mark.parametrize("package", ["keybert", "bertopic"])
def test_words_and_topics(model: EmbeddingGemma, package: str) -> None:
    module = framework(package)
    from gemma_np.integrations.bertopic_keybert import GemmaBackend

    backend = GemmaBackend(model, prompt_name="clustering")
    np.testing.assert_array_equal(backend.embed(TEXTS), model.encode(TEXTS, "clustering"))
    if package == "keybert":
        from keybert.backend._utils import select_backend

        assert select_backend(backend) is backend
        words = module.KeyBERT(model=backend).extract_keywords("Mars is a red planet. It has two moons.", top_n=2)
        assert len(words) == 2
    else:
        from bertopic.backend._utils import select_backend

        assert select_backend(backend) is backend


def test_semantic_router(model: EmbeddingGemma) -> None:
    framework("semantic_router")
    from semantic_router import Route

    from gemma_np.integrations.semantic_router import GemmaEncoder

    encoder = GemmaEncoder(model="nano")
    expected = model.encode(TEXTS, "semantic_similarity").tolist()
    assert encoder(TEXTS) == expected
    assert asyncio.run(encoder.acall(TEXTS)) == expected
    routes = [Route(name="space", utterances=TEXTS[:2]), Route(name="pets", utterances=[TEXTS[2], "dogs bark"])]
    from semantic_router.routers import IndexedRouter

    router = IndexedRouter(encoder=encoder, routes=routes)
    assert router("a cat and a dog").name == "pets"
    assert router("the planet Saturn").name == "space"


def test_chonkie(model: EmbeddingGemma) -> None:
    chonkie = framework("chonkie")
    from gemma_np.integrations.chonkie import GemmaEmbeddings

    embeddings = GemmaEmbeddings("nano")
    expected = model.encode(TEXTS, "semantic_similarity")
    np.testing.assert_array_equal(embeddings.embed_batch(TEXTS), expected)
    np.testing.assert_array_equal(embeddings.embed(TEXTS[0]), expected[0])
    assert embeddings.dimension == 384
    assert embeddings.count_tokens(TEXTS[0]) == model.count_tokens(TEXTS[0]) - 2  # without BOS and EOS
    text = " ".join(TEXTS * 6)
    chunks = chonkie.SemanticChunker(embedding_model=embeddings, chunk_size=64).chunk(text)
    assert "".join(chunk.text for chunk in chunks) == text


@pytest.fixture
def sts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One of MTEB's own tasks for tests, which need no network."""
    framework("mteb")
    from mteb.mocks.mock_tasks.sts import MockSTSTask

    return MockSTSTask()


def test_mteb(model: EmbeddingGemma, sts: Any, tmp_path: Path) -> None:
    import mteb

    from gemma_np.integrations.mteb import GemmaNp

    encoder = GemmaNp(model)
    batch = [{"text": TEXTS[:2]}, {"text": TEXTS[2:]}]
    options = {"task_metadata": sts.metadata, "hf_split": "test", "hf_subset": "default"}
    np.testing.assert_array_equal(encoder.encode(batch, **options), model.encode(TEXTS, "STS"))
    from mteb.types import PromptType

    document = encoder.encode(batch, prompt_type=PromptType.document, **options)
    np.testing.assert_array_equal(document, model.encode(TEXTS, "STS"))  # a task's own prompt comes first
    cache = mteb.ResultCache(str(tmp_path))
    result = mteb.evaluate(GemmaNp("nano", embed_dim=128), sts, cache=cache)
    assert -1 <= result.task_results[0].get_score() <= 1
    (folder,) = (path for path in tmp_path.rglob("gemma_np__nano*") if path.is_dir())
    assert list(folder.rglob("*.json"))
    # another model of this name, another prompt or size has results of its own
    other = GemmaNp(EmbeddingGemma("nano", prompts={"STS": "other: "}))
    each = [encoder, GemmaNp("nano"), other, GemmaNp("nano", embed_dim=128)]
    kept = [(one.mteb_model_meta.name, one.mteb_model_meta.revision) for one in each]
    assert kept[0] == kept[1]
    assert len(set(kept)) == 3
    assert {name for name, _ in kept} == {"gemma_np/nano"}


def test_mtebs_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    framework("mteb")
    from gemma_np.integrations.mteb import _replaced, main

    assert main(["run", "-m", "google/embeddinggemma-300m", "-t", "STSBenchmrk"]) == 2
    assert "there is no task STSBenchmrk" in capsys.readouterr().err
    assert main(["run", "-m", "nano", "-t", "STSBenchmark", "--dim", "100"]) == 2
    assert "--dim 100: nano was trained for 384, 256, 128, 64" in capsys.readouterr().err
    assert main(["run", "-m", "nano"]) == 2
    assert "no tasks; name some" in capsys.readouterr().err
    assert main(["run", "-m", "nano", "-b", "NoSuchBenchmark"]) == 2
    assert "there is no benchmark NoSuchBenchmark" in capsys.readouterr().err
    assert main(["run", "-m", "/no/such/folder", "-t", "STSBenchmark"]) in (1, 2)
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert _replaced(["run", "-mnano"], "gemma_np/nano") == ["run", "-m", "gemma_np/nano"]
    words = ["run", "--model=nano", "-t", "STSBenchmark", "--dim", "128", "--quantization=q8_0", "-v", "1"]
    assert _replaced(words, "gemma_np/nano") == ["run", "-m", "gemma_np/nano", "-t", "STSBenchmark", "-v", "1"]


def test_a_hybrid_ranking(model: EmbeddingGemma) -> None:
    """bm25s has no place for an embedding model: two rankings are added up, by reciprocal ranks."""
    bm25s = framework("bm25s")
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(TEXTS, show_progress=False), show_progress=False)
    found, _ = retriever.retrieve(bm25s.tokenize(QUERY, show_progress=False), k=3, show_progress=False)
    words = found[0].tolist()
    meaning = np.argsort(-model.similarity(model.encode_query(QUERY), model.encode_document(TEXTS))[0]).tolist()
    scores = {i: 1 / (60 + words.index(i)) + 1 / (60 + meaning.index(i)) for i in range(3)}
    assert max(scores, key=lambda i: scores[i]) == 0


def test_a_framework_that_is_absent_is_named() -> None:
    """Each module, with its framework out of reach: one line says what to install."""
    for module, package in (
        ("langchain", "langchain-core"),
        ("llama_index", "llama-index-core"),
        ("haystack", "haystack-ai"),
        ("chroma", "chromadb"),
        ("bertopic_keybert", "bertopic"),
        ("semantic_router", "semantic-router"),
        ("chonkie", "chonkie"),
        ("mteb", "mteb"),
    ):
        code = f"""
import sys
for name in "langchain_core llama_index haystack chromadb bertopic keybert semantic_router chonkie mteb".split():
    sys.modules[name] = None
try:
    import gemma_np.integrations.{module}
except ImportError as error:
    print(error)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        expected = f"gemma_np.integrations.{module} needs {package}, which cannot be imported: pip install {package}\n"
        assert done.stdout == expected


def test_the_readmes_lines_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each row's code, where its framework is there."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## In frameworks")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\S.*?) \| `(from .*?)` \| `(.*?)` \|$", section, re.MULTILINE)
    assert len(rows) == 8
    monkeypatch.chdir(tmp_path)
    for _, line, use in rows:
        names: dict[str, Any] = {}
        try:
            exec(line, names)
        except ImportError as error:
            if "pip install" not in str(error):
                raise
            continue
        eval(use, names)


def test_setfit_and_scikit_learn_take_the_object(model: EmbeddingGemma) -> None:
    """A frozen body with a head of scikit-learn's, and a step of a pipeline."""
    setfit = framework("setfit")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    texts, labels = ["red planet", "hot star", "my cat", "your dog"], ["sky", "sky", "pet", "pet"]
    classifier = setfit.SetFitModel(model_body=model, model_head=LogisticRegression())
    classifier.fit(texts, labels, num_epochs=1)
    assert list(classifier.predict(["a small dog", "a distant planet"])) == ["pet", "sky"]
    pipeline = make_pipeline(FunctionTransformer(model.encode), LogisticRegression()).fit(texts, labels)
    assert pickle.loads(pickle.dumps(pipeline)).predict(["a small dog"]) == ["pet"]


def test_txtai_takes_a_function(model: EmbeddingGemma) -> None:
    txtai = framework("txtai")
    embeddings = txtai.Embeddings({"transform": lambda texts: model.encode(texts), "backend": "numpy", "content": True})
    embeddings.index(TEXTS)
    assert embeddings.search(QUERY, 1)[0]["text"] == TEXTS[0]


def test_bertopic_finds_topics(model: EmbeddingGemma) -> None:
    bertopic = framework("bertopic")
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    from gemma_np.integrations.bertopic_keybert import GemmaBackend

    texts = [f"{word} {i}" for i in range(12) for word in ("red planet", "small cat")]
    topics = bertopic.BERTopic(
        embedding_model=GemmaBackend(model, prompt_name="clustering"),
        umap_model=PCA(2),
        hdbscan_model=KMeans(2, random_state=0, n_init=1),
    )
    found, _ = topics.fit_transform(texts)
    assert len({*found[::2]}) == len({*found[1::2]}) == 1 != len({*found})


@pytest.mark.parametrize("package", ["keybert", "bertopic"])
def test_the_object_itself_is_refused_and_no_other_model_is_loaded(model: EmbeddingGemma, package: str) -> None:
    """They look for "sentence_transformers" in the name of a model's type, and where it is absent load another one."""
    framework(package)
    backend = __import__(f"{package}.backend._utils", fromlist=["select_backend"])
    with pytest.raises(ValueError, match="correct SentenceTransformers model"):
        backend.select_backend(model)
