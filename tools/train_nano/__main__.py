"""Train nano, a small model of EmbeddingGemma's architecture: tokenizer, teacher's vectors, model, checkpoint folder.

    python tools/train_nano DATA OUT --work DIR

DATA holds `train/` and `teacher/`. Every stage keeps its result in DIR: the same command goes on where it was stopped.
With --start FOLDER an exported model goes through the last stage once more. A GPU is used where there is one.
"""

import argparse
import json
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # tools/, for its small_tokenizer and make_checkpoint

import numpy as np
import torch
from batches import Batch, Mixture
from clusters import clusters
from curve import draw_curve
from data import Corpus, other_languages, read_corpus
from export import export, read_export, trunk_config
from losses import cosines, training_loss
from make_checkpoint import PROMPTS
from model import Nano
from start import piece_vectors, start_embeddings
from teacher import teach
from tokenizer import learn_tokenizer, save
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

LOG_EVERY = 50  # batches


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with train/ and teacher/")
    parser.add_argument("out", type=Path, metavar="OUT", help="the checkpoint folder to write; must not exist")
    parser.add_argument("--work", type=Path, metavar="DIR", required=True, help="where the stages keep their results")
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="an exported model, to go on from: the last stage")
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("nano.json"), metavar="FILE")
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists; remove it, or name another folder")
    config = json.loads(arguments.config.read_text())
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    corpus = read_corpus(arguments.data / "train")
    if arguments.start:
        shutil.copyfile(arguments.start / "tokenizer.json", work / "tokenizer.json")
    tokenizer = the_tokenizer(corpus, arguments.data / "train", work / "tokenizer.json", config["tokenizer"])
    tokenizer.enable_truncation(config["model"]["max_position_embeddings"])
    mixture = Mixture(corpus, tokenizer, PROMPTS)
    stages = recipes(config)
    first = len(stages) - config["stages"][-1]["rounds"] if arguments.start else 0
    wanted = mixture.wanted(dict(list(enumerate(stages))[first:]))
    vectors = teach(corpus.texts, wanted, arguments.data / "teacher", work / "teacher.npy", device)
    groups = clusters(vectors, wanted, config["clusters"], config["seed"], work / "clusters.npy")
    trainer = Trainer(config, mixture, vectors, groups, work, device)
    if not trainer.resume():
        if arguments.start:
            trainer.model.load_state_dict(read_export(arguments.start))
            trainer.turn(trainer.rotation_learnt(wanted))
            trainer.begin_stage(first)
        else:
            trainer.turn(rotation(vectors[wanted], config["loss"]["dimensions"], config["seed"]))
            texts = corpus.texts[: corpus.english : 50]
            pieces = piece_vectors(tokenizer, arguments.data / "teacher", work / "pieces.npy", device)
            width = config["model"]["hidden_size"]
            trainer.begin(start_embeddings(tokenizer, texts, pieces, trainer.rotation, width))
    trainer.run()
    draw_curve(work / "log.jsonl", work / "curve.png")
    tokenizer.no_truncation()
    export(trainer.model, tokenizer, config, arguments.out)
    return 0


def the_tokenizer(corpus: Corpus, folder: Path, path: Path, config: dict[str, Any]) -> Tokenizer:
    """Learnt once, kept in `path`."""
    if not path.exists():
        texts = corpus.texts[: corpus.english]
        for language, rows in corpus.translations.items():
            texts += [corpus.texts[text] for text, _ in rows] * config["repeat"].get(language, 1)
        for language, text in other_languages(folder):
            texts += [text] * config["repeat_other"].get(language, 1)
        save(learn_tokenizer(iter(texts), config["pieces"], config["alphabet"]), path)
    return Tokenizer.from_file(str(path))


