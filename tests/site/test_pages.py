"""The pages of the site, without building it: every page is reached, parses, leads somewhere and asks its questions."""

import ast
import re
import tomllib

import pytest

import rnnjax
from tests.pages import ROOT, run_fresh

DOCS = ROOT / "docs"
COURSE = sorted((DOCS / "course").glob("[0-9]*.md"))
CELL = re.compile(r"```\{code-cell\} python\n((?::[^\n]*\n)*)(.*?)```", re.S)
MADE = {"made/cells/index", "made/reference/index"}  # by docs/generated.py


def test_the_version_is_one():
    """In the package, in its metadata and where it is cited."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == rnnjax.__version__
    assert f"\nversion: {rnnjax.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def entries(page):
    """The pages that the toctrees of a page name."""
    text = page.read_text(encoding="utf-8")
    folder = page.parent.relative_to(DOCS)
    for tree in re.findall(r"```\{toctree\}\n(.*?)```", text, re.S):
        for line in tree.splitlines():
            if line.strip() and not line.startswith(":"):
                name = re.sub(r".*<(.*)>", r"\1", line.strip())
                yield (folder / name).as_posix()


def test_every_page_is_in_a_table_of_contents():
    named = [name for page in (DOCS / "index.md", DOCS / "course" / "index.md") for name in entries(page)]
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")}
    pages = {name for name in pages if not name.startswith("made/")}
    assert len(named) == len(set(named))
    assert set(named) == pages - {"index"} | MADE


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    targets = re.findall(r"\[[^\]]*\]\(([^)\s:#]+)(?:#[^)\s]*)?\)", text)
    here = page.parent
    missing = [t for t in targets if not (here / t).exists() and not (here / t).resolve().is_relative_to(DOCS / "made")]
    assert not missing


@pytest.mark.parametrize("page", COURSE, ids=lambda page: page.stem)
def test_a_page_of_the_course_is_a_program_with_exercises(page):
    text = page.read_text(encoding="utf-8")
    assert text.startswith("---\nfile_format: mystnb\n")
    cells = CELL.findall(text)
    assert len(cells) == text.count("{code-cell}") >= 4
    for options, code in cells:
        ast.parse(code)
        if ":tags:" not in options:  # else it is folded
            assert [line for line in code.splitlines() if len(line) > 104] == []  # longer lines do not fit the page
    title, question = re.search(r"^# (\d+) .*\n\n\*\*(.*)\*\*$", text, re.M).groups()
    assert page.name.startswith(f"{int(title):02}-") and question.endswith("?")
    exercises = text[text.index("\n## Exercises\n") :]
    assert len(re.findall(r"^\d\. ", exercises, re.M)) == exercises.count(":::{dropdown} Answer") == 3
    assert "$$" in text or "```text" in text  # the equation


def entries_of(catalogue):
    """The texts of a catalogue and their translations; each stands on a line of its own."""
    lines = [
        line for line in catalogue.read_text(encoding="utf-8").splitlines() if line.startswith(("msgid", "msgstr"))
    ]
    texts = [ast.literal_eval(line.partition(" ")[2]) for line in lines]
    return list(zip(texts[2::2], texts[3::2], strict=True))


def texts_of(page):
    """What a reader reads of a page: paragraphs, headings, items, cells of tables, titles of what is folded."""
    text = re.sub(r"^---\n.*?\n---\n|\$\$.*?\$\$", "\n\n", page.read_text(encoding="utf-8"), flags=re.S)
    for tree in re.findall(r"```\{toctree\}\n(.*?)```", text, re.S):
        yield from re.findall(r"^:caption: (.+)$", tree, re.M)
    text = re.sub(r"```.*?```", "\n\n", text, flags=re.S)
    yield from re.findall(r":::\{\w+\} (.+)", text)
    text = re.sub(r"^ *:::.*$", "\n", text, flags=re.M)
    for row in re.findall(r"^\|(.*)\|$", text, re.M):
        yield from re.split(r"(?<!\\)\|", row)
    text = re.sub(r"^\|.*$", "\n", text, flags=re.M)
    text = re.sub(r"^ *([*-]|\d+\.|#+) ", "\n\n", text, flags=re.M)
    yield from re.split(r"\n\s*\n", text)


def is_prose(text):
    """Whether there are words in it beside code, numbers and the names of pictures."""
    return re.search(r"[A-Za-z]{2}", re.sub(r"`[^`]*`|!\[.*?\]\(.*?\)|\$.*?\$|^\W*(rnnjax|hello)\W*$", "", text))


@pytest.mark.parametrize("page", [DOCS / "index.md", DOCS / "course" / "index.md", *COURSE], ids=lambda page: page.stem)
def test_the_course_in_korean(page):
    """Nothing is left in English, and what is said is what stands there today, with its code, links and numbers."""
    catalogue = (DOCS / "locale" / "ko" / "LC_MESSAGES" / page.relative_to(DOCS)).with_suffix(".po")
    known = entries_of(catalogue)
    assert "#, fuzzy" not in catalogue.read_text(encoding="utf-8")
    source = " ".join(page.read_text(encoding="utf-8").split())
    for text, korean in known:
        assert " ".join(text.split()) in source, f"the page says it otherwise now: {text}"
        assert re.search("[가-힣]", korean)
        for pattern in (r"`[^`]+`", r"\]\([^)]+\)", r"\$[^$]+\$"):
            assert sorted(re.findall(pattern, text)) == sorted(re.findall(pattern, korean)), text
    translated = {" ".join(text.split()) for text, _ in known}
    said = [" ".join(text.split()) for text in texts_of(page)]
    assert [text for text in said if is_prose(text) and text not in translated] == []


def test_the_figures_speak_korean():
    """Every sentence of a figure is in the dictionary, and nothing else is."""
    folder = DOCS / "_static" / "figures"
    known = re.findall(r'^  "((?:[^"\\]|\\.)+)": "(.+)",$', (folder / "korean.js").read_text(encoding="utf-8"), re.M)
    code = "".join((folder / name).read_text(encoding="utf-8") for name in ("figures.js", "reader.js"))
    said = re.findall(r'Figures\.say\("([^"]+)"', code) + re.findall(r'Figures\.button\(\w+, "([^"]+)"', code)
    said += re.findall(r'Figures\.slider\(\w+, "([^"]+)"', code) + re.findall(r'[xy]label: "([^"]+)"', code)
    for title, about in re.findall(r'Figures\.head\(root, "([^"]+)", "([^"]+)"\)', code):
        said += [title, about]
    assert len(said) > 35 and set(said) <= {words for words, _ in known}
    for words, korean in known:
        assert f'"{words}"' in code, f"no figure says it: {words}"
        assert re.search("[가-힣]", korean) and set(re.findall(r"{\d}", words)) == set(re.findall(r"{\d}", korean))


def test_no_page_asks_a_network_for_anything():
    """Scripts and styles come with the site."""
    for path in (DOCS / "_static").rglob("*.*"):
        if path.suffix in (".js", ".css", ".html"):
            text = path.read_text(encoding="utf-8").replace("http://www.w3.org/", "")
            assert not re.search(r"https?://|fetch\(|XMLHttpRequest|import\(", text), path.name


# What the recipes use of W&B and MLflow, by the signatures of their manuals.
FAKES = """
import contextlib, sys, types
logged = {"wandb": [], "mlflow": []}
class Run:
    def log(self, data, step=None):
        assert all(type(value) is float for value in data.values()) and type(step) is int
        logged["wandb"].append((step, data))
    def finish(self):
        logged["finished"] = True
def log_metrics(metrics, step=None):
    assert all(type(value) is float for value in metrics.values()) and type(step) is int
    logged["mlflow"].append((step, metrics))
start_run = lambda: contextlib.nullcontext()
sys.modules["wandb"] = types.SimpleNamespace(init=lambda project: Run())
sys.modules["mlflow"] = types.SimpleNamespace(log_metrics=log_metrics, start_run=start_run)
"""
LOGGED = """
assert outcome.metrics["right"] > 0.5 and y.shape == (4, 16) and logged["finished"]
assert logged["wandb"] and [step for step, _ in logged["wandb"]] == [step for step, _ in logged["mlflow"]]
for (_, a), (_, b) in zip(logged["wandb"], logged["mlflow"]):
    assert "train/loss" in a and a["train/loss"] == b["train/loss"]
"""


@pytest.mark.long
def test_recipes_run():
    """Every row of a training has a kind, and its numbers arrive where the recipes send them."""
    out = run_fresh("docs/how-to.md", before={"import wandb": FAKES}, after=LOGGED)
    assert "head.w" in out and "all " in out


@pytest.mark.long
def test_the_same_layer_in_other_frameworks():
    pytest.importorskip("torch")
    run_fresh("docs/coming-from.md")
