"""`rnnjax train --init-from`: what is taken over, what is fresh, where it is recorded, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest

from rnnjax.fit import checkpoint as checkpoints
from rnnjax.lm.evaluate import evaluate
from rnnjax.lm.options import ModelOptions
from rnnjax.lm.run import open_run
from rnnjax.report.measures import facts, read_curves
from rnnjax.text.corpus import load_corpus
from rnnjax.text.vocabulary import UNKNOWN, Vocabulary
from tests.lm.tiny_run import make_run, rnnjax

STILL = "--lr 1e-46 --schedule constant --warmup 0 --steps 1 --evals 1".split()  # zero in float32
SMALL = "--batch-size 4 --chunk-len 16 --sample-length 0 --no-baselines".split()


@pytest.fixture
def other(tmp_path):
    path = tmp_path / "other.txt"
    path.write_text("".join(np.random.default_rng(1).choice(list("cabxyz!\n"), 600)), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "model",
    [ModelOptions(embed=0, hidden=8), ModelOptions(hidden=8, tie=True), ModelOptions(hidden=8, embed=5, layers=2)],
    ids=["one-hot", "tied", "two layers"],
)
def test_known_symbols_keep_their_numbers_and_new_ones_are_fresh(model, other, tmp_path, capsys):
    old = open_run(make_run(tmp_path / "old", model=model))
    done = rnnjax(capsys, "train", other, "--init-from", old.paths.root, "--out", tmp_path / "new", *SMALL, *STILL)
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "of 24 symbols 4 are new and start afresh: '!', 'x', 'y', 'z'." in said
    new = open_run(tmp_path / "new")
    assert new.vocabulary.symbols == (*old.vocabulary.symbols, "!", "x", "y", "z")
    origin = new.provenance["init_from"]
    assert origin["step"] == 2 and origin["val_loss"] == 2.25 and origin["run"] == str(old.paths.root)
    fresh = new.model.init(jax.random.fold_in(jax.random.key(0), 0))
    count = len(old.vocabulary)
    larger = 0
    for (path, was), now, begun in zip(
        jax.tree_util.tree_leaves_with_path(old.params),
        jax.tree.leaves(new.params),
        jax.tree.leaves(fresh),
        strict=True,
    ):
        axes = [axis for axis in range(was.ndim) if was.shape[axis] != now.shape[axis]]
        shared = now if not axes else np.split(now, [count], axis=axes[0])[0]
        assert np.array_equal(shared, was), path
        if axes:
            larger += 1
            assert axes == [was.shape.index(count)] and now.shape[axes[0]] == count + 4
            assert np.array_equal(*(np.split(a, [count], axis=axes[0])[1] for a in (now, begun))), path
    assert larger == (2 if model.tie else 3)


def test_on_its_own_text_it_begins_where_the_run_ended(tmp_path, capsys):
    old = open_run(make_run(tmp_path / "old"))
    done = rnnjax(capsys, "train", "--init-from", old.paths.root, "--out", tmp_path / "new", *SMALL, *STILL)
    assert done.code == 0 and "none is new" in " ".join(done.out.split()), done.err
    new = open_run(tmp_path / "new")
    assert new.config.text.fractions == old.config.text.fractions and new.vocabulary == old.vocabulary
    rows = [json.loads(line) for line in new.paths.metrics.read_text().splitlines()]
    valid = load_corpus(old.config.text).valid
    assert rows[-1]["val_loss"] == pytest.approx(evaluate(old.model, old.params, valid, streams=32).loss, rel=1e-6)
    assert rnnjax(capsys, "info", tmp_path / "new").code == 0
    assert facts(new, read_curves(new))["training"].partition(", begun with those of ")[2].startswith(str(tmp_path))


def test_it_resumes_to_the_same_bits_without_the_origin(other, tmp_path, capsys):
    make_run(tmp_path / "old")
    options = [*SMALL, "--schedule", "constant", "--warmup", "0", "--evals", "1", "--min-count", "3"]
    for name, steps in (("straight", 4), ("stopped", 2)):
        begun = ["train", other, "--init-from", tmp_path / "old", "--out", tmp_path / name, "--steps", steps, *options]
        assert rnnjax(capsys, *begun).code == 0
    shutil.rmtree(tmp_path / "old")
    done = rnnjax(capsys, "train", "--resume", tmp_path / "stopped", "--steps", "4")
    assert done.code == 0, done.err
    left, right = (
        checkpoints.load(checkpoints.find_checkpoints(tmp_path / name / "checkpoints")[-1].path)[0]
        for name in ("straight", "stopped")
    )
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert np.array_equal(array, right[name]), name


def test_what_does_not_fit_is_one_sentence(other, tmp_path, capsys):
    old = make_run(tmp_path / "old")

    def refused(*options):
        done = rnnjax(capsys, "train", other, *options)
        assert done.code == 2 and "Traceback" not in done.err and not (tmp_path / "new").exists()
        return " ".join(done.err.replace("│", " ").split())

    start = ("--init-from", old, "--out", tmp_path / "new", *SMALL)
    assert "was trained with --hidden 8, got 16; leave it out" in refused(*start, "--hidden", "16")
    assert "was trained with --level char, got word" in refused(*start, "--level", "word")
    assert "was trained with --layers 2, got 1 (of --preset wide)" in refused(*start, "--preset", "wide")
    assert "there is no run in" in refused("--init-from", tmp_path / "none", "--out", tmp_path / "new")
    assert "is the folder of the new run, too" in refused("--init-from", old, "--out", old, "--force")
    assert "--init-from: does not go together with --resume" in refused("--init-from", old, "--resume", old)
    best = min((old / "checkpoints").iterdir())
    best.write_bytes(best.read_bytes()[:1000])
    assert "checkpoint" in refused(*start)


def test_symbols_are_added_behind_the_others():
    old = Vocabulary("char", ("a", "b"))
    assert old.extended({"b": 1}) == old
    grown = old.extended({"c": 1, "d": 3, "b": 1}, min_count=2)  # what is rare becomes the unknown symbol
    assert grown.symbols == ("a", "b", "d", UNKNOWN) and grown.unknown == 3
    words = Vocabulary.from_counts("word", {"on": 1, "a": 2})
    assert words.extended({"mat": 1}).symbols == (*words.symbols, "mat")
    assert words.extended({"mat": 1}).unknown == words.unknown
    data = Vocabulary.from_counts("byte", {})
    assert data.extended({"x": 1}) == data
