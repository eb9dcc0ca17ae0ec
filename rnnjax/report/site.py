"""Where the built site with the course lies, for the links of a page."""

from __future__ import annotations

import pathlib
import urllib.parse

__all__ = ["COURSE", "SITE", "course_link", "site_address"]

SITE = ""  # the address of the published site, such as https://example.org/rnnjax; there is none yet

# Pages of the course by their numbers: the file, and the title.
COURSE = {
    3: ("03-why-it-forgets", "Why it forgets, and why it explodes"),
    4: ("04-lstm", "The LSTM"),
    6: ("06-a-character-language-model", "A language model, character by character"),
    9: ("09-interpretable-cells", "Interpretable cells"),
    10: ("10-forecasting", "Forecasting"),
}


def site_address(site: str | None, where: str = "--site") -> str:
    """The address that the pages of a site stand below, with a slash at its end; empty where there is no site.

    Args:
        site: an address, a folder with the built pages, or None for the published site.
        where: what the messages begin with.

    Raises:
        ValueError: for an address that no browser opens, and for a folder without the pages of the course.

    Example:
        >>> site_address("https://example.org/rnnjax")
        'https://example.org/rnnjax/'
    """
    if site is None:
        site = SITE
        if not site:
            return ""
    if "://" in site:
        try:
            parts = urllib.parse.urlsplit(site)
        except ValueError:
            parts = urllib.parse.urlsplit("")
        plain = site.isprintable() and not set(site) & set(" \"'<>\\^`{|}")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or not plain:
            raise ValueError(
                f"{where}: must be an address as https://example.org/rnnjax, or the folder of a built site, "
                f"got {site!r}."
            )
        return site.rstrip("/") + "/"
    folder = pathlib.Path(site or "-")
    missing = [name for name, _ in COURSE.values() if not (folder / "course" / f"{name}.html").is_file()]
    if missing:
        raise ValueError(
            f"{where}: must be an address as https://example.org/rnnjax, or the folder of a built site, got {site!r}, "
            f"which has no course/{missing[0]}.html; make docs builds one in build/site."
        )
    return folder.resolve().as_uri().rstrip("/") + "/"


def course_link(address: str, number: int, heading: str) -> str:
    """The address of a heading in the course; empty where there is no site.

    Args:
        address: from `site_address`.
        number: of the page, one of `COURSE`.
        heading: its anchor, as ``the-equation``.
    """
    return f"{address}course/{COURSE[number][0]}.html#{heading}" if address else ""
