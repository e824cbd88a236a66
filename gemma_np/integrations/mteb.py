"""MTEB's encoder, and its command line with gemma_np's models.

>>> import mteb
>>> from gemma_np.integrations.mteb import GemmaNp
>>> mteb.evaluate(GemmaNp("google/embeddinggemma-300m"), mteb.get_tasks(tasks=["STSBenchmark"]))

    python -m gemma_np.integrations.mteb run -m google/embeddinggemma-300m -t STSBenchmark --dim 256 --quantization q8_0

is `mteb run` with two more options. A document's title is within its text, as in MTEB's own entry for the model.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemma_np.arrays import Float32
from gemma_np.errors import GemmaError, InputError
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
        self.model, self.name, _ = opened(model, options)
        self.embed_dim, self.model_prompts = embed_dim, dict(self.model.prompts)
        self.mteb_model_meta = self._meta()

    def _meta(self) -> Any:
        """What MTEB is told. It keeps results by name and revision: the revision is the model's fingerprint, so that no
        other model, prompt or size is ever taken for this one."""
        width = self.model.wanted(self.embed_dim).width
        label = Path(self.name).name if os.path.isabs(self.name) else self.name.replace("/", "__")
        return ModelMeta.create_empty(
            overwrites={
                "name": f"gemma_np/{label}",
                "revision": self.model.fingerprint(dim=width)[:16],
                "loader": lambda *_, **__: self,
                "embed_dim": width,
                "framework": ["NumPy"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": True,
                "open_weights": True,
            }
        )

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


def main(words: Sequence[str] | None = None) -> int:
    """`mteb` with gemma_np's models. Tasks and sizes are checked before anything is downloaded or opened."""
    ours = argparse.ArgumentParser(add_help=False)
    ours.add_argument("-m", "--model")
    ours.add_argument("-t", "--tasks", nargs="+", default=[])
    ours.add_argument("-b", "--benchmarks", nargs="+", default=[])
    ours.add_argument("--task-types", "--task_types", nargs="+", default=[])
    ours.add_argument("--dim", type=int)
    ours.add_argument("--quantization", choices=QUANTIZATIONS)
    words = list(sys.argv[1:] if words is None else words)
    found, _ = ours.parse_known_args(words)
    if found.model is not None:
        try:
            if why := _refusal(found, words[0]):
                raise InputError(why)
            meta = GemmaNp(found.model, embed_dim=found.dim, quantization=found.quantization).mteb_model_meta
        except GemmaError as error:
            print(f"gemma_np.integrations.mteb: error: {error}", file=sys.stderr)
            return 2 if isinstance(error, InputError) else 1
        MODEL_REGISTRY[meta.name] = meta
        words = _replaced(words, meta.name)
    arguments = build_cli().parse_args(words)
    if not hasattr(arguments, "func"):
        build_cli().print_help()
        return 2
    arguments.func(arguments)
    return 0


def _refusal(found: argparse.Namespace, command: str) -> str | None:
    """Why a run cannot be; None: it can."""
    for what, names, look in (
        ("task", found.tasks, mteb.get_task),
        ("benchmark", found.benchmarks, mteb.get_benchmark),
    ):
        for name in names:
            try:
                look(name)
            except (KeyError, ValueError) as error:
                return f"there is no {what} {name}: {error.args[0] if error.args else error}"
    if command == "run" and not (found.tasks or found.benchmarks or found.task_types):
        return "no tasks; name some with -t, -b or --task-types: all of MTEB's take days"
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
        if word.startswith("-m") and word != "-m":  # -mnano
            option, has_value = "-m", "="
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
