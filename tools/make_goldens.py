"""Make the committed goldens: what sentence-transformers gives for nano and for the zoo of small checkpoints.

    python tools/make_goldens.py          writes tests/goldens.json

The test command compares with them, so it proves parity without torch. The zoo's checkpoints are made anew by seed each
time (tests/zoo.py), so none of their weights are committed. Needs the extra `parity`.
"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

PROMPTS = (None, "query")


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
    for name, animal in ZOO.items():
        with tempfile.TemporaryDirectory() as folder:
            ours = EmbeddingGemma(animal.make(Path(folder) / "ours"))
            theirs = animal.make_for_hugging_face(Path(folder)) or ours.folder
            goldens[name] = rows(ours, theirs, animal.radius)
    with tempfile.TemporaryDirectory() as folder:
        EmbeddingGemma("nano").save_pretrained(f"{folder}/nano", format="float32")
        goldens["nano"] = rows(EmbeddingGemma(f"{folder}/nano"), Path(folder) / "nano", 64)
    for name in [*ZOO, "nano"]:
        print(f"{name}: {len(goldens[name])} vectors of {len(goldens[name][0]['vector'])}", file=sys.stderr)
    path = ROOT / "tests" / "goldens.json"
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=True)}" for key, value in goldens.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
