"""The pictures of the examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from lsoftmax_op import reference
from lsoftmax_op.margins import ArcFace, Combined, CosFace, LSoftmax

if TYPE_CHECKING:
    from examples import verification
    from examples.digits import Run

# Ten colours that stay apart for colour-blind readers and in neighbouring wedges (Paul Tol's muted scheme and a black).
COLOURS = (
    "#332288",
    "#88CCEE",
    "#44AA99",
    "#117733",
    "#999933",
    "#DDCC77",
    "#CC6677",
    "#882255",
    "#AA4499",
    "#444444",
)
MARGIN_COLOURS = {1: "#444444", 2: "#44AA99", 3: "#DDAA33", 4: "#BB5566"}
STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
KIND_COLOURS = ("#BBBBBB", "#444444", "#88CCEE", "#4477AA", "#999933", "#DDAA33", "#BB5566")


def name_of(margin: int) -> str:
    """Returns the name of a row or a panel."""
    return "softmax" if margin == 1 else f"L-Softmax m={margin}"


def spread(values: list[float], digits: int) -> str:
    """Returns the mean and, of more than one value, the sample standard deviation."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def draw_features(runs: list[Run], dataset: str, path: Path) -> Path:
    """Draws the learned 2-D features of the test images, a panel a network, as in the paper's Figure 2."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(runs), figsize=(4 * len(runs), 5), squeeze=False, layout="constrained")
        for run, panel in zip(runs, panels[0], strict=True):
            _draw_features_of(run, panel)
        figure.suptitle(
            f"Two features learned from {dataset}: test images, and the direction of each class", fontsize=14
        )
        figure.get_layout_engine().set(rect=(0, 0, 1, 0.97), h_pad=0.12)
        figure.savefig(path, dpi=100)
        plt.close(figure)
    return path


def _draw_features_of(run: Run, panel: plt.Axes) -> None:
    radius = np.percentile(np.linalg.norm(run.features, axis=1), 99.5)
    for c in range(run.weights.shape[1]):
        colour = COLOURS[c % len(COLOURS)]
        direction = run.weights[:, c] / np.linalg.norm(run.weights[:, c])
        panel.plot(*np.outer(direction, [0, 1.12 * radius]), color=colour, linewidth=1, alpha=0.8, zorder=1)
        panel.text(
            *(1.2 * radius * direction),
            str(c),
            color=colour,
            ha="center",
            va="center",
            weight="bold",
        )
        points = run.features[run.labels == c]
        panel.scatter(*points.T, s=9, color=colour, alpha=0.7, linewidths=0, zorder=2)
    panel.set(
        aspect="equal",
        xticks=[],
        yticks=[],
        xlim=(-1.35 * radius, 1.35 * radius),
        ylim=(-1.35 * radius, 1.35 * radius),
        title=f"{name_of(run.margin)}\ntest error {100 * run.error:.1f} %, own class at {run.own_angle:.1f}°",
    )
    panel.spines[:].set_visible(False)


def draw_psi(path: Path) -> Path:
    """Draws psi(theta) for margins of 2, 3 and 4 beside the cosine, as in the paper's Figure 3."""
    angles = np.linspace(0, np.pi, 721)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
        for margin, colour in MARGIN_COLOURS.items():
            values = [reference.psi(angle, margin) for angle in angles]
            label = "cos θ  (m = 1, softmax)" if margin == 1 else f"ψ(θ), m = {margin}"
            axes.plot(np.degrees(angles), values, label=label, color=colour, linewidth=2)
        axes.set(
            ylabel="target logit / |w||x|",
            xlim=(0, 180),
            xticks=range(0, 181, 30),
            title="The larger the margin, the smaller the angle that a target logit asks for",
        )
        _over_angles(axes)
        figure.savefig(path, dpi=110)
        plt.close(figure)
    return path


def _over_angles(axes: Any) -> None:
    """Finishes a panel of curves over the angle to a sample's class, in degrees."""
    axes.set_xlabel("angle θ between the sample and the weights of its class")
    axes.xaxis.set_major_formatter("{x:.0f}°")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower left")


