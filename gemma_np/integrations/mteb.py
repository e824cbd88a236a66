"""MTEB's encoder, and its command line with gemma_np's models.

>>> import mteb
>>> from gemma_np.integrations.mteb import GemmaNp
>>> mteb.evaluate(GemmaNp("google/embeddinggemma-300m"), mteb.get_tasks(tasks=["STSBenchmark"]))

    python -m gemma_np.integrations.mteb run -m google/embeddinggemma-300m -t STSBenchmark --dim 256 --quantization q8_0

is `mteb run` with two more options. A document's title is within its text, as in MTEB's own entry for the model.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemma_np.arrays import Float32
from gemma_np.integrations.opened import Model, missing, opened
from gemma_np.weights.quantize import QUANTIZATIONS

try:
    import mteb
    from mteb.cli.build_cli import build_cli
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_implementations import MODEL_REGISTRY
    from mteb.models.model_meta import ModelMeta, ScoringFunction
except ImportError as error:
    raise missing("mteb", "mteb") from error

TRAINED = {"google/embeddinggemma-300m": (768, 512, 256, 128), "nano": (384, 256, 128, 64)}  # sizes of vectors
PASSED = ("batch_size", "show_progress_bar")


class GemmaNp(AbsEncoder):
    """A model as MTEB calls it: each task with its own prompt.

    model      a name, a folder, or an EmbeddingGemma; None: the default
    revision, device    as MTEB passes them: of the hub, and "cpu"
    embed_dim  size of the vectors; None: the model's
    options    of EmbeddingGemma: quantization, threads, ...
    """

    def __init__(
        self,
        model: Model = None,
        revision: str | None = None,
        *,
        device: Any = None,
        embed_dim: int | None = None,
        **options: Any,
    ) -> None:
        if device is not None:
            options["device"] = device
        self.model, self.name = opened(model, options)
        self.embed_dim, self.model_prompts = embed_dim, dict(self.model.prompts)
        given = {"embed_dim": embed_dim, "quantization": options.get("quantization")}
        self.mteb_model_meta = meta_of(self.name, {name: value for name, value in given.items() if value is not None})

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> Float32:
        """Batches of {"text": texts} -> float32 [B, dim]."""
        texts = [text for batch in inputs for text in batch["text"]]
        found: Float32 = self.model.encode(
            texts,
            self.get_prompt_name(task_metadata, prompt_type),
            truncate_dim=self.embed_dim,
            **{name: kwargs[name] for name in PASSED if name in kwargs},
        )
        return found


def registered_name(model: str) -> str:
    """A model's name in MTEB, which wants an organisation and a name: gemma_np/NAME."""
    return f"gemma_np/{Path(model).name or 'model'}"


def meta_of(model: str, settings: dict[str, Any]) -> Any:
    """What MTEB is told of a model. Runs with other settings have other results."""
    return ModelMeta.create_empty(
        overwrites={
            "name": registered_name(model),
            "revision": "1",
            "loader": _loaded,
            "loader_kwargs": {"model": model, **settings},
            "experiment_kwargs": settings or None,
            "embed_dim": settings.get("embed_dim"),
            "framework": ["NumPy"],
            "similarity_fn_name": ScoringFunction.COSINE,
            "use_instructions": True,
            "open_weights": True,
        }
    )


def _loaded(name: str, revision: str | None = None, *, model: str, **options: Any) -> GemmaNp:
    """What MTEB calls with a registered name."""
    return GemmaNp(model, revision, **options)


def main(words: Sequence[str] | None = None) -> int:
    """`mteb` with gemma_np's models. Tasks and sizes are checked before anything is downloaded or opened."""
    ours = argparse.ArgumentParser(add_help=False)
    ours.add_argument("-m", "--model")
    ours.add_argument("-t", "--tasks", nargs="+", default=[])
    ours.add_argument("--dim", type=int)
    ours.add_argument("--quantization", choices=QUANTIZATIONS)
    words = list(sys.argv[1:] if words is None else words)
    found, _ = ours.parse_known_args(words)
    if found.model is not None:
        if why := _refusal(found):
            print(f"gemma_np.integrations.mteb: error: {why}", file=sys.stderr)
            return 2
        given = {"embed_dim": found.dim, "quantization": found.quantization}
        meta = meta_of(found.model, {name: value for name, value in given.items() if value is not None})
        MODEL_REGISTRY[meta.name] = meta
        words = _replaced(words, meta.name)
    arguments = build_cli().parse_args(words)
    if not hasattr(arguments, "func"):
        build_cli().print_help()
        return 2
    arguments.func(arguments)
    return 0


def _refusal(found: argparse.Namespace) -> str | None:
    """Why a run cannot be; None: it can."""
    for task in found.tasks:
        try:
            mteb.get_task(task)
        except KeyError as error:
            return f"there is no task {task}: {error.args[0] if error.args else error}"
    sizes = TRAINED.get(found.model)
    if found.dim is not None and (found.dim < 1 or (sizes and found.dim not in sizes)):
        return f"--dim {found.dim}: {found.model} was trained for {', '.join(map(str, sizes or ('positive sizes',)))}"
    return None


def _replaced(words: list[str], name: str) -> list[str]:
    """The words for MTEB: the registered name in place of the model's, and without our own options."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        option, has_value, _ = word.partition("=")
        if option in ("--dim", "--quantization"):
            if not has_value:
                next(rest, None)
        elif option in ("-m", "--model"):
            if not has_value:
                next(rest, None)
            kept += ["-m", name]
        else:
            kept.append(word)
    return kept


if __name__ == "__main__":
    sys.exit(main())
