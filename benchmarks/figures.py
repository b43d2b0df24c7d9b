"""The two pictures of the benchmarks, from the JSON that they wrote: the step beside its peers, and the sweeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks import harness

OURS, PLAIN, PURE, OTHER = "#117733", "#444444", "#CC6677", "#88CCEE"
LIMIT = 2.6  # a longer bar is cut off, its number is not
STYLE = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
}
# What the picture calls a step, the column of step.json that tells its time over the plain one, and its colour.
STEPS = (
    ("lsoftmax_loss", "ours/plain", OURS),
    ("lsoftmax_loss, XLA", "ours XLA/plain", OURS),
    ("plain softmax", None, PLAIN),
    ("plain softmax, XLA", "plain XLA/plain", PLAIN),
    ("L-Softmax in pure TensorFlow", "pure TF/plain", PURE),
    ("L-Softmax in pure TensorFlow, XLA", "pure TF XLA/plain", PURE),
)


def draw(results: Path, folder: Path) -> list[Path]:
    """Draws what the results allow, and returns the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    read = {name: _read(results / f"{name}.json") for name in ("step", "pytorch", "sweep")}
    pictures = []
    if read["step"]:
        pictures.append(_draw_step(read["step"], read["pytorch"], folder / "step.png"))
    if read["sweep"]:
        pictures.append(_draw_sweep(read["sweep"], folder / "sweep.png"))
    return pictures


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _draw_step(step: dict[str, Any], pytorch: dict[str, Any] | None, path: Path) -> Path:
    """Draws the time of every step over the plain one's, a panel a shape."""
    torch_rows = [row for row in (pytorch or {"rows": []})["rows"] if row.get("step", "").startswith(("PyT", "pyt"))]
    rows = [row for row in step["rows"] if not row["N,D,C"].endswith(",10")] or step["rows"]
    panels = []
    for row in rows:
        bars = [(name, 1.0 if column is None else row[column], colour) for name, column, colour in STEPS]
        bars += [(t["step"], t["over plain"], OTHER) for t in torch_rows if t.get("N,D,C") == row["N,D,C"]]
        panels.append((row, bars))
    height = 1.6 + 0.36 * max(len(bars) for _, bars in panels)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(3.4 + 2.0 * len(panels), height), sharey=True, squeeze=False, layout="constrained"
        )
        longest = min(LIMIT, max(ratio for _, bars in panels for _, ratio, _ in bars))
        for (row, bars), panel in zip(panels, axes[0], strict=True):
            names, ratios, colours = zip(*bars, strict=True)
            panel.barh(names, [min(ratio, longest) for ratio in ratios], color=colours, height=0.68)
            for i, ratio in enumerate(ratios):
                panel.text(
                    min(ratio, longest) + 0.03 * longest,
                    i,
                    f"{ratio:.2f}" if ratio <= longest else f"› {ratio:.1f}",
                    va="center",
                    fontsize=9,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
                    weight="bold" if i == 0 else "normal",
                    color=OURS if i == 0 else "black",
                )
            panel.axvline(1, color=PLAIN, linewidth=0.8, linestyle=":")
            panel.axvline(row["products/plain"], color=OURS, linewidth=0.8, linestyle="--")
            shape = " × ".join(f"{int(size):,}" for size in row["N,D,C"].split(","))
            panel.set(
                title=f"{shape}\n1 = {row['plain ms']:,.{0 if row['plain ms'] >= 100 else 1}f} ms",
                xlim=(0, 1.25 * longest),
                ylim=(len(bars) - 0.5, -0.5),
            )
            panel.tick_params(axis="y", length=0)
        figure.suptitle("Time of a training step (N × D × C) over that of TensorFlow's plain softmax", fontsize=13)
        _sign(figure, step, "dashed: the three bare matrix products")
        figure.savefig(path, dpi=110)
        plt.close(figure)
    return path


def _draw_sweep(sweep: dict[str, Any], path: Path) -> Path:
    """Draws time and memory against the classes and against the batch."""
    shapes = [tuple(map(int, row["N,D,C"].split(","))) for row in sweep["rows"]]
    rows = dict(zip(shapes, sweep["rows"], strict=True))
    blocks = next(key.removesuffix(" ms") for key in sweep["rows"][0] if key.startswith("ours, B=") and "ms" in key)
    peers = {
        "plain": ("plain softmax", PLAIN, "-"),
        "pure TF": ("L-Softmax in pure TensorFlow", PURE, "-"),
        "ours": ("lsoftmax_loss", OURS, "-"),
        blocks: (f"lsoftmax_loss, class_block_size={blocks.rpartition('=')[2]}", OURS, "--"),
    }
    batch, classes = _most_frequent([n for n, _, _ in shapes]), _most_frequent([c for _, _, c in shapes])
    columns = (
        ("classes C", f"N = {batch:,}", {c: rows[n, d, c] for n, d, c in sorted(shapes) if n == batch}),
        ("batch N", f"C = {classes:,}", {n: rows[n, d, c] for n, d, c in sorted(shapes) if c == classes}),
    )
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex="col", sharey="row", layout="constrained")
        for column, (label, fixed, series) in enumerate(columns):
            for panel, unit in ((axes[0, column], "ms"), (axes[1, column], "MB")):
                for peer, (name, colour, line) in peers.items():
                    points = [(x, row[f"{peer} {unit}"]) for x, row in series.items() if row[f"{peer} {unit}"]]
                    if points:
                        panel.plot(*zip(*points, strict=True), line, marker="o", markersize=4, color=colour, label=name)
                panel.set(xscale="log", yscale="log")
                panel.set_xticks(list(series), [f"{x:,}" for x in series])
                panel.minorticks_off()
                panel.grid(alpha=0.25)
            axes[0, column].set_title(f"D = {shapes[0][1]}, {fixed}")
            axes[1, column].set_xlabel(label)
        axes[0, 0].set_ylabel("time of a step, ms")
        axes[1, 0].set_ylabel("peak memory, MB")
        axes[0, 0].legend(frameon=False)
        figure.suptitle("How a training step grows", fontsize=13)
        _sign(figure, sweep, "both axes logarithmic")
        figure.savefig(path, dpi=110)
        plt.close(figure)
    return path


def _most_frequent(values: list[int]) -> int:
    return max(values, key=values.count)


def _sign(figure: plt.Figure, document: dict[str, Any], note: str) -> None:
    """Adds a note, and names the machine."""
    height = 0.25 / figure.get_figheight()
    figure.get_layout_engine().set(rect=(0, height, 1, 1 - height))
    figure.text(
        0.995,
        0.2 * height,
        f"{note}  ·  {harness.caption(document['machine'])}, float32",
        ha="right",
        fontsize=8.5,
        color="#555555",
    )