def draw_margins(path: Path) -> Path:
    """Draws psi(theta) of every name in lsoftmax_op.margins, and how ArcFace's goes on beyond theta + m2 = pi."""
    angles = np.linspace(0, np.pi, 1441)
    degrees = np.degrees(angles)
    m2 = 0.5
    edge = np.degrees(np.pi - m2)
    with plt.rc_context(STYLE):
        figure, (whole, end) = plt.subplots(1, 2, figsize=(14, 5), width_ratios=(3, 2), layout="constrained")
        for label, margin, colour in (
            ("cos θ", LSoftmax(1), "#444444"),
            ("CosFace, m3 = 0.35", CosFace(0.35, 64), "#4477AA"),
            ("ArcFace, m2 = 0.5", ArcFace(m2, 64), "#BB5566"),
            ("Combined, 1, 0.3, 0.2", Combined(1, 0.3, 0.2, 64), "#AA4499"),
            ("L-Softmax and SphereFace, m = 2", LSoftmax(2), "#44AA99"),
        ):
            whole.plot(degrees, margin.psi(angles), label=label, color=colour, linewidth=2)
        whole.set(ylabel="ψ(θ)", xlim=(0, 180), xticks=range(0, 181, 30), title="What each margin makes of the cosine")
        end.axvline(edge, color="#BBBBBB", linewidth=1)
        end.plot(degrees, np.cos(angles), color="#444444", linewidth=2, label="cos θ")
        end.plot(degrees, np.cos(angles + m2), color="#999999", linestyle=":", linewidth=2, label="cos(θ + m2) alone")
        end.plot(degrees, ArcFace(m2, 64).psi(angles), color="#BB5566", linewidth=2, label='"unfolded", the default')
        beyond = degrees > edge
        linear = ArcFace(m2, 64, "linear").psi(angles)
        end.plot(degrees[beyond], linear[beyond], color="#DDAA33", linestyle="--", linewidth=2, label='"linear"')
        end.set(xlim=(130, 180), ylim=(-1.3, -0.6), title="ArcFace, m2 = 0.5, beyond θ + m2 = 180°")
        for panel in (whole, end):
            _over_angles(panel)
        figure.savefig(path, dpi=100)
        plt.close(figure)
    return path


def draw_convergence(curves: dict[int, list[list[dict]]], dataset: str, path: Path) -> Path:
    """Draws errors and loss against the iteration, a line a margin, as in the paper's Figure 5.

    Args:
        curves: of every margin, the curve of each seed: points with "step", "train_error", "error" and "loss".
        dataset: its name, for the title.
        path: where to.
    """
    subjects = (
        ("train_error", 100, "training error"),
        ("error", 100, "test error"),
        ("loss", 1, "test loss, without a margin"),
    )
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
        for (key, scale, title), panel in zip(subjects, panels, strict=True):
            ends = []
            for margin, seeds in curves.items():
                steps = [point["step"] for point in seeds[0]]
                values = scale * np.array([[point[key] for point in curve] for curve in seeds])
                colour = MARGIN_COLOURS.get(margin, COLOURS[margin % len(COLOURS)])
                panel.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)
                panel.plot(steps, values.mean(axis=0), color=colour, linewidth=2, label=name_of(margin))
                ends += [values.min(), *values[:, len(steps) // 3 :].ravel()]
            panel.set(title=title, xlabel="iteration", xlim=(0, steps[-1]))
            if np.isfinite(ends).all() and max(ends) > 0:  # the first, steep third may leave the panel
                panel.set_ylim(0.9 * min(ends), 1.05 * max(ends))
            if scale == 100:
                panel.yaxis.set_major_formatter("{x:g} %")
            panel.grid(alpha=0.25)
        panels[0].legend(frameon=False)
        count = len(next(iter(curves.values())))
        figure.suptitle(f"{dataset}: mean of {count} seed{'s'[: count > 1]}, and the range of them", fontsize=14)
        figure.savefig(path, dpi=100)
        plt.close(figure)
    return path


def draw_verification(runs: list[verification.Run], rates: np.ndarray, path: Path) -> Path:
    """Draws the ROC curves of unseen and of seen classes, and the equal error rate of every pair of unseen ones.

    Args:
        runs: the networks, those of a kind one after the other.
        rates: the false accept rates [M] of their curves.
        path: where to.
    """
    kinds = list(dict.fromkeys(run.kind for run in runs))
    pairs = list(dict.fromkeys(run.unseen for run in runs))
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
        for n, (kind, colour) in enumerate(zip(kinds, KIND_COLOURS, strict=False)):
            own = [run for run in runs if run.kind == kind]
            for panel, curve in zip(panels, ("unseen_curve", "seen_curve"), strict=False):
                accepted = 1 - np.mean([getattr(run, curve) for run in own], axis=0)
                panel.plot(100 * rates, 100 * accepted, color=colour, linewidth=2, label=kind)
            for place, pair in enumerate(pairs):
                values = [100 * run.unseen_eer for run in own if run.unseen == pair]
                at = place + 0.11 * (n - (len(kinds) - 1) / 2)
                panels[2].plot([at] * len(values), values, "o", color=colour, markersize=5, alpha=0.8)
        for panel, title in zip(panels, ("pairs of two unseen digits", "pairs of the eight seen digits"), strict=False):
            panel.plot(100 * rates, 100 * (1 - rates), color="#888888", linestyle=":", linewidth=1, label="equal rates")
            panel.set(title=title, xlabel="false accept rate", ylabel="true accept rate", xscale="log", ylim=(0, 101))
            panel.xaxis.set_major_formatter("{x:g} %")
        panels[0].legend(frameon=False, loc="upper left")
        panels[2].set(title="equal error rate, network by network", xlabel="unseen digits", xticks=range(len(pairs)))
        panels[2].set_xticklabels([" and ".join(map(str, pair)) for pair in pairs])
        panels[2].set_ylim(bottom=0)
        for panel in panels:
            panel.yaxis.set_major_formatter("{x:g} %")
            panel.grid(alpha=0.25)
        figure.savefig(path, dpi=100)
        plt.close(figure)
    return path
