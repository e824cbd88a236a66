"""Walk through a checkpoint with this engine and with Hugging Face, and compare them step by step.

    python tools/layer_diff.py CHECKPOINT [--text TEXT] [--tokens N] [--tolerance X] [--all]

    [OK] embed_tokens                                  max 0.0e+00
    [OK] layers.7.self_attn.o_proj                     max 3.1e-06

A difference is measured against the largest absolute value of the step, because the residual of the real model reaches
75,936. Needs the extra `parity` (torch, transformers, sentence-transformers). Exit 1 at a step that differs.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np import EmbeddingGemma, GemmaError
from gemma_np.model import embed
from gemma_np.modules import read_modules

# Rounding grows along the layers: on weights with the real model's outliers two float32 engines are up to 3e-4 of a
# step's largest value apart in single steps of the last layers. A wrong equation shows at 1e-2.
TOLERANCE = 1e-3
Array = np.ndarray[Any, Any]


def huggingface_steps(folder: Path, ids: Array) -> dict[str, Array]:
    """The output of every module of the sentence-transformers model, by our names, computed in float32."""
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    steps: dict[str, Array] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: object, _inputs: object, output: Any) -> None:
            if isinstance(output, dict):  # a module of sentence-transformers
                output = output["sentence_embedding"]
            output = output[0] if isinstance(output, tuple) else output
            steps[name] = output.detach().numpy()[0].copy()

        return hook

    for name, module in model[0].model.named_modules():
        module.register_forward_hook(keep(name))
    module_paths = [module["path"] for module in read_modules(folder)]
    for name, module in list(zip(module_paths, model, strict=True))[1:]:
        module.register_forward_hook(keep(name))
    tokens = torch.from_numpy(ids.astype(np.int64))[None]
    with torch.inference_mode():
        model({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
    return steps


def our_steps(model: EmbeddingGemma, ids: Array) -> dict[str, Array]:
    """The same, by the engine's one hook."""
    steps: dict[str, Array] = {}
    embed(ids, model.weights, model.config, model.modules, trace=lambda name, array: steps.update({name: array.copy()}))
    return steps


def like_ours(theirs: Array, ours: Array) -> Array:
    """Hugging Face's array of a step in our shape: q_norm and k_norm are [N, T, H] there, [T, N, H] here."""
    if theirs.ndim == 3 and theirs.shape != ours.shape:
        theirs = theirs.transpose(1, 0, 2)
    return theirs.reshape(ours.shape)


def compare(ours: dict[str, Array], theirs: dict[str, Array], tolerance: float) -> list[tuple[str, float, bool]]:
    """(step, largest difference relative to the step's largest value, whether it is within the tolerance), in order."""
    rows = []
    for name, array in ours.items():
        other = like_ours(theirs[name], array)
        scale = max(float(np.abs(other).max()), 1e-30)
        difference = float(np.abs(array - other).max()) / scale
        rows.append((name, difference, difference <= tolerance))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description="This engine against Hugging Face, step by step.",
        epilog="example:  python tools/layer_diff.py CHECKPOINT --tokens 600",
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", default="The quick brown fox jumps over the lazy dog.", help="what is embedded")
    parser.add_argument("--tokens", type=int, help="N random tokens instead of a text (windows show above 257)")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help=f"default: {TOLERANCE}")
    parser.add_argument("--all", action="store_true", help="every step, not only each layer's output and what differs")
    arguments = parser.parse_args()

    try:
        model = EmbeddingGemma(arguments.checkpoint)
    except GemmaError as error:
        print(f"layer_diff: error: {error}", file=sys.stderr)
        return 1
    if arguments.tokens:
        ids = np.random.default_rng(0).integers(4, model.config.V, arguments.tokens).astype(np.int32)
    else:
        ids = model.prepare([arguments.text])[0][0]
    rows = compare(our_steps(model, ids), huggingface_steps(arguments.checkpoint, ids), arguments.tolerance)
    for name, difference, good in rows:
        if arguments.all or not good or name.count(".") < 2:
            print(f"[{'OK' if good else 'DIFFERS'}] {name:<48} max {difference:.1e}")
    bad = [name for name, _, good in rows if not good]
    print(
        f"{len(rows) - len(bad)} of {len(rows)} steps agree over {len(ids)} tokens"
        + (f"; first: {bad[0]}" if bad else "")
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
