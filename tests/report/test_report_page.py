"""The page in a real browser, opened from disk: what is seen, hovered over, clicked, sorted and typed."""

import importlib.util
import math
import os
import pathlib
import shutil
import time

import numpy as np
import pytest

from rnnjax import cli
from rnnjax.lm.options import ModelOptions
from rnnjax.report import writer
from tests.report.runs import data_of, headings, make_full_run, make_site, unpack, values_of

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MINUS = "\N{MINUS SIGN}"
OPTIONS = (
    "--symbols",
    300,
    "--shifts",
    9,
    "--streams",
    4,
    "--label",
    "vowel",
    "--label",
    "in_word",
    "--label",
    "position",
)


def browser_path():
    """Of a browser of the system, else of playwright; skips where there is none, before anything is computed."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed; pip install 'rnnjax[test]'")
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        with sync_playwright() as playwright:
            path = playwright.chromium.executable_path
        if not pathlib.Path(path).exists():
            pytest.skip("no chromium is installed; `playwright install chromium`, or a package of the system")
    return path


def until(page, expression, **arg):
    """Waits for an expression to be true. Playwright's own waiting compiles it in the page, which the page forbids."""
    deadline = time.monotonic() + 30
    while not page.evaluate(expression, **arg):
        assert time.monotonic() < deadline, expression
        time.sleep(0.02)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages: two LSTMs on one text; a cell without gates, on bytes; linear cells, on words."""
    path = browser_path()
    folder = tmp_path_factory.mktemp("pages")

    def run(name, text=None, **model):
        return make_full_run(folder / name, ModelOptions(**{"embed": 0, **model}), **(text or {}))

    def write(name, *runs, more=()):
        with pytest.raises(SystemExit) as caught:
            cli.main(["report", *map(str, (*runs, *OPTIONS, *more, "--out", folder / f"{name}.html"))])
        assert not caught.value.code
        return folder / f"{name}.html"

    first, other = (run(name, hidden=4, layers=2) for name in ("a<b>&", "other"))
    min((other / "checkpoints").glob("step_*")).unlink()  # the next one holds other parameters
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(writer._BYTES, 16, 1e9)  # as if the weights did not fit
        small = write("small", run("tied", embed=5, hidden=5, tie=True))
    return {
        "browser": path,
        "small": small,
        "two": write("two", first, other),
        "elman": write("elman", run("elman", {"level": "byte"}, cell="elman", hidden=3)),
        "site": make_site(folder / "site"),
        "linked": write("linked", first, more=("--site", folder / "site")),
        "linear": write("linear", run("linear", {"level": "word"}, cell="min_gru", hidden=3)),
    }


@pytest.fixture(scope="module")
def browser(pages):
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            # Its sandbox is not for root, who runs the tests in a container.
            opened = playwright.chromium.launch(executable_path=pages["browser"], chromium_sandbox=os.getuid() != 0)
        except Error as error:
            pytest.skip(f"chromium does not start here: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


class Opened:
    """A page that was opened from disk, with what it asked for and complained about."""

    def __init__(self, browser, path, **context):
        self.context = browser.new_context(offline=True, **context)
        self.page = self.context.new_page()
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append("a dialog"))
        self.url = path.as_uri()
        self.page.goto(self.url)
        self.page.wait_for_selector("body[data-ready]")

    def painted(self, what):
        until(self.page, "what => document.body.dataset.painted === what", arg=what)

    def classes(self):
        return self.page.evaluate("[...document.querySelectorAll('#reader span')].map(e => e.className)")

    def choose(self, fieldset, value):
        self.page.locator(f"#{fieldset} input[value='{value}']").check()

    def text(self, selector):
        return self.page.locator(selector).inner_text()

    def ends_clean(self):
        assert self.complaints == [] and self.requests == [self.url]
        self.context.close()


@pytest.fixture(scope="module")
def two(browser, pages):
    opened = Opened(browser, pages["two"], viewport={"width": 1280, "height": 800})
    yield opened
    opened.ends_clean()


def levels(shares):
    """The classes of the diverging scale."""
    return [f"d{math.floor((min(1, max(-1, share)) + 1) * 20 + 0.5)}" for share in shares]


def test_it_shows_the_text_as_text(two, pages):
    data = data_of(pages["two"])
    symbols = [data["text"]["symbols"][k] for k in unpack(data["ids"])]
    shown = two.page.evaluate("[...document.querySelectorAll('#reader span')].map(e => e.textContent)")
    assert shown == [{"\n": "↵"}.get(symbol, symbol) for symbol in symbols] and "<img src=x" in "".join(shown)
    assert two.page.locator("img, b, script[src], link").count() == 0
    assert two.text("#facts").startswith("validation loss\n2.250 nats\n3.246 bits a symbol, of the validation text")
    assert "loss in this page" in two.text("#facts")
    assert two.page.locator("h2:visible").count() == two.page.locator("#nav a").count() == 9


def test_a_unit_of_the_ranking_colours_the_text(two, pages):
    data = data_of(pages["two"])
    unit = data["labels"][1]["rows"][2][0]
    two.page.select_option("#label", data["labels"][1]["name"])
    two.choose("mode", "surprise")
    two.painted("0 surprise")
    assert two.page.locator("#unit-tools").is_hidden()
    two.page.click(f"#ranking button:text-is('{unit}')")
    two.painted(f"0 unit {unit}")
    own = data["units"][unit]
    expected = levels((values_of(own) - own["middle"]) / own["reach"])
    shown = [name.split()[0] for name in two.classes()]
    assert np.mean([a == b for a, b in zip(shown, expected, strict=True)]) > 0.98  # but for values between two levels
    assert len(set(shown)) > 5 and two.page.locator("#unit").input_value() == unit
    assert two.page.locator("#unit-tools").is_visible() and two.page.locator("#mode input").first.is_checked()
    assert two.page.locator("#ranking tr.on button").get_attribute("aria-pressed") == "true"
    two.page.check("#underline")
    label = unpack(data["labels"][1]["values"])
    until(two.page, "document.querySelector('#reader .u')")
    assert ["u" in name.split() for name in two.classes()] == (label > 0).tolist()


def test_hovering_tells_value_surprise_and_expectations(two, pages):
    data, at = data_of(pages["two"]), 40
    two.page.locator("#reader span").nth(at).hover()
    two.page.wait_for_selector("#tip:visible")
    tip = two.text("#tip")
    unit = two.page.locator("#unit").input_value()
    value = values_of(data["units"][unit])[at]
    assert f"{unit} after it" in tip and f"{value:.3f}".replace("-", MINUS) in tip
    assert f"{unpack(data['surprise'])[at]:.3f} nats" in tip
    probs = unpack(data["probs"]).reshape(-1, 5)[at] / 65535
    shown = two.page.locator("#tip li em").all_inner_texts()
    assert [one.replace("\xa0", " ") for one in shown] == [f"{100 * p:.1f} %" for p in probs]
    two.page.keyboard.press("Escape")
    assert two.page.locator("#tip").is_hidden()


def test_the_keyboard_walks_and_steps(two):
    page = two.page
    page.locator("#reader").focus()
    page.locator("#reader span").nth(0).click()
    for key, place in (
        ("ArrowRight", "line 1, place 2"),
        ("ArrowDown", "line 2, place 2"),
        ("Home", "line 2, place 1"),
    ):
        page.keyboard.press(key)
        assert place in two.text("#tip")
    two.choose("layer", "L1")
    two.choose("leaf", "L1.c")
    two.painted("0 unit L1.c.0")
    page.locator("#reader").focus()
    for key, unit in (("n", "L1.c.1"), ("p", "L1.c.0"), ("p", "L1.c.3"), ("l", "L2.c.3"), ("v", "L2.i.0")):
        page.keyboard.press(key)
        two.painted(f"0 unit {unit}")
    page.keyboard.press("c")
    two.painted("0 surprise")
    page.locator("#mode input:checked").focus()
    page.keyboard.press("ArrowLeft")
    two.painted("0 unit L2.i.0")
    page.locator("#leaf input:checked").focus()
    page.keyboard.press("ArrowRight")  # radio buttons: the arrow chooses, and the focus stays with them
    two.painted("0 unit L2.f.0")
    assert page.evaluate("document.activeElement.value") == "L2.f"
    page.fill("#goto-name", "L1.o.2")
    page.keyboard.press("Enter")
    two.painted("0 unit L1.o.2")
    page.fill("#goto-name", "L9.o.2")
    page.keyboard.press("Enter")
    assert "no unit L9.o.2" in two.text("#unit-about")


def test_tables_are_sorted_by_the_keyboard(two):
    page = two.page
    head = page.locator("#units-table th").nth(1)
    head.locator("button").focus()
    orders = []
    for order in ("descending", "ascending"):
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == order
        cells = page.locator("#units-table tbody td:nth-child(2)").all_inner_texts()
        orders.append([float(cell.replace(MINUS, "-")) for cell in cells])
    assert orders[0] == sorted(orders[0], reverse=True) and orders[1] == sorted(orders[1])
    assert len(orders[0]) == 25 and orders[0] != orders[1]
    page.click("text=Next page")
    assert page.locator("#units-table tbody tr").count() == 23
    page.select_option("#units-leaf", "L2.f")
    assert page.locator("#units-table tbody tr").count() == 4


def test_surprise_and_the_difference_of_two_runs(two, pages):
    data, other = data_of(pages["two"]), data_of(pages["two"], 1)
    page = two.page
    two.choose("mode", "surprise")
    two.painted("0 surprise")
    surprise = unpack(data["surprise"]).astype(np.float64)
    shown = np.array([int(name.split()[0][1:]) for name in two.classes()])
    top = np.sort(surprise)[int(0.99 * 300)]
    np.testing.assert_array_equal(shown, np.floor(np.clip(surprise / top, 0, 1) * 40 + 0.5))
    two.choose("mode", "difference-1")
    two.painted("0 difference")
    shown = np.array([int(name.split()[0][1:]) for name in two.classes()])
    difference = surprise - unpack(other["surprise"])
    np.testing.assert_array_equal(
        np.sign(shown - 20)[abs(difference) > 0.2], np.sign(difference)[abs(difference) > 0.2]
    )
    page.click("#compare-table button:text-is('other')")
    until(page, "document.body.dataset.painted.startsWith('1 ')")
    assert page.locator("#run-switch input").nth(1).is_checked()
    two.choose("run-switch", "0")
    until(page, "document.body.dataset.painted.startsWith('0 ')")


def test_the_network_in_the_page_is_the_one_of_jax(two, browser, pages):
    """Its probabilities, on the same weights; it reads what is typed, and writes."""
    assert float(two.page.get_attribute("#writer-box", "data-difference")) < 1e-5
    box = two.page.locator("#writer-text")
    box.fill("abc de")
    assert two.page.locator(".writing .read span").count() == 6
    shares = two.page.locator(".writing .expected em").all_inner_texts()
    assert len(shares) == 6 and 0 < sum(float(share.split("\u00a0")[0]) for share in shares) <= 100.5
    two.page.locator("#writer-box button", has_text="Write 200").click()
    assert len(box.input_value()) == 206 and box.input_value().startswith("abc de")
    elman = Opened(browser, pages["elman"])  # another cell, and bytes
    assert float(elman.page.get_attribute("#writer-box", "data-difference")) < 1e-5
    elman.ends_clean()
    small = Opened(browser, pages["small"])  # with weights in 8 bits, the output's those of the embedding
    assert "weights in 8 bits" in small.text("#writer-about") and "weights in 16 bits" in two.text("#writer-about")
    assert float(small.page.get_attribute("#writer-box", "data-difference")) < 1e-5
    small.ends_clean()
    linear = Opened(browser, pages["linear"])
    assert "not in the page: it reads words" in linear.text("#writer-about")
    linear.ends_clean()


def test_terms_are_explained(two):
    """With keys alone: a sentence, more of it folded away, and Escape closes it and goes back."""
    buttons = two.page.locator("button.term:visible")
    assert buttons.count() >= 7
    for k in range(buttons.count()):
        button = buttons.nth(k)
        meaning = button.locator("xpath=following-sibling::div[1]")
        more = meaning.locator("details p").first
        assert meaning.is_hidden() and button.get_attribute("aria-expanded") == "false"
        button.focus()
        two.page.keyboard.press("Enter")
        assert len(meaning.locator("> p").inner_text()) > 60 and more.is_hidden()
        assert button.get_attribute("aria-expanded") == "true"
        two.page.keyboard.press("Tab")
        two.page.keyboard.press("Space")
        assert len(more.inner_text()) > 60 and "of the course" in meaning.inner_text()
        assert meaning.locator("a").count() == 0  # there is no site to lead to
        two.page.keyboard.press("Escape")
        assert meaning.is_hidden() and button.get_attribute("aria-expanded") == "false"
        assert button.evaluate("e => e === document.activeElement")


def test_terms_lead_into_the_course(browser, pages):
    """To the heading of the page where the same stands at length, in a page beside this one."""
    opened = Opened(browser, pages["linked"])
    links = opened.page.locator(".meaning a")
    assert links.count() == opened.page.locator("button.term").count() == 8
    for k in range(links.count()):
        address, _, heading = links.nth(k).get_attribute("href").partition("#")
        assert address.startswith(pages["site"].as_uri() + "/course/") and heading
        assert heading in headings()[address.rpartition("/")[2].removesuffix(".html")]
    opened.page.locator("#text-title + button.term").click()
    opened.page.locator("#text-title-meaning summary").click()
    with opened.context.expect_page() as beside:
        opened.page.locator("#text-title-meaning a").click()
    beside.value.wait_for_load_state()
    assert beside.value.evaluate("document.querySelector(location.hash) !== null")
    opened.ends_clean()


def test_a_line_is_found_and_all_of_the_text_is_printed(two):
    two.choose("mode", "unit")
    two.page.fill("#goto-line-number", "7")
    two.page.press("#goto-line-number", "Enter")
    two.page.wait_for_selector("#tip:not([hidden])")
    assert "line 7, place 1" in two.text("#tip")
    two.page.emulate_media(media="print")
    sizes = "(e => [e.clientHeight, e.scrollHeight])(document.getElementById('reader'))"
    seen, whole = two.page.evaluate(sizes)
    two.page.emulate_media(media="screen")
    assert seen >= whole - 1


def test_charts_are_drawn_and_read(two):
    page = two.page
    titles = page.locator("figure.chart figcaption").all_inner_texts()
    assert {"Loss", "Gradient norm", "Clip rate", "The whole state", "Layer 1", "Layer 2", "Spectrum"} <= set(titles)
    loss = page.locator("#training-charts figure").first
    assert "unigram 2.900" in loss.locator("svg").last.inner_html()
    loss.locator("svg[role=img]").focus()
    page.keyboard.press("End")
    assert loss.locator(".readout").inner_text() == (
        "symbols seen 4.1 k: training 2.200, training, smoothed 2.200, validation 2.300"
    )
    loss.locator("summary").click()
    loss.locator("tbody tr").nth(7).wait_for(state="attached")  # made when the details open, after the click
    assert loss.locator("tbody tr").count() == 8
    assert "cut at 16" in page.locator("#gradient-charts").inner_html()
    two.choose("axis", "minutes")
    assert "minutes" in page.locator("#training-charts svg[role=img]").first.get_attribute("aria-label")
    page.locator("#samples-box input").focus()
    assert two.text("#samples-box pre") == "<b>c</b> &"
    page.keyboard.press("ArrowLeft")
    assert two.text("#samples-box pre") == "ab" and "validation 2.700" in two.text("#samples-box output")


CONTRAST = """() => {
  const lit = v => v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const light = color => color.match(/[0-9.]+/g).slice(0, 3)
    .reduce((sum, v, k) => sum + lit(Number(v)) * [0.2126, 0.7152, 0.0722][k], 0);
  const contrast = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const ground = getComputedStyle(document.body).backgroundColor;
  const probe = document.createElement("span");
  document.body.append(probe);
  let least = 99;
  for (const kind of "ds") for (let k = 0; k < 41; k++) {
    probe.className = kind + k;
    const style = getComputedStyle(probe);
    least = Math.min(least, contrast(style.color, style.backgroundColor));
  }
  probe.remove();
  for (const element of document.querySelectorAll(".hint, th button, td, dd, a, .readout"))
    least = Math.min(least, contrast(getComputedStyle(element).color, ground));
  return [least, light(ground)];
}"""

UNNAMED = """() => [...document.querySelectorAll("button, select, input, [tabindex], summary, a")]
  .filter(e => e.offsetParent && !e.getAttribute("aria-label") && !e.labels?.length)
  .filter(e => e.tagName === "SELECT" || !e.textContent.trim())
  .map(e => e.outerHTML.slice(0, 80))"""


def test_colours_are_read_in_both_themes_and_everything_has_a_name(two):
    page = two.page
    least, ground = page.evaluate(CONTRAST)
    assert least >= 4.5 and ground > 0.9
    page.select_option("#theme", "dark")
    least, ground = page.evaluate(CONTRAST)
    assert least >= 4.5 and ground < 0.05
    page.select_option("#theme", "auto")
    for scheme in ("dark", "light"):  # the page hears of it a moment later
        page.emulate_media(color_scheme=scheme)
        until(page, "scheme => document.documentElement.dataset.scheme === scheme", arg=scheme)
    assert page.evaluate(UNNAMED) == []
    page.evaluate("document.querySelector('.skip').focus()")
    for _ in range(12):
        page.keyboard.press("Tab")
        outline = page.evaluate(
            "(e => [e, e.nextElementSibling].map(x => x && getComputedStyle(x).outlineStyle))(document.activeElement)"
        )
        assert "solid" in outline or "auto" in outline


def test_it_fits_a_narrow_screen(browser, pages):
    opened = Opened(browser, pages["two"], viewport={"width": 360, "height": 740}, has_touch=True)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360
    opened.page.locator("#reader span").nth(30).tap()
    box = opened.page.locator("#tip").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["y"] + box["height"] <= 740
    opened.ends_clean()


@pytest.mark.parametrize(("name", "gates"), [("elman", 0), ("linear", 1)])
def test_other_cells_and_levels(browser, pages, name, gates):
    opened = Opened(browser, pages[name])
    data = data_of(pages[name])
    assert opened.page.locator("#gates-charts svg[role=img]").count() == gates
    assert opened.page.locator("#reader span").count() == data["count"]
    assert opened.page.locator("#compare").is_hidden() and len(data["units"]) == data["total"]
    unit = next(reversed(data["units"]))
    opened.page.fill("#goto-name", unit)
    opened.page.keyboard.press("Enter")
    opened.painted(f"0 unit {unit}")
    opened.ends_clean()
