"""What a training shows: a live line on a terminal, plain lines elsewhere and in a log file."""

from __future__ import annotations

import math
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any, TextIO

from rnnjax.extras import require
from rnnjax.files import check_kind
from rnnjax.text.shown import shown

__all__ = ["Printer", "duration"]

_NO_METRICS = frozenset(
    "kind step epoch progress grad_norm grad_norm_max lr seconds steps_per_second best best_step reason".split()
)


def duration(seconds: float) -> str:
    """``75`` as ``1:15``, ``4000`` as ``1:06:40``.

    >>> duration(75), duration(4000)
    ('1:15', '1:06:40')
    """
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Printer:
    """Takes the rows of a training as they come: ``fit(..., report=Printer())``.

    On a terminal a panel shows how far the training is, what is left, and its speed; evaluations, roll-backs and the
    end are lines that stay. A context manager, so that the terminal is left clean; `fit` enters and leaves it.

    Args:
        quiet: show nothing; a log file is written all the same.
        console: a ``rich.console.Console``; None makes one for standard output.
        log: a file to which every line is appended with its time, those of the training besides.
        title: stands before the lines, to tell trainings apart.

    Raises:
        ModuleNotFoundError: if rich is not installed.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        console: Any = None,
        log: str | os.PathLike[str] | None = None,
        title: str = "",
    ) -> None:
        rich_console = require("rich.console", "rich", "Printer", "'rnnjax[lm]', or report the rows yourself")
        self.console = rich_console.Console(highlight=False) if console is None else console
        self.quiet = quiet
        self.log_path = None if log is None else pathlib.Path(log)
        self.title = title
        self.row: dict[str, Any] = {}  # the last of the training
        self.last_eval: dict[str, Any] = {}
        self.best_eval: dict[str, Any] = {}
        self.live: Any = None
        self.log: TextIO | None = None
        self._inside = 0
        self._drawn = 0.0

    def __enter__(self) -> Printer:
        self._inside += 1
        self._open()
        return self

    def __exit__(self, *unused: object) -> None:
        self._inside -= 1
        if not self._inside:
            self._close()

    def __call__(self, row: dict[str, Any]) -> None:
        """Shows one row."""
        self._open()
        kind = row["kind"]
        if kind == "train":
            self.row = row
            self.write(self.train_line(row))
        elif kind == "eval":
            self.last_eval = row
            if better := self.is_better(row):
                self.best_eval = row
            self.say(self.eval_line(row, better), "bold" if better else "")
        elif kind == "rollback":
            self.say(
                f"{duration(row['seconds']):>7}  step {row['step']:>6}  {row['reason']}: back to step "
                f"{row['to_step']}, learning rate times {row['lr_scale']:g}",
                "red",
            )
        else:
            self.other(row)
        if self.live and (kind != "train" or time.monotonic() > self._drawn + 0.1):  # small steps come in thousands
            self.live.update(self.panel(), refresh=True)
            self._drawn = time.monotonic()
        if kind == "done" and not self._inside:
            self._close()

    def say(self, line: str, style: str = "") -> None:
        """A line that stays, on the screen and in the log file."""
        from rich.text import Text

        line = shown(f"{self.title}  {line}" if self.title else line)
        if not self.quiet:
            try:
                self.console.print(Text(line, style=style), soft_wrap=True)
            except (BrokenPipeError, SystemExit):  # rich exits where the reader left; the training goes on
                self.console.quiet = True
        self.write(line)

    def write(self, line: str) -> None:
        """A line of the log file alone."""
        if self.log:
            self.log.write(f"{time.strftime('%H:%M:%S')} {line}\n")
            self.log.flush()

    def is_better(self, row: dict[str, Any]) -> bool:
        """Whether an evaluation is the best so far."""
        return bool(row["best"])

    def eval_line(self, row: dict[str, Any], better: bool) -> str:
        """What an evaluation says."""
        mark = "best so far" if better else f"best at step {self.best_eval.get('step', 0)}"
        return f"{duration(row['seconds']):>7}  step {row['step']:>6}  {_metrics(row)}  {mark}"

    def train_line(self, row: dict[str, Any]) -> str:
        """What a line of metrics says in the log file."""
        rate = "" if row["lr"] is None else f"  lr {row['lr']:.2e}"
        return (
            f"{duration(row['seconds']):>7}  step {row['step']:>6}  epoch {row['epoch']}  {_metrics(row)}  gradient "
            f"{row['grad_norm']:.3f}{rate}  {_speed(row)}"
        )

    def other(self, row: dict[str, Any]) -> None:
        """Shows rows of other kinds: compiling, notes, the end."""
        if row["kind"] == "compiling":
            times = f", up to {row['programs']} times, once a length of batches" if row["programs"] > 1 else ""
            self.say(f"compiling the update{times} ...")
        elif row["kind"] == "compiled":
            self.write(f"compiled, with its first update, in {row['seconds']:.1f} s")
        elif row["kind"] == "note":
            self.say(row["text"])
        elif row["kind"] == "done":
            why = {"budget": "done", "patience": "no new best for a while, done early", "stopped": "stopped"}
            why["data"] = "the batches have ended"
            metrics = f": {_metrics(row)}" if _metrics(row) else ""
            best = f", best at step {row['best_step']}{metrics}" if row["best_step"] != row["step"] else metrics
            self.say(f"{duration(row['seconds']):>7}  step {row['step']:>6}  {why[row['reason']]}{best}", "bold")

    def progress(self) -> tuple[float, float]:
        """The share of the budget that is used, and the seconds that are left."""
        if not self.row or not self.row["progress"]:
            return 0.0, math.nan
        share = self.row["progress"]
        return share, self.row["seconds"] * (1 - share) / share

    def panel(self) -> Any:
        """What the terminal shows while the training goes on."""
        row = self.row
        if not row:
            return self.grid([("compiling ...",)])
        rate = "" if row["lr"] is None else f", learning rate {row['lr']:.2e}"
        lines = [
            (f"step {row['step']}", f"epoch {row['epoch']}{rate}", _speed(row)),
            ("training", _metrics(row), f"gradient {row['grad_norm']:.3f}"),
        ]
        if self.last_eval:
            lines.append(("evaluation", _metrics(self.last_eval), f"best at step {self.best_eval.get('step', 0)}"))
        return self.grid(lines, bar=True)

    def grid(self, lines: Sequence[tuple[str, ...]], *, bar: bool = False) -> Any:
        """Lines of three columns, below a bar that shows how much of the budget is used."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        for _ in range(3):
            grid.add_column()
        if bar:
            share, left = self.progress()
            left_text = f"{duration(left)} left" if math.isfinite(left) else ""
            grid.add_row(f"{100 * share:5.1f} %", ProgressBar(total=1.0, completed=share, width=36), left_text)
        for line in lines:
            grid.add_row(*line)
        return grid

    def _open(self) -> None:
        if self.log is None and self.log_path is not None:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            check_kind(self.log_path, "log")  # a link would lead elsewhere, and a pipe would wait for a reader
            self.log = self.log_path.open("a", encoding="utf-8")
        if self.live is None and self.console.is_terminal and not self.quiet:
            from rich.live import Live

            self.live = Live(console=self.console, auto_refresh=False, transient=True)
            self.live.start()

    def _close(self) -> None:
        if self.live:
            self.live.stop()
        if self.log:
            self.log.close()
        self.live = self.log = None


def _metrics(row: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in _NO_METRICS)


def _speed(row: dict[str, Any]) -> str:
    speed = row["steps_per_second"]
    return f"{speed:,.0f} steps/s" if speed >= 100 else f"{speed:.3g} steps/s"
