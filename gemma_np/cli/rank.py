"""`gemma-np rank` and `gemma-np similarity`: how near texts are to each other."""

import argparse

from gemma_np.cli.arguments import Parser, add_computing, add_dense, add_model, at_least_one, loaded
from gemma_np.cli.texts import add_texts, placed, texts_of


def add_rank(parser: Parser) -> None:
    parser.add_argument("query", metavar="QUERY")
    add_texts(parser)
    parser.add_argument("--top", type=at_least_one, metavar="N", help="print the best N only")
    parser.add_argument("--dim", type=at_least_one, metavar="N", help="keep N dimensions")
    add_model(parser)
    add_dense(parser)
    add_computing(parser)
    parser.set_defaults(run=run_rank)


def run_rank(arguments: argparse.Namespace) -> None:
    source = texts_of(arguments)
    with placed(source.places):
        texts = list(source)
    model = loaded(arguments)
    with placed(lambda _: "QUERY"):
        query = model.encode_query(arguments.query, truncate_dim=arguments.dim)
    with placed(source.places):
        documents = model.encode_document(texts, truncate_dim=arguments.dim)
    scores = model.similarity(query, documents)[0]
    order = sorted(range(len(texts)), key=lambda i: -scores[i])
    for place, i in enumerate(order[: arguments.top], 1):
        print(f"{place:>3}  {scores[i]:7.4f}  {texts[i]}")


def add_similarity(parser: Parser) -> None:
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--prompt-name", metavar="NAME", help="default: STS, where the model has it")
    parser.add_argument("--dim", type=at_least_one, metavar="N", help="keep N dimensions")
    add_model(parser)
    add_dense(parser)
    add_computing(parser)
    parser.set_defaults(run=run_similarity)


def run_similarity(arguments: argparse.Namespace) -> None:
    from gemma_np.prompts import known_prompts

    model = loaded(arguments)
    default = "STS" if "STS" in known_prompts(model.prompts) else None
    with placed(lambda numbers: ", ".join("AB"[i] for i in numbers)):
        a, b = model.encode(
            [arguments.a, arguments.b], prompt_name=arguments.prompt_name or default, truncate_dim=arguments.dim
        )
    print(f"{model.similarity(a, b)[0, 0]:.4f}")
