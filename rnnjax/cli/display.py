"""What `rnnjax train` shows: `rnnjax.fit.Printer` in the words of language models."""

from __future__ import annotations

import math
import pathlib
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from rnnjax.cli.live import progress_words
from rnnjax.fit.printer import Printer, duration
from rnnjax.text.shown import shown

__all__ = ["Display", "nats"]


def nats(loss: float | None) -> str:
    """A loss in nats and in bits a symbol."""
    if loss is None or not math.isfinite(loss):
        return "-"
    return f"{loss:.4f} nats ({loss / math.log(2):.3f} bits)"


class Display(Printer):
    """Takes the rows of the metrics as they come; a context manager, so that the terminal is left clean."""

    def __init__(self, console: Console, log: pathlib.Path) -> None:
        super().__init__(console=console, log=log)
        self.baselines: dict[str, float] = {}
        self.best: tuple[float, int] = (math.inf, 0)

    def __enter__(self) -> Display:
        super().__enter__()
        return self

    def is_better(self, row: dict[str, Any]) -> bool:
        """Whether the validation loss is the lowest so far."""
        better: bool = row["val_loss"] < self.best[0]
        if better:
            self.best = row["val_loss"], row["step"]
        return better

    def eval_line(self, row: dict[str, Any], better: bool) -> str:
        """The validation loss, beside the baselines."""
        mark = "best so far" if better else f"best {self.best[0]:.4f} at step {self.best[1]}"
        return (
            f"{duration(row['seconds']):>7}  step {row['step']:>6}  validation {nats(row['val_loss'])}  {mark}"
            f"{self.beside()}"
        )

    def other(self, row: dict[str, Any]) -> None:
        """Samples, and what any training shows but its end, for which the command has words of its own."""
        if row["kind"] not in ("sample", "done"):
            super().other(row)
        if row["kind"] == "sample" and row["text"] and self.console.is_terminal:
            title = f"sample at step {row['step']}"
            self.console.print(Panel(Text(shown(row["text"].strip("\n"))), title=title, border_style="dim"))

    def beside(self) -> str:
        """The baselines, to be read beside a validation loss."""
        names = {"unigram": "unigram", "witten_bell": "5-gram", "xz": "xz"}
        known = [f"{names.get(k, k)} {v:.3f}" for k, v in self.baselines.items() if math.isfinite(v)]
        return f"  [{', '.join(known)}]" if known else ""

    def train_line(self, row: dict[str, Any]) -> str:
        """What a line of metrics says in the log file."""
        return (
            f"{duration(row['seconds']):>7}  step {row['step']:>6}  epoch {row['epoch']}  loss {nats(row['loss'])}  "
            f"gradient {row['grad_norm']:.3f}  lr {row['lr']:.2e}  {row['symbols_per_second']:,.0f} characters/s"
            + (f"  {words}" if (words := progress_words(row)) else "")
        )

    def panel(self) -> Any:
        """What the terminal shows while the training goes on."""
        row = self.row
        if not row:
            return super().panel()
        gradient = f"gradient {row['grad_norm']:.3f}, clipped {100 * row['clip_rate']:.0f} %"
        best = f"best {self.best[0]:.4f} at step {self.best[1]}" if math.isfinite(self.best[0]) else ""
        speed = f"{row['symbols_per_second']:,.0f} characters/s"
        lines = [
            ("loss", nats(row["loss"]), gradient),
            ("validation", nats(self.last_eval.get("val_loss")), best),
            (f"step {row['step']}", f"epoch {row['epoch']}, learning rate {row['lr']:.2e}", speed),
        ]
        if words := progress_words(row):
            lines.append(("stream", words, ""))
        return self.grid(lines, bar=True)
