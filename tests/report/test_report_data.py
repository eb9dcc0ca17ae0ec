"""What stands in a page is what the model does: each number against one from elsewhere."""

import json
import pathlib
import re
import shutil
import subprocess
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnjax import cells
from rnnjax.analysis import trajectory
from rnnjax.analysis.gates import LeafStatistics, UnitStatistics
from rnnjax.analysis.labels import LABELS, default_labels, label_text
from rnnjax.analysis.recording import leaves_of
from rnnjax.cli.analysis import RunText, read_text_of, symbol_model
from rnnjax.cli.report import _at_a_line
from rnnjax.engines.affine.program import Program
from rnnjax.engines.affine.recurrence import plan_of
from rnnjax.fit import folder as run_folder
from rnnjax.lm.options import ModelOptions
from rnnjax.lm.plots import read_metrics
from rnnjax.lm.run import open_run
from rnnjax.report import ReportOptions, collect_run, page
from rnnjax.report import site as report_site
from rnnjax.report.collect import ReportText, asked_units, ranked_units
from rnnjax.report.measures import gradient_data, training_curves
from rnnjax.report.page import to_json
from rnnjax.report.site import COURSE
from rnnjax.report.writer import rounded, step_script, writer_data
from rnnjax.text.vocabulary import Vocabulary
from tests.analysis.pairs import pairs
from tests.lm.tiny_run import log_softmax, rnnjax
from tests.report.runs import NASTY, TEXT, data_of, headings, make_full_run, make_site, unpack, values_of

