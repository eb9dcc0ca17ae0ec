"""The table of agreement in the docs, made of what the tests have measured.

    RNNJAX_AGREEMENT=agreement.jsonl python -m pytest tests/interop
    python -m tests.interop.table agreement.jsonl docs/interop.md

It replaces what stands between the two markers of the page, and nothing else.
"""

import json
import sys
from pathlib import Path

from rnnjax.files import write_atomic

__all__ = ["BEGIN", "END", "main", "make_table", "replace"]

BEGIN, END = "<!-- agreement: begin -->", "<!-- agreement: end -->"
COLUMNS = (("in", "float32"), ("in", "float64"), ("out", "float32"), ("out", "float64"))
HEADER = "| framework | layer | in, float32 | in, float64 | out, float32 | out, float64 |\n|---|---|---|---|---|---|\n"


def make_table(lines: list[str]) -> str:
    """Markdown, one line a layer; the largest of several measurements counts."""
    worst: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for line in lines:
        row = json.loads(line)
        errors = worst.setdefault((row["framework"], row["cell"]), {})
        key = (row["direction"], row["dtype"])
        errors[key] = max(errors.get(key, 0.0), row["error"])
    text = HEADER
    for (framework, cell), errors in sorted(worst.items(), key=lambda item: [name.lower() for name in item[0]]):
        text += f"| {framework} | {cell} | {' | '.join(_number(errors.get(column)) for column in COLUMNS)} |\n"
    return text


def _number(error: float | None) -> str:
    if error is None:
        return ""
    return "0" if error == 0 else f"{error:.0e}"


def replace(page: str, table: str) -> str:
    """The page with the table between its markers."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"table: the page must hold the line {BEGIN} and, below it, {END}, each once.")
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n{table}{END}{rest.split(END)[1]}"


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        raise SystemExit("usage: python -m tests.interop.table MEASUREMENTS.jsonl PAGE.md")
    measurements, page = map(Path, arguments)
    lines = measurements.read_text(encoding="utf-8").splitlines()
    text = replace(page.read_text(encoding="utf-8"), make_table(lines))
    write_atomic(page, text.encode("utf-8"))
    print(f"{page}: {text[text.index(BEGIN) : text.index(END)].count(chr(10)) - 3} rows")


if __name__ == "__main__":
    main(sys.argv[1:])
