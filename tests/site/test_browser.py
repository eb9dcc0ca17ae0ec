"""The built site, opened from disk in a browser without a network: `make test-release` builds it and runs this."""

import os

import pytest

from rnnjax import cli
from rnnjax.lm.options import ModelOptions
from tests.pages import ROOT
from tests.report.runs import make_full_run
from tests.report.test_report_page import browser_path, until

SITE = ROOT / "build" / "site"
pytestmark = pytest.mark.release


@pytest.fixture(scope="module")
def browser():
    if not (SITE / "index.html").exists():
        pytest.skip("the site is not built; make docs")
    path = browser_path()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Its sandbox is not for root, who runs the tests in a container.
        opened = playwright.chromium.launch(executable_path=path, chromium_sandbox=os.getuid() != 0)
        yield opened
        opened.close()


class Opened:
    """A page of the site, with what it asked for and complained about."""

    def __init__(self, browser, name, **context):
        self.context = browser.new_context(offline=True, **context)
        self.page = self.context.new_page()
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.go(name)

    def go(self, name):
        self.page.goto((SITE / f"{name}.html").as_uri(), wait_until="domcontentloaded")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if error[0] is None:
            outside = [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))]
            assert outside == [] and self.complaints == []
        self.context.close()


def names():
    return sorted(path.relative_to(SITE).with_suffix("").as_posix() for path in SITE.rglob("*.html"))


def is_wide(page):
    return page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth + 1")


def test_every_page_opens_without_a_network_and_without_a_complaint(browser):
    pages = [name for name in names() if not name.startswith("_") and "webpack" not in name]
    assert len(pages) > 40
    with Opened(browser, "index") as opened:
        for name in pages:
            opened.go(name)
            assert opened.page.locator("h1").count() >= 1, name
            until(opened.page, "[...document.querySelectorAll('figure.live')].every(e => e.dataset.ready)")


def test_the_language_model_in_the_page_is_the_one_of_jax(browser):
    with Opened(browser, "course/06-a-character-language-model") as opened:
        figure = opened.page.locator("figure.live[data-figure='reader'][data-ready]")
        figure.wait_for()
        assert float(figure.get_attribute("data-difference")) < 1e-4  # of a probability
        box = figure.locator("textarea")
        box.fill("")
        box.type("def", delay=5)
        assert figure.locator(".text span").all_inner_texts() == list("def")
        figure.locator("button", has_text="Write 200").click()
        assert len(box.input_value()) == 203


def test_figures_answer_to_the_keyboard(browser):
    with Opened(browser, "course/04-lstm") as opened:
        figure = opened.page.locator("figure.live[data-figure='lstm'][data-ready]")
        figure.wait_for()
        before = figure.locator(".said").inner_text()
        figure.locator("input[type='range']").first.focus()
        opened.page.keyboard.press("ArrowLeft")
        assert "0.90" in figure.locator("label output").first.inner_text()
        assert figure.locator(".said").inner_text() != before
        line = figure.locator("path.line").last.get_attribute("d")
        figure.locator("button", has_text="Ten steps").press("Enter")
        assert figure.locator("path.line").last.get_attribute("d").count("L") == line.count("L") + 10


def test_equations_are_set(browser):
    with Opened(browser, "course/01-a-network-with-a-state") as opened:
        opened.page.wait_for_selector("mjx-container")
        assert opened.page.locator("mjx-container").count() >= 1
        assert opened.page.locator("mjx-merror").count() == 0


def test_the_course_is_there_in_korean(browser):
    with Opened(browser, "course/04-lstm") as opened:
        opened.page.click("a.language")
        opened.page.wait_for_selector("html[lang='ko']")
        assert "망각 게이트" in opened.page.inner_text("article") and "def" not in opened.page.inner_text("h1")
        opened.page.wait_for_selector("figure.live[data-ready]")
        assert "망각 게이트" in opened.page.inner_text("figure.live .controls")
        opened.page.click("a.language")
        opened.page.wait_for_selector("html[lang='en']")
        assert opened.page.url.endswith("course/04-lstm.html") and "/ko/" not in opened.page.url


def test_the_search_finds(browser):
    with Opened(browser, "search") as opened:
        opened.page.goto((SITE / "search.html").as_uri() + "?q=gradient")
        opened.page.wait_for_selector("#search-results li a")
        assert opened.page.locator("#search-results li a").count() >= 2


def test_the_page_of_a_run_leads_into_the_course(browser, tmp_path):
    """Behind every "?" of a page that was told where the site is."""
    run = make_full_run(tmp_path / "run", ModelOptions(embed=0, hidden=4))
    with pytest.raises(SystemExit) as caught:
        cli.main(["report", str(run), "--symbols", "300", "--shifts", "9", "--site", str(SITE)])
    assert not caught.value.code
    with Opened(browser, "index") as opened:
        opened.page.goto((run / "report.html").as_uri())
        opened.page.wait_for_selector("body[data-ready]")
        links = opened.page.evaluate("[...document.querySelectorAll('.meaning a')].map(e => e.href)")
        assert len(links) == 8
        for link in links:
            opened.page.goto(link, wait_until="domcontentloaded")
            assert opened.page.evaluate("document.querySelector(location.hash)?.tagName") == "SECTION", link


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(browser, scheme):
    with Opened(browser, "index", color_scheme=scheme) as opened:
        assert opened.page.evaluate("document.documentElement.dataset.theme") == scheme
        ground = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground.strip("rgba()").split(",")[:3])) > 380) == (scheme == "light")


def test_figures_can_be_read_in_the_dark(browser):
    """What is written on a figure is light there, and so is nothing behind it."""
    light = "getComputedStyle(%s).%s.match(/[0-9.]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0)"
    with Opened(browser, "course/03-why-it-forgets", color_scheme="dark") as opened:
        opened.page.wait_for_selector("figure.live[data-ready]")
        figure = "document.querySelector('figure.live')"
        for part in ("label", ".about", ".said"):
            assert opened.page.evaluate(light % (f"{figure}.querySelector('{part}')", "color")) > 380
        assert opened.page.evaluate(light % (figure, "backgroundColor")) < 380
        assert opened.page.evaluate(f"getComputedStyle({figure}.parentElement).backgroundColor") == "rgba(0, 0, 0, 0)"


@pytest.mark.parametrize("name", ["index", "course/01-a-network-with-a-state", "networks", "made/reference/rnnjax"])
def test_a_narrow_screen(browser, name):
    with Opened(browser, name, viewport={"width": 360, "height": 740}, has_touch=True) as opened:
        assert not is_wide(opened.page)
        assert opened.page.locator("article").is_visible()