SYMBOLS = 300
OPTIONS = ("--symbols", SYMBOLS, "--shifts", 9, "--streams", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_full_run(tmp_path_factory.mktemp("runs") / "run", ModelOptions(embed=0, hidden=4, layers=2))


@pytest.fixture(scope="module")
def written(folder):
    """The page of the run, and the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_COLOR", "1")
        import rnnjax.cli

        with pytest.raises(SystemExit) as caught:
            rnnjax.cli.main(["report", str(folder), *map(str, OPTIONS)])
    assert not caught.value.code
    run = open_run(folder)
    ids = run.vocabulary.encode(TEXT)[int(0.6 * len(TEXT)) :][:SYMBOLS]
    return types.SimpleNamespace(path=folder / "report.html", data=data_of(folder / "report.html"), run=run, ids=ids)


def shown_ids(written, packed):
    """Ids of the vocabulary, of numbers in the page."""
    symbols = [written.run.vocabulary.symbols.index(symbol) for symbol in written.data["text"]["symbols"]]
    return np.array(symbols)[unpack(packed)]


def test_text_surprise_and_expectations(written):
    data, run = written.data, written.run
    np.testing.assert_array_equal(shown_ids(written, data["ids"]), written.ids)
    inputs = jnp.asarray(written.ids.astype(np.int32))[:, None]
    logits = run.model.logits(run.params, run.model.initial_state((1,)), inputs, implementation="scan")[1][:, 0]
    logs = log_softmax(logits)
    losses = -np.take_along_axis(logs[:-1], written.ids[1:, None].astype(int), axis=-1)[:, 0]
    np.testing.assert_allclose(unpack(data["surprise"])[1:], losses, atol=1e-5)
    assert data["mean"] == pytest.approx(losses.mean(), abs=1e-5)
    best = np.argsort(-logs, axis=-1, kind="stable")[:, :5]
    np.testing.assert_array_equal(shown_ids(written, data["next"]).reshape(-1, 5), best)
    probs = unpack(data["probs"]).reshape(-1, 5) / 65535
    np.testing.assert_allclose(probs, np.exp(np.take_along_axis(logs, best, axis=-1)), atol=2e-5)


def loop(run, ids):
    """The second layer's c and forget gate by a loop in NumPy."""
    states = [np.zeros((2, 4)) for _ in range(2)]
    cells, forgets = [], []
    layers = [[np.asarray(leaf, np.float64) for leaf in layer] for layer in run.params.stack.layers]
    for k in ids.tolist():
        x = np.eye(run.model.vocab_size)[k]
        for depth, (w_ih, w_hh, b) in enumerate(layers):
            h, c = states[depth]
            i, f, g, o = np.split(x @ w_ih + h @ w_hh + b, 4)
            i, f, o = (1 / (1 + np.exp(-z)) for z in (i, f, o))
            c = f * c + i * np.tanh(g)
            x = o * np.tanh(c)
            states[depth] = np.stack([x, c])
        cells.append(c)
        forgets.append(f)
    return np.array(cells), np.array(forgets)


def test_values_of_units_and_gates(written):
    data = written.data
    cells, forgets = loop(written.run, written.ids)
    assert data["total"] == 48 == len(data["units"])
    for k in range(4):
        for name, truth in ((f"L2.c.{k}", cells[:, k]), (f"L2.f.{k}", forgets[:, k])):
            unit = data["units"][name]
            np.testing.assert_allclose(values_of(unit), truth, atol=(unit["high"] - unit["low"]) / 500 + 1e-5)
    assert data["units"]["L2.f.0"]["middle"] == 0.5 and data["units"]["L2.f.0"]["reach"] == 0.5
    leaves = {leaf["name"]: leaf for leaf in data["leaves"]}
    np.testing.assert_allclose(unpack(leaves["L2.f"]["left"]), (forgets < 0.1).mean(axis=0), atol=0.011)
    np.testing.assert_allclose(unpack(leaves["L2.f"]["right"]), (forgets > 0.9).mean(axis=0), atol=0.011)
    np.testing.assert_allclose(unpack(leaves["L2.c"]["mean"]), cells.mean(axis=0), atol=1e-4)
    assert "left" not in leaves["L2.c"]


def test_ranking_of_labels(written):
    data = written.data
    cells, _ = loop(written.run, written.ids)
    labels = {label["name"]: label for label in data["labels"]}
    assert not set(labels) & set(data["left_out"]) and set(labels) | set(data["left_out"]) == {
        label.name for label in default_labels(TEXT)
    }
    begin = int(0.6 * len(TEXT))
    vowel = label_text(LABELS["vowel"], TEXT)[begin : begin + SYMBOLS]
    np.testing.assert_array_equal(unpack(labels["vowel"]["values"]), vowel)
    rows = labels["vowel"]["rows"]
    first = [row[3] for row in rows]
    assert len(rows) == 10 and first == sorted(first, reverse=True)
    half = SYMBOLS // 2
    for unit, direction, score, *_, error in rows:
        if unit.startswith("L2.c."):
            exact = pairs(direction * cells[half:, int(unit[5:])], vowel[half:])
            assert score == pytest.approx(exact, abs=error + 1e-4)
    best = {leaf["name"]: unpack(leaf["best"]) for leaf in data["leaves"]}
    winner, number = rows[0][0].rsplit(".", 1)
    strengths = {
        name: next((2 * r[3] - 1 if label["binary"] else r[3] for r in label["rows"] if r[0] == rows[0][0]), 0)
        for name, label in labels.items()
    }
    assert data["labels"][best[winner][int(number)]]["name"] == max(strengths, key=strengths.__getitem__)


def test_gradient_is_that_of_the_loss_of_the_next_symbol(written):
    gradient, run = written.data["gradient"], written.run
    length, ids = gradient["length"], jnp.asarray(written.ids.astype(np.int32))
    assert (gradient["chunk_len"], length, len(gradient["lags"])) == (16, SYMBOLS - 1, (SYMBOLS - 1) // 2)
    assert gradient["names"] == ["L1.h", "L1.c", "L2.h", "L2.c"] and gradient_data(None, written.ids[:10], 16) is None

    @jax.jit
    def norm(t):
        """Of the gradient of the loss at t by the state before step t, all in the model's own way."""
        state = run.model.initial_state()
        read = jax.tree.map(lambda leaf: leaf[t], trajectory(run.model.stack, run.params.stack, state, one_hot)[0])

        def loss(state):
            logits = run.model.logits(run.params, state, jax.lax.dynamic_slice(ids, (t,), (1,)))[1][0]
            return -jax.nn.log_softmax(logits)[ids[t + 1]]

        return jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(jax.grad(loss)(read))))

    one_hot = jax.nn.one_hot(ids, run.model.vocab_size)
    times = np.unique(np.linspace(length // 2, length - 1, 16).round().astype(int))
    # The text is as long as one piece, so the four pieces are the same.
    assert gradient["norm"][0] == pytest.approx(np.mean([float(norm(t)) for t in times]), rel=1e-4)


def test_training_samples_and_facts(written, folder):
    data = written.data
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "train"]
    assert data["training"]["train"]["loss"] == pytest.approx([row["loss"] for row in rows])
    assert data["training"]["train"]["clip_rate"] == pytest.approx([row["clip_rate"] for row in rows], rel=1e-5)
    assert data["training"]["eval"]["val_loss"] == pytest.approx([2.7, 2.3])
    assert data["training"]["done"]["val_loss"] == 2.25 and data["training"]["baselines"] == {"unigram": 2.9}
    assert data["samples"] == [{"step": 4, "text": "ab"}, {"step": 8, "text": "<b>c</b> &"}]
    count = sum(np.asarray(leaf).size for leaf in jax.tree.leaves(written.run.params))
    assert data["facts"]["parameters"] == f"{count:,}" and "2 x 4 lstm, one-hot" in data["facts"]["network"]
    many = [{**row, "loss": float(k), "step": k} for k in range(2000) for row in rows[:1]]
    thin = training_curves(many, 100)["train"]
    assert len(thin["loss"]) == 100 and thin["loss"][0] == np.mean(range(20)) and thin["step"][-1] == 1999


def test_nothing_ends_a_script_and_nothing_is_loaded(written):
    html = written.path.read_text(encoding="utf-8")
    assert NASTY[:10] in "".join(written.data["text"]["symbols"][k] for k in unpack(written.data["ids"]))
    assert html.count("</script") == html.count("<script") == 4 and "<img" not in html and "<b>c" not in html
    assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?\w+:", html) and "default-src 'none'" in html
    assert "<title>&lt;b&gt; - rnnjax" in page([written.data | {"name": "<b>"}])
    with pytest.raises(ValueError, match="at least one run"):
        page([])


def test_same_run_same_page_and_the_size_holds(written, folder, tmp_path, capsys):
    again = rnnjax(capsys, "report", folder, *OPTIONS, "--out", tmp_path / "again.html")
    assert again.code == 0 and "values of 48 of 48 units" in again.out and "again.html" in again.out
    assert (tmp_path / "again.html").read_bytes() == written.path.read_bytes()
    assert "report.html" in run_folder.written(folder)


def test_units_that_do_not_fit(written):
    run, model = written.run, symbol_model(written.run)
    source = read_text_of(run, None, SYMBOLS)
    text = ReportText(source.name, source.ids, None, {"vowel": source.label(LABELS["vowel"])})
    whole = collect_run("small", run, model, text, ReportOptions(shifts=9, streams=1))
    assert len(whole["writer"]["layers"]) == 2
    bare = {
        "units": {},
        "writer": {"why": "its weights do not fit into the page; --megabytes makes room"},
        "steps": "[]",
    }
    rest = len(to_json(whole | bare))
    assert len(whole["units"]) == 48
    size = rest + 4000
    small = ReportOptions(units=("L1.o.3",), size=size, shifts=9, streams=1)
    data = collect_run("small", run, model, text, small)
    assert 0 < len(data["units"]) < 48 and data["units"]["L1.o.3"]["why"][0] == "asked for"
    assert data["labels"][0]["rows"][0][0] in data["units"]  # the best for a label comes before all others
    assert size - 700 < len(to_json(data)) <= size  # there was no room for one more
    with pytest.raises(ValueError, match="raise megabytes="):
        collect_run("small", run, model, text, ReportOptions(units=("L1.o", "L2.c"), size=rest + 800, streams=1))


def test_order_of_units():
    leaves = leaves_of(*_elman())
    assert asked_units(["L1.h.2", "L1.h"], leaves) == ["L1.h.2", "L1.h.0", "L1.h.1"]
    nan = np.full(3, np.nan)
    still = LeafStatistics("state", np.zeros(3), np.array([0.1, 0.3, 0.2]), nan, nan)
    gate = LeafStatistics("gate", np.zeros(3), np.array([0.2, 0.1, 0.3]), np.array([0, 0, 0.5]), np.array([0.9, 0, 0]))
    ranked = ranked_units(["L1.h.0"], {}, UnitStatistics({"L1.h": still, "L1.f": gate}, (), (), 9), 5)
    assert list(ranked) == ["L1.h.0", "L1.h.1", "L1.f.2", "L1.f.0", "L1.h.2", "L1.f.1"]
    assert ranked["L1.f.2"] == ["varies #1", "shut #1"] and ranked["L1.f.0"] == ["open #1", "varies #2"]
    assert ranked["L1.h.0"] == ["asked for"]


def _elman():
    import rnnjax as library

    cell = library.Elman(3)
    return cell, cell.init(jax.random.key(0), 2), jnp.ones(2)


def test_bad_input_is_one_sentence(folder, tmp_path, capsys):
    def refused(*arguments):
        result = rnnjax(capsys, "report", *arguments)
        assert result.code == 2 and "Traceback" not in result.err
        return " ".join(result.err.split())

    assert "there is no run in" in refused(tmp_path)
    assert "L1.c.0 to L1.c.3" in refused(folder, "--units", "L1.c.7")
    assert "no label is called" in refused(folder, "--label", "quotes")
    assert "a folder that exists" in refused(folder, "--out", tmp_path / "no" / "page.html")
    for site in (
        "ftp://example.org",
        "https://",
        "https://a b",
        "https://[",
        "https://example.org/?a",
        "javascript://x",
    ):
        assert "--site: must be an address as" in refused(folder, "--site", site)
    for site in (tmp_path, tmp_path / "no", "", "example.org/docs"):
        assert "which has no course/03-why-it-forgets.html; make docs" in refused(folder, "--site", site)
    empty = make_full_run(tmp_path / "empty", ModelOptions(embed=0, hidden=2), fractions=(1.0, 0.0, 0.0))
    assert "at least two symbols" in refused(empty)
    for path in sorted((empty / "checkpoints").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert "no complete checkpoint" in refused(empty)
    assert not (folder / "page.html").exists()


@pytest.mark.parametrize(
    "cell", ["lstm", "gru", "peephole_lstm", "indrnn", "coupled_lstm", "mgu", "layernorm_gru", "slstm"]
)
def test_the_step_in_javascript_is_the_one_of_the_cell(cell, tmp_path):
    """Run by node, on random numbers: the new state and the output of one layer."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("the JavaScript of the page is run by node, which is not installed; install Node.js")
    made = cells.cell_from_name(cell, 5)
    params = made.init(jax.random.key(0), 3)
    plan = plan_of(made, 3, None, None)
    program = plan.program()
    if not isinstance(program, Program):
        assert cell == "layernorm_gru"  # a sum over the units
        return
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: rng.uniform(0.1, 1, leaf.shape).astype(np.float32), made.initial_state(()))
    x = rng.normal(size=3).astype(np.float32)
    zx = np.split(np.asarray(x @ params.w_ih + params.b), made.num_gates)
    w_hh = getattr(params, "w_hh", None)
    zh = () if w_hh is None else np.split(np.asarray(state.h @ w_hh), made.num_gates)
    seen = list(zx)
    if w_hh is not None:
        seen = [part for a, b, s in zip(zx, zh, plan.summed) for part in ([a + b] if s else [a, b])]
    own = program.columns(plan.own(params), 5, np.float32)
    given = [[np.asarray(one, float).tolist() for one in many] for many in (own, jax.tree.leaves(state), seen)]
    script = f"const steps = {step_script([program])}; const [own, old, seen] = {json.dumps(given)};"
    script += "const fresh = old.map(() => []); const y = []; steps[0](5, own, old, seen, fresh, y);"
    script += "console.log(JSON.stringify([...fresh, y]));"
    found = json.loads(subprocess.run([node, "-e", script], capture_output=True, text=True, check=True).stdout)
    new, y = made.step(params, state, x)
    for got, expected in zip(found, [*jax.tree.leaves(new), y], strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("bits", [16, 8])
def test_weights_in_the_page(written, bits):
    """As many bits as fit; what they stand for is near the weights, and what JAX computed is of these very numbers."""
    params = written.run.params
    count = sum(np.asarray(leaf).size for leaf in jax.tree.leaves(params))
    ids = unpack(written.data["ids"])
    data, _ = writer_data(written.run, {16: 3, 8: 2}[bits] * count, ids)
    assert data["bits"] == bits
    assert "do not fit" in writer_data(written.run, count, ids)[0]["why"]

    def weights(packed):
        if isinstance(packed, str):
            return unpack(packed).view(np.float16).astype(np.float32)
        scales = unpack(packed["scales"])
        return ((unpack(packed["levels"]).reshape(-1, len(scales)) - np.float32(128)) * scales).ravel()

    shown = rounded(params, bits)
    for layer, own, near in zip(data["layers"], params.stack.layers, shown.stack.layers, strict=True):
        for name in ("w_ih", "w_hh", "b"):
            whole, found = np.asarray(getattr(own, name)), weights(layer[name])
            np.testing.assert_array_equal(found, np.asarray(getattr(near, name)).ravel())
            step = 2**-11 if bits == 16 or whole.ndim == 1 else 0.501 / 127  # of the largest of its column
            allowed = step * np.abs(whole).max(0, keepdims=whole.ndim > 1) * np.ones_like(whole) + 1e-7
            assert (np.abs(found - whole.ravel()) <= allowed.ravel()).all()
    model, prime = written.run.model, np.asarray(data["prime"])
    _, logits = model.logits(shown, model.initial_state((1,)), jnp.asarray(prime)[:, None], implementation="scan")
    expected = np.exp(log_softmax(np.asarray(logits[-1, 0])))
    np.testing.assert_allclose(unpack(data["reference"]), expected, atol=1e-6)


def test_a_text_that_begins_within_a_line_is_shown_from_the_next_one():
    """What is cut off stands before the text, where labels see it; a text that begins a line stays whole."""
    vocabulary = Vocabulary("char", ("\n", "a", "b"))
    whole = vocabulary.encode("ab\n" + "aab\n" * 300)

    def shown(start, **changes):
        source = RunText("t", whole[start:], None, whole[:start], vocabulary)._replace(**changes)
        found = _at_a_line(source)
        joined = [np.concatenate([one.before, one.ids]) for one in (found, source)]
        np.testing.assert_array_equal(*joined)
        return len(source.ids) - len(found.ids)

    assert [shown(start) for start in (1, 2, 3, 4, 6, 7)] == [2, 1, 0, 3, 1, 0]
    assert shown(4, before=whole[:0]) == 0  # of a file: its beginning
    assert shown(4, starts=np.array([0])) == 0  # of documents
    assert shown(len(whole) - 90) == 0  # too short to lose any


def test_pages_of_the_course_are_called_as_they_are():
    """In the meanings of terms, which name a page by its number and title, and link to one of its headings."""
    root = pathlib.Path(__file__).resolve().parents[2]
    for number, (name, title) in COURSE.items():
        text = (root / "docs" / "course" / f"{name}.md").read_text(encoding="utf-8")
        assert name.startswith(f"{number:02}-") and f"\n# {number} {title}\n" in text
    script = (root / "rnnjax/report/assets/terms.js").read_text(encoding="utf-8")
    named = re.findall(r'"\], (\d+), "([^"]+)"\],$', script, re.MULTILINE)
    assert len(named) == script.count('-title": [') == 8
    for number, heading in named:
        assert heading in headings()[COURSE[int(number)][0]]


def test_a_page_knows_where_the_course_is(written, tmp_path, monkeypatch):
    """By the option, or by the one line that names the published site; without both it has no address."""

    def address(site=None):
        html = page([written.data], site)
        assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?\w+:", html)  # of what a browser would load by itself
        (block,) = re.findall(r'<script type="application/json" id="shared">(.*?)</script>', html, re.DOTALL)
        return json.loads(block)["site"]

    folder = make_site(tmp_path / "a site")
    assert address() == "" and "://" not in to_json(written.data)
    assert address("https://example.org/a/") == address("https://example.org/a") == "https://example.org/a/"
    assert address(str(folder)) == folder.as_uri() + "/" and "a%20site/" in folder.as_uri() + "/"
    monkeypatch.chdir(tmp_path)
    assert address("a site") == folder.as_uri() + "/"
    monkeypatch.setattr(report_site, "SITE", "https://example.org/published")
    assert address() == "https://example.org/published/"
    assert address("https://example.org/a") == "https://example.org/a/"
