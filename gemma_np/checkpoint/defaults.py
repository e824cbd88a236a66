"""Settings of a checkpoint that are defaults of calls: prompts, similarity, dimensions, the longest text."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemma_np.config import Config, positive_int
from gemma_np.errors import ConfigError
from gemma_np.files.mapped import read_json_object
from gemma_np.prompts import known_prompts

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
# sentence_bert_config.json's settings that change how a text is read, with the values that do nothing.
TEXT_SETTINGS: dict[str, tuple[object, ...]] = {
    "do_lower_case": (False,),
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "processing_kwargs": ({},),
    "query_length": (),
    "document_length": (),
    "query_expansion": (),
}


def read_max_seq_length(trunk: Path, config: Config) -> int:
    """The longest text in tokens, BOS and EOS included: sentence_bert_config.json's max_seq_length, else the smaller of
    tokenizer_config.json's model_max_length (where newer files have it) and the model's positions."""
    path = trunk / "sentence_bert_config.json"
    if os.path.isfile(path):
        settings = read_json_object(path)
        for key, served in TEXT_SETTINGS.items():
            if settings.get(key) not in (None, *served):
                expected = " or ".join(json.dumps(value) for value in (*served, None))
                raise ConfigError(f"{path}: {key} = {json.dumps(settings[key])} is not served; expected {expected}")
        length = settings.get("max_seq_length")
        if length is not None:
            return positive_int(path, "max_seq_length", length)
    path = trunk / "tokenizer_config.json"
    length = read_json_object(path).get("model_max_length") if os.path.isfile(path) else None
    return min(length, config.max_positions) if type(length) is int and length > 0 else config.max_positions


@dataclass(frozen=True)
class Defaults:
    """config_sentence_transformers.json: what a call uses when it does not say.

    path   that file, for messages
    """

    prompts: dict[str, str]
    default_prompt_name: str | None
    similarity_fn_name: str
    truncate_dim: int | None
    path: Path | None = field(default=None, compare=False)

    @property
    def all_prompts(self) -> dict[str, str]:
        """The prompts; a model without one for queries or documents has an empty one, as in sentence-transformers."""
        return {"query": "", "document": "", **self.prompts}

    def settings(self) -> dict[str, Any]:
        """As the file has them."""
        return {name: value for name, value in vars(self).items() if name != "path"}

    def check_prompt(self, prompts: Mapping[str, str]) -> None:
        """ConfigError for a default prompt that is none of those in use: the file's, perhaps with a caller's."""
        if self.default_prompt_name not in (None, *known_prompts(prompts)):
            raise ConfigError(
                f"{self.path}: default_prompt_name = {self.default_prompt_name!r} is none of its prompts "
                f"({', '.join(prompts)}); mend the file, or in Python pass default_prompt_name="
            )


def read_defaults(folder: Path) -> Defaults:
    """Read config_sentence_transformers.json; without it there are no prompts, and the similarity is the cosine."""
    path = folder / "config_sentence_transformers.json"
    settings = read_json_object(path) if os.path.isfile(path) else {}
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str | None) for prompt in prompts.values()):
        raise ConfigError(f"{path}: prompts = {prompts!r}, expected names with strings")
    name = settings.get("default_prompt_name")
    if not isinstance(name, str | None):
        raise ConfigError(f"{path}: default_prompt_name = {name!r}, expected a name or null")
    dim = settings.get("truncate_dim")
    if dim is not None:
        dim = positive_int(path, "truncate_dim", dim)
    similarity = settings.get("similarity_fn_name")
    similarity = "cosine" if similarity is None else similarity
    if similarity not in SIMILARITIES:
        raise ConfigError(f"{path}: similarity_fn_name = {similarity!r}; served are {', '.join(SIMILARITIES)}")
    return Defaults({key: prompt or "" for key, prompt in prompts.items()}, name, similarity, dim, path)
