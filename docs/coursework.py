"""What the pages of the course share: one style of pictures, figures to play with, and texts that Python brings."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import matplotlib_inline.backend_inline
import numpy as np
from IPython.display import HTML

BLUE, ORANGE, GREEN, PINK, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a8f98"  # Okabe and Ito, 2008


def start() -> None:
    """The style of all pictures; call it first."""
    matplotlib_inline.backend_inline.set_matplotlib_formats("png", dpi=150, bbox_inches="tight")
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 2.8),
            "figure.dpi": 110,
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, PINK, GREY]),
            "axes.grid": True,
            "axes.grid.axis": "y",
            "grid.color": "0.9",
            "axes.axisbelow": True,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
        }
    )


def live(name: str, data: Mapping[str, Any]) -> HTML:
    """A figure of docs/_static/figures with its data."""

    def number(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.tolist()
        return float(value)

    text = json.dumps(data, default=number, separators=(",", ":")).replace("<", "\\u003c")
    return HTML(f'<figure class="live" data-figure="{name}"><script type="application/json">{text}</script></figure>')


def python_manual() -> str:
    """A book that every Python brings: the chapters of its language reference, as `help()` shows them."""
    from pydoc_data import topics

    return "\n\n".join(text.strip() for _, text in sorted(topics.topics.items()))


def coloured(text: str, values: np.ndarray, underlined: np.ndarray | None = None) -> HTML:
    """A text with the colour of a number behind every character: blue below, orange above the middle."""
    low, high = np.quantile(values, [0.02, 0.98])
    shares = np.clip((values - low) / (high - low) * 2 - 1, -1, 1)
    parts = []
    for k, (character, share) in enumerate(zip(text, shares, strict=True)):
        end = (0, 114, 178) if share < 0 else (213, 94, 0)
        rgb = [round(255 + (c - 255) * abs(share) * 0.75) for c in end]
        line = ";text-decoration:underline" if underlined is not None and underlined[k] else ""
        parts.append(f'<span style="background:rgb({rgb[0]},{rgb[1]},{rgb[2]}){line}">{html.escape(character)}</span>')
    return HTML(f'<div class="coloured">{"".join(parts)}</div>')


def box(ax: Any, x: float, y: float, text: str, colour: str = BLUE, width: float = 0.62, height: float = 0.5) -> None:
    """A box of a drawing of a network, around its centre."""
    patch = plt.matplotlib.patches.FancyBboxPatch(
        (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0.02,rounding_size=0.1",
        facecolor=colour + "22", edgecolor=colour, linewidth=1.4,
    )  # fmt: skip
    ax.add_patch(patch)
    ax.text(x, y, text, ha="center", va="center", fontsize=10)


def arrow(ax: Any, start: tuple[float, float], end: tuple[float, float], text: str = "", **style: Any) -> None:
    """An arrow of a drawing, with a word beside it."""
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "0.35", "linewidth": 1.2, **style})
    if text:
        ax.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.12, text, ha="center", fontsize=9, color="0.3")


def canvas(width: float, height: float, scale: float = 0.85) -> Any:
    """An empty drawing."""
    _, ax = plt.subplots(figsize=(width * scale, height * scale))
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.axis("off")
    return ax