def recipes(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The configuration as it holds for each round: a stage may set shares, weights, prompts and losses of its own."""

    def changed(name: str, own: Any) -> Any:
        return {**config[name], **own} if isinstance(own, dict) else own

    return [
        {**config, **{name: changed(name, own) for name, own in stage.get("own", {}).items()}}
        for stage in config["stages"]
        for _ in range(stage["rounds"])
    ]


class Trainer:
    """Model, optimizers and progress, kept in `work` after every round."""

    def __init__(
        self,
        config: dict[str, Any],
        mixture: Mixture,
        vectors: np.ndarray[Any, Any],
        groups: np.ndarray[Any, Any],
        work: Path,
        device: str,
    ) -> None:
        self.config, self.mixture, self.vectors, self.groups = config, mixture, vectors, groups
        self.work, self.device = work, device
        self.recipes = recipes(config)
        torch.manual_seed(config["seed"])
        self.model = Nano(trunk_config(config), config["model"]["heads"]).to(device)
        if device == "cuda" or shutil.which("g++"):  # half as long again without
            for block in self.model.layers:
                block.compile(dynamic=True)
        self.rounds = len(self.recipes)
        self.begin_stage(0)

    def turn(self, rotation: np.ndarray[Any, Any]) -> None:
        """Learn the teacher's vectors [384] @ rotation [384, 384]."""
        np.save(self.work / "rotation.npy", rotation.astype(np.float32))
        self.rotation = torch.from_numpy(np.load(self.work / "rotation.npy")).to(self.device)

    @torch.no_grad()
    def rotation_learnt(self, wanted: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The rotation that a model was trained with, from its vectors and the teacher's (orthogonal Procrustes)."""
        rows = wanted[:: max(1, len(wanted) // 100_000)].tolist()
        product = torch.zeros(2 * self.vectors.shape[1:], device=self.device)
        texts = [self.mixture.corpus.texts[row] for row in rows]
        for batch in self.mixture.batches(texts, rows, 4096, self.groups):
            theirs = torch.from_numpy(self.vectors[batch.targets].astype(np.float32)).to(self.device)
            product += theirs.T @ nn.functional.normalize(self.embed(batch))
        left, _, right = torch.linalg.svd(product)
        return (left @ right).cpu().numpy()

    def begin(self, embeddings: Tensor) -> None:
        """Static start: pieces from the teacher, heads that leave them as they are, blocks near the identity."""
        with torch.no_grad():
            self.model.embed_tokens.weight.copy_(embeddings)
            one, two = (dense.weight for dense in self.model.dense)
            nn.init.orthogonal_(one)
            same = torch.eye(*two.shape[:1], one.shape[1], device=one.device)
            same[:, -1] = 0  # the coordinate that only fills up
            two.copy_(same @ one.T)
            for block in self.model.layers:
                block.post_attention_layernorm.weight.fill_(-0.9)
                block.post_feedforward_layernorm.weight.fill_(-0.9)

    def begin_stage(self, at: int) -> None:
        """Fresh optimizers, for the stage that round `at` belongs to (the last one, when all rounds are done)."""
        self.round, self.steps, self.last = at, 0, 0
        for stage in self.config["stages"]:
            self.stage, self.last = stage, self.last + stage["rounds"]
            if at < self.last:
                break
        self.depth = None if self.stage["blocks"] else 0
        self.optimizers = optimizers(self.model, self.stage["rates"], self.config["weight_decay"])

    def resume(self) -> bool:
        path = self.work / "checkpoint.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device)
        if state["config"] != self.config:
            raise SystemExit(f"{path} was made with another configuration; remove it, or name another --work")
        self.model.load_state_dict(state["model"])
        self.turn(np.load(self.work / "rotation.npy"))
        self.begin_stage(state["round"])
        self.steps = state["steps"]
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        return True

    def save(self) -> None:
        part = self.work / "checkpoint.part"
        state = {
            "config": self.config,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "round": self.round,
            "steps": self.steps,
        }
        torch.save(state, part)
        part.replace(self.work / "checkpoint.pt")

    def log(self, **row: Any) -> None:
        with (self.work / "log.jsonl").open("a") as file:
            file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S"), **row}) + "\n")

    def run(self) -> None:
        versions = {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
        self.log(versions=versions, device=self.device, threads=torch.get_num_threads(), round=self.round)
        held_out = self.mixture.validation(self.groups)
        while self.round < self.rounds:
            self.train_round(self.mixture.round(self.round, self.recipes[self.round], self.groups))
            self.round += 1
            scores = {name: self.validate(batches) for name, batches in held_out.items()}
            self.log(round=self.round, validation=scores)
            print(f"round {self.round}: cosine to the teacher, held out: {scores}", file=sys.stderr)
            if self.round == self.last < self.rounds:
                self.begin_stage(self.round)
            self.save()

    def train_round(self, batches: list[Batch]) -> None:
        begun, texts, sums = time.monotonic(), 0, 0.0
        accumulate = self.recipes[self.round]["accumulate"]
        for number, batch in enumerate(tqdm(batches, desc=f"Round {self.round + 1} of {self.rounds}", unit="batch"), 1):
            rate = self.set_rates(self.round + number / len(batches))
            loss = self.loss(batch)
            (loss / accumulate).backward()
            texts += len(batch.targets) * (1 if batch.other is None else 2)
            sums += loss.item()
            if number % LOG_EVERY == 0:
                speed = texts / (time.monotonic() - begun)
                loss_ = sums / LOG_EVERY
                at = round(self.round + number / len(batches), 4)
                self.log(at=at, loss=round(loss_, 5), rate=round(rate, 5), texts_per_second=round(speed))
                sums = 0.0
            if number % accumulate and number < len(batches):
                continue
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config["clip"])
            for optimizer in self.optimizers:
                optimizer.step()
            self.model.zero_grad(set_to_none=True)  # all of it: a stage may leave parameters to no optimizer
            self.steps += 1

    def set_rates(self, at: float) -> float:
        """Linear warm-up, then linear decay to zero at the end of the stage; returns the factor."""
        warm_up = min(1.0, (self.steps + 1) / self.config["warmup_steps"])
        factor = warm_up * (self.last - at) / self.stage["rounds"]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        return factor

    def targets(self, batch: Batch) -> Tensor:
        vectors = torch.from_numpy(self.vectors[batch.targets].astype(np.float32)).to(self.device)
        return vectors @ self.rotation

    def embed(self, batch: Batch) -> Tensor:
        embedded: Tensor = self.model(batch.ids.to(self.device), batch.lengths.to(self.device), self.depth)
        return embedded

    def loss(self, batch: Batch) -> Tensor:
        embedded, targets, pairs = self.embed(batch), self.targets(batch), 0
        if batch.other is not None:
            pairs = len(embedded)
            embedded = torch.cat([embedded, self.embed(batch.other)])
            targets = torch.cat([targets, self.targets(batch.other)])
        return training_loss(embedded, targets, pairs, self.recipes[self.round]["loss"])

    @torch.no_grad()
    def validate(self, batches: list[Batch]) -> dict[str, float]:
        """Mean cosine to the teacher, per dimension."""
        dimensions = self.config["loss"]["dimensions"]
        found = [[cosines(self.embed(b), self.targets(b), k) for b in batches] for k in dimensions]
        return {str(k): round(torch.cat(row).mean().item(), 5) for k, row in zip(dimensions, found, strict=True)}


def rotation(vectors: np.ndarray[Any, Any], dimensions: list[int], seed: int) -> np.ndarray[Any, Any]:
    """A rotation [384, 384] that puts the teacher's largest directions first, so that its first k numbers say most.

    Cosines do not change by it: nano learns the rotated vectors. Between one Matryoshka dimension and the next the
    directions are mixed at random, so that numbers of a block are equally large: int8 and binary codes need that.
    """
    sample = vectors[:: max(1, len(vectors) // 200_000)].astype(np.float32)
    _, axes = np.linalg.eigh(sample.T @ sample)
    axes = axes[:, ::-1]
    rng = np.random.default_rng(seed)
    ends = sorted(dimensions)
    mixed = [
        axes[:, begin:end] @ np.linalg.qr(rng.standard_normal((end - begin, end - begin)))[0]
        for begin, end in zip([0, *ends], ends, strict=False)
    ]
    return np.concatenate(mixed, 1)


def optimizers(model: Nano, rates: dict[str, float], decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, Adam for all else; without a rate for the blocks, embeddings and heads alone."""
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": list(model.embed_tokens.parameters()), "lr": rates["embedding"]},
        {"params": list(model.dense.parameters()), "lr": rates["head"]},
    ]
    found: list[torch.optim.Optimizer] = []
    if "matrix" in rates:
        groups.append({"params": norms, "lr": rates["norm"]})
        matrices = [p for p in model.layers.parameters() if p.ndim == 2]
        found.append(torch.optim.Muon(matrices, rates["matrix"], weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    found.append(torch.optim.Adam(groups, betas=(0.9, 0.98), fused=True))
    for optimizer in found:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return found


if __name__ == "__main__":
    sys.exit(main())
