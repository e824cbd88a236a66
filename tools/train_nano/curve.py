"""The loss curve as a picture."""

import json
from pathlib import Path

import matplotlib.pyplot as plt


def draw_curve(log: Path, out: Path) -> None:
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [(row["at"], row["loss"]) for row in rows if "loss" in row]
    held_out = [(row["round"], row["validation"]) for row in rows if "validation" in row]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.plot(*zip(*losses, strict=True), linewidth=0.6)
    left.set(xlabel="round", ylabel="training loss", title="Loss", yscale="log")
    for name in held_out[-1][1]:
        for k, style in zip(held_out[-1][1][name], ("-", "--", "-.", ":"), strict=False):
            color = {"english": "tab:blue", "translations": "tab:orange"}[name]
            values = [scores[name][k] for _, scores in held_out]
            right.plot([at for at, _ in held_out], values, style, color=color, label=f"{name}, {k}")
    right.set(xlabel="round", ylabel="mean cosine", title="Held out: cosine to the teacher, per dimension")
    right.legend(fontsize="small", ncols=2)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(out, dpi=120)
    plt.close(figure)
