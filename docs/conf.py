"""The site: `make docs` builds it into build/site, from these pages and from the docstrings."""

import os
import re
import sys
import tomllib
from pathlib import Path

from docutils import nodes

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]
# The kernels that execute pages inherit these.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])

project = "rnnjax"
author = "The rnnjax authors"
release = version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_design",
    "generated",
]
exclude_patterns = ["_static", "locale"]
default_role = "py:obj"

# Pages of the course are programs: executed at build, kept in a cache, and an error ends the build.
nb_execution_mode = os.environ.get("RNNJAX_DOCS_EXECUTION", "cache")
nb_execution_cache_path = str(ROOT / ".cache" / "docs")
nb_execution_timeout = 600  # of one cell, on a machine that does other things at the same time
nb_execution_raise_on_error = True
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autosummary_generate = False
napoleon_numpy_docstring = False
add_module_names = False

# The course is there in Korean too: `make docs` builds it beside the other, and language.js links the two.
locale_dirs = ["locale"]
gettext_compact = False

html_theme = "sphinx_book_theme"
html_title = "rnnjax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [(f"figures/{name}.js", {"defer": "defer"}) for name in ("core", "korean", "figures", "reader")]
html_js_files.append(("language.js", {"defer": "defer"}))
html_show_sourcelink = False
html_copy_source = False
html_show_search_summary = False  # it would fetch pages, which no browser does for files on a disk
html_context = {"default_mode": "auto"}
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": True,
    "show_navbar_depth": 1,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "use_source_button": False,
    "use_issues_button": False,
    "use_repository_button": False,
    "footer_content_items": [],
}
# What cannot be a page of this site is named, but no link.
suppress_warnings = ["mystnb.unknown_mime_type"]

# Files beside docs/ that are pages of the site; links to any other file there are named without a link.
_PAGES = {
    ROOT / "README.md": "start",
    ROOT / "CONTRIBUTING.md": "contributing",
    ROOT / "CHANGELOG.md": "changelog",
    ROOT / "SECURITY.md": "security",
    ROOT / "experiments" / "README.md": "experiments",
}
_INCLUDE = re.compile(r"```\{include\} (\S+)\n```\n?")
_SIZES = re.compile(r"(?<=\| )\d+(?:, \d+)+(?= \|)|(?<=\| )[*\d.]+ %[*]*(?= \|)")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")


def with_links(text, folder, page):
    """Links of a text that lies in ``folder``, as the page of the site has them."""

    def link(found):
        image, words, target, anchor = found[1], found[2], (folder / found[3]).resolve(), found[4] or ""
        folder_of = target.parent if target.name == "README.md" else target
        if target in _PAGES:
            target = HERE / f"{_PAGES[target]}.md"
        elif folder_of.parent == ROOT / "experiments" and folder_of.is_dir():
            target = HERE / "made" / "experiments" / f"{folder_of.name}.md"
        if target.is_relative_to(HERE) or (image and target.is_file()):
            return f"{image}[{words}]({os.path.relpath(target, page.parent)}{anchor})"
        return words

    return _LINK.sub(link, text)


def read_source(app, name, source):
    """Puts files of the repository into the pages that include them, and mends links that lead out of docs/."""
    page = Path(app.env.doc2path(name))

    def include(found):
        path = (page.parent / found[1]).resolve()
        app.env.note_dependency(str(path))
        return with_links(path.read_text(encoding="utf-8"), path.parent, page)

    text = _INCLUDE.sub(include, with_links(source[0], page.parent, page))
    # Numbers in a cell of a table, "128, 32, 256, 512" or "100 %", stay on one line.
    source[0] = _SIZES.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)


_LETTER = re.compile(r"^(\s+\w+: )([A-Z])\.$")
_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Note|Example):$")


def equations(app, what, name, obj, options, lines):
    """Equations and tables of docstrings, which are indented, become literal blocks; sections stay what they are."""
    out, section, literal = [], False, False
    for line in lines:
        line = _LETTER.sub(r"\1\\\2.", line)  # "H." alone would be the eighth item of a list
        indented, blank = line.startswith("    "), not line.strip()
        if not blank and not indented:
            section, literal = bool(_SECTION.match(line)), False
        if indented and not section and not literal and out and not out[-1].strip():
            last = next((one for one in reversed(out) if one.strip()), "")
            if not re.match(r"\s*([*-]|\d+\.|>>>|\.\.) |.*::$", last):
                out += ["::", ""]
                literal = True
        out.append(line)
    lines[:] = out


def words_of_cells(app, config):
    """What stands above a folded cell, in Korean on the Korean pages."""
    if config.language == "ko":
        config.nb_code_prompt_show, config.nb_code_prompt_hide = "코드 보기", "코드 숨기기"


def name_pictures(app, doctree, page):
    """What a screen reader says of the pictures that cells draw, in place of the names of their files."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt"):
            image["alt"] = "위의 코드가 그린 그림" if app.config.language == "ko" else "drawn by the code above"


def setup(app):
    app.connect("config-inited", words_of_cells)
    app.connect("doctree-resolved", name_pictures)
    app.connect("source-read", read_source)
    app.connect("autodoc-process-docstring", equations, priority=400)  # before napoleon
    return {"parallel_read_safe": True}
