"""Make the committed goldens: what sentence-transformers gives for nano and for the zoo of small checkpoints.

    python tools/make_goldens.py          writes tests/goldens.json and tests/goldens_steps.json

The test command compares with them, so it proves parity without torch. The zoo's checkpoints are made anew by seed each
time (tests/zoo.py), so none of their weights are committed. Needs the extra `parity`.
"""

import hashlib
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

PROMPTS = (None, "query")
STEPPED = ("defaults", "groups")  # of the zoo, the models whose steps are kept
SAMPLES = 24  # entries of each step that are kept


def weights_sha256(folder: Path) -> str:
    """Of all weights of a checkpoint, in the order of their files' names."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        found.update(f"{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return found.hexdigest()


def steps_of(folder: Path, text: str) -> dict[str, Any]:
    """Some entries of every step of a text, as Hugging Face computes them, and the largest magnitude of each step."""
    from layer_diff import huggingface_steps, like_ours, our_steps

    from gemma_np import EmbeddingGemma

    ours = EmbeddingGemma(folder)
    ids = ours.prepare([text])[0][0]
    theirs, rng = huggingface_steps(folder, ids), np.random.default_rng(0)
    steps = {}
    for name, array in our_steps(ours, ids).items():
        flat = like_ours(theirs[name], array).reshape(-1)
        at = np.sort(rng.choice(flat.size, min(SAMPLES, flat.size), replace=False))
        values = [float(f"{value:.9g}") for value in flat[at].tolist()]
        steps[name] = {
            "shape": list(array.shape),
            "largest": float(np.abs(flat).max()),
            "at": at.tolist(),
            "is": values,
        }
    return {"weights_sha256": weights_sha256(folder), "ids": ids.tolist(), "steps": steps}


def main() -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from zoo import TEXTS, ZOO, text_of

    from gemma_np import EmbeddingGemma

    def rows(ours: EmbeddingGemma, folder: Path, radius: int) -> list[dict[str, Any]]:
        theirs = SentenceTransformer(
            str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
        )
        found = []
        for text in [*TEXTS, text_of(ours, radius + 2, None), text_of(ours, 300, None)]:
            for prompt_name in PROMPTS:
                prompt = ours.resolve_prompt(prompt_name)
                ids = theirs.preprocess([text], prompt=prompt)["input_ids"][0].tolist()
                vector = theirs.encode([text], prompt=prompt, batch_size=1)[0]
                vector = [float(f"{value:.9g}") for value in vector.tolist()]
                found.append({"text": text, "prompt_name": prompt_name, "ids": ids, "vector": vector})
        return found

    goldens: dict[str, Any] = {
        "made_by": "tools/make_goldens.py",
        "versions": {name: version(name) for name in ("sentence-transformers", "transformers", "torch", "numpy")},
        "weights": "nano; tests/zoo.py, seed 0; each float32 vector is sentence-transformers' for one text per batch",
    }
    steps = {key: goldens[key] for key in ("made_by", "versions")}
    for name, animal in ZOO.items():
        with tempfile.TemporaryDirectory() as folder:
            ours = EmbeddingGemma(animal.make(Path(folder) / "ours"))
            theirs = animal.make_for_hugging_face(Path(folder)) or ours.folder
            goldens[name] = rows(ours, theirs, animal.radius)
            if name in STEPPED:
                steps[name] = steps_of(ours.folder, text_of(ours, 3 * animal.radius, None))
    with tempfile.TemporaryDirectory() as folder:
        EmbeddingGemma("nano").save_pretrained(f"{folder}/nano", format="float32")
        ours = EmbeddingGemma(f"{folder}/nano")
        goldens["nano"] = rows(ours, ours.folder, 64)
        steps["nano"] = steps_of(ours.folder, text_of(ours, 3 * 64, None))
    for name in [*ZOO, "nano"]:
        print(f"{name}: {len(goldens[name])} vectors of {len(goldens[name][0]['vector'])}", file=sys.stderr)
    write(ROOT / "tests" / "goldens.json", goldens)
    write(ROOT / "tests" / "goldens_steps.json", steps)


def write(path: Path, goldens: dict[str, Any]) -> None:
    """A line for each model, so that a difference shows which."""
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=True)}" for key, value in goldens.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
