"""The matrix of cells and problems: as a picture, and as the page of the documentation."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rnnjax.files import write_atomic

from .entries import ENTRIES
from .problems import PROBLEMS, Problem

__all__ = ["markdown", "picture", "row_of", "verdict", "write_page"]

Rows = Mapping[str, Mapping[str, Any]]  # by problem
ENOUGH = 0.9  # of the seeds: reached


def verdict(row: Mapping[str, Any]) -> str:
    """Reached (nine seeds of ten), partly (any), or not."""
    share = _share(row)
    return "reached" if share >= ENOUGH else "partly" if share > 0 else "not"


def _share(row: Mapping[str, Any]) -> float:
    return sum(one is not None for one in row["solved"]) / len(row["solved"])


def _number(problem: Problem, row: Mapping[str, Any]) -> str:
    scores = [score for score in row["score"] if score is not None]
    value = float(np.median(scores)) if scores else float("nan")
    return f"{value:.0f}" if problem.passes > 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.1g}"


def picture(found: Mapping[str, Rows], cells: Sequence[str], seeds: int) -> Any:
    """Cells down, problems across; in each place how many seeds reached it, and in colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 + 0.5 * len(PROBLEMS), 2.4 + 0.34 * len(cells)), layout="constrained")
    axes = figure.subplots()
    shares = np.full((len(cells), len(PROBLEMS)), np.nan)
    for i, cell in enumerate(cells):
        for j, problem in enumerate(PROBLEMS):
            if row := found.get(cell, {}).get(problem.name):
                shares[i, j] = _share(row)
                count = sum(one is not None for one in row["solved"])
                color = "white" if shares[i, j] > 0.55 else "#1b1b1b" if count else "#888888"
                axes.text(j, i, str(count), ha="center", va="center", fontsize=9, color=color)
    axes.imshow(np.ma.masked_invalid(shares), cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    axes.set_facecolor("#f2f2f2")
    axes.set_xticks(range(len(PROBLEMS)), [problem.title for problem in PROBLEMS], rotation=50, ha="left", fontsize=9)
    axes.set_yticks(range(len(cells)), cells, fontsize=9)
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(len(PROBLEMS) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(cells) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    note = "" if not np.isnan(shares).any() else "; grey: not run"
    axes.set_xlabel(f"seeds of {seeds} that reached the score asked for{note}", fontsize=9)
    return figure


def row_of(found: Rows) -> str:
    """What one cell did, as a Markdown table."""
    lines = ["| problem | seeds | verdict | median score | updates | seconds |", "|---|---|---|---|---|---|"]
    for problem in PROBLEMS:
        if row := found.get(problem.name):
            count = sum(one is not None for one in row["solved"])
            done = [one for one in row["solved"] if one is not None]
            lines.append(
                f"| {problem.title} | {count} of {len(row['solved'])} | {verdict(row)} | {_number(problem, row)} | "
                f"{int(np.median(done)) if done else '-'} | {row['seconds']:.0f} |"
            )
    return "\n".join(lines)


def _asked(problem: Problem, full: bool) -> str:
    sign = "at most" if problem.lower else "at least"
    blind = "" if problem.blind is None else f" (without memory, {problem.blind:.3g})"
    return f"{problem.question(full)}; {sign} {problem.passes:g}{blind}"


def markdown(found: Mapping[str, Rows], cells: Sequence[str], picture: str, full: bool = False) -> str:
    """The picture, problems with their sources, and the matrix with the median score of each place, in two halves."""
    places = sum(len(found.get(cell, {})) for cell in cells)
    seconds = sum(row["seconds"] for rows in found.values() for row in rows.values())
    missing = len(cells) * len(PROBLEMS) - places
    said = f"{places:,} places, {seconds / 60:.0f} minutes of the processor"
    said += "; lengths as published, where they differ, and ten times the updates" if full else ""
    said += f"; {missing} of these cells' places were not run" if missing else ""
    waiting = [one.name for one in ENTRIES if one.name not in cells]
    said += f". **Partial**: not run yet are {', '.join(waiting)}" if waiting else ""
    lines = [f"![Cells by problems: seeds of ten that reached it]({picture})", "", f"{said}.", ""]
    lines += ["| problem | asked here | published | source |", "|---|---|---|---|"]
    lines += [
        f"| {problem.title} | {_asked(problem, full)} | {problem.published or '-'} | {problem.source} |"
        for problem in PROBLEMS
    ]
    lines += ["", "Seeds of ten that reached it, bold from nine on, and the median of the best scores.", ""]
    for half in (PROBLEMS[: len(PROBLEMS) // 2], PROBLEMS[len(PROBLEMS) // 2 :]):
        lines += ["| cell | " + " | ".join(problem.title for problem in half) + " |", "|---" * (1 + len(half)) + "|"]
        lines += [f"| {cell} | " + " | ".join(_place(problem, found.get(cell, {})) for problem in half) + " |"
                  for cell in cells]  # fmt: skip
        lines.append("")
    return "\n".join(lines)


def _place(problem: Problem, rows: Rows) -> str:
    row = rows.get(problem.name)
    if row is None:
        return ""
    count = str(sum(one is not None for one in row["solved"]))
    return f"{f'**{count}**' if verdict(row) == 'reached' else count} ({_number(problem, row)})"


def write_page(path: pathlib.Path, text: str) -> None:
    """Between the two marks of a page; what stands around them stays. Without a page, the text alone."""
    page = path.read_text(encoding="utf-8") if path.is_file() else "<!-- made: begin -->\n<!-- made: end -->\n"
    before, mark, rest = page.partition("<!-- made: begin -->\n")
    after = rest.partition("<!-- made: end -->\n")[2]
    write_atomic(path, f"{before}{mark}{text}<!-- made: end -->\n{after}".encode())
