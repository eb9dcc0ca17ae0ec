"""What `rnnjax train` shows: a live line on a terminal, plain lines elsewhere and in the log file."""

from __future__ import annotations

import math
import pathlib
import time
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rnnjax.lm.run import BudgetOptions

__all__ = ["Display", "duration"]


def duration(seconds: float) -> str:
    """``75`` as ``1:15``, ``4000`` as ``1:06:40``.

    >>> duration(75), duration(4000)
    ('1:15', '1:06:40')
    """
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def nats(loss: float | None) -> str:
    """A loss in nats and in bits a symbol."""
    if loss is None or not math.isfinite(loss):
        return "-"
    return f"{loss:.4f} nats ({loss / math.log(2):.3f} bits)"


class Display:
    """Takes the rows of the metrics as they come; a context manager, so that the terminal is left clean."""

    def __init__(self, console: Console, log: pathlib.Path, budget: BudgetOptions, steps_per_epoch: int) -> None:
        self.console = console
        self.log_path = log
        self.budget = budget
        self.steps_per_epoch = steps_per_epoch
        self.baselines: dict[str, float] = {}
        self.row: dict[str, Any] = {}
        self.best: tuple[float, int] = (math.inf, 0)
        self.last_eval: float | None = None
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self.log: TextIO | None = None

    def __enter__(self) -> Display:
        self.log = self.log_path.open("a", encoding="utf-8")
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self.live:
            self.live.stop()
        if self.log:
            self.log.close()

    def say(self, line: str, style: str = "") -> None:
        """A line that stays, on the screen and in the log file."""
        try:
            self.console.print(Text(line, style=style), soft_wrap=True)
        except (BrokenPipeError, SystemExit):  # rich exits where the reader left; the training goes on
            self.console.quiet = True
        if self.log:
            self.log.write(f"{time.strftime('%H:%M:%S')} {line}\n")
            self.log.flush()

    def __call__(self, row: dict[str, Any]) -> None:
        """Shows one row."""
        kind = row["kind"]
        if kind == "train":
            self.row = row
            if self.log:
                self.log.write(f"{time.strftime('%H:%M:%S')} {self.train_line(row)}\n")
                self.log.flush()
        elif kind == "eval":
            self.last_eval = row["val_loss"]
            better = row["val_loss"] < self.best[0]
            if better:
                self.best = row["val_loss"], row["step"]
            mark = "best so far" if better else f"best {self.best[0]:.4f} at step {self.best[1]}"
            self.say(
                f"{duration(row['seconds']):>7}  step {row['step']:>6}  validation {nats(row['val_loss'])}  {mark}"
                f"{self.beside()}",
                "bold" if better else "",
            )
        elif kind == "sample" and row["text"]:
            if self.console.is_terminal:
                title = f"sample at step {row['step']}"
                self.console.print(Panel(Text(row["text"].strip("\n")), title=title, border_style="dim"))
        elif kind == "rollback":
            self.say(
                f"{duration(row['seconds']):>7}  step {row['step']:>6}  {row['reason']}: back to step "
                f"{row['to_step']}, learning rate times {row['lr_scale']:g}",
                "red",
            )
        if self.live:
            self.live.update(self.panel(), refresh=True)

    def beside(self) -> str:
        """The baselines, to be read beside a validation loss."""
        names = {"unigram": "unigram", "witten_bell": "5-gram", "xz": "xz"}
        known = [f"{names.get(k, k)} {v:.3f}" for k, v in self.baselines.items() if math.isfinite(v)]
        return f"  [{', '.join(known)}]" if known else ""

    def train_line(self, row: dict[str, Any]) -> str:
        return (
            f"{duration(row['seconds']):>7}  step {row['step']:>6}  epoch {row['epoch']}  loss {nats(row['loss'])}  "
            f"gradient {row['grad_norm']:.3f}  lr {row['lr']:.2e}  {row['symbols_per_second']:,.0f} characters/s"
        )

    def progress(self) -> tuple[float, float]:
        """The share of the budget that is used, and the seconds that are left."""
        if not self.row:
            return 0.0, math.nan
        budget, seconds, step = self.budget, self.row["seconds"], self.row["step"]
        if budget.minutes is not None:
            return min(1.0, seconds / (60 * budget.minutes)), 60 * budget.minutes - seconds
        total = budget.steps if budget.steps is not None else round((budget.epochs or 0) * self.steps_per_epoch)
        symbols = self.row["symbols"] / max(step, 1)
        return min(1.0, step / max(total, 1)), (total - step) * symbols / max(self.row["symbols_per_second"], 1e-9)

    def panel(self) -> Table:
        share, left = self.progress()
        grid = Table.grid(padding=(0, 2))
        for _ in range(3):
            grid.add_column()
        row = self.row
        if not row:
            grid.add_row("compiling ...")
            return grid
        left_text = f"{duration(left)} left" if math.isfinite(left) else ""
        grid.add_row(f"{100 * share:5.1f} %", ProgressBar(total=1.0, completed=share, width=36), left_text)
        gradient = f"gradient {row['grad_norm']:.3f}, clipped {100 * row['clip_rate']:.0f} %"
        grid.add_row("loss", nats(row["loss"]), gradient)
        best = f"best {self.best[0]:.4f} at step {self.best[1]}" if math.isfinite(self.best[0]) else ""
        grid.add_row("validation", nats(self.last_eval), best)
        speed = f"{row['symbols_per_second']:,.0f} characters/s"
        grid.add_row(f"step {row['step']}", f"epoch {row['epoch']}, learning rate {row['lr']:.2e}", speed)
        return grid
