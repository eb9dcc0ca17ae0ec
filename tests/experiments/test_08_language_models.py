"""Equal sizes: the counts against formulas, the search against brute force; and bad texts."""

import importlib

import pytest

from experiments import common
from rnnjax.lm.options import ModelOptions

models = importlib.import_module("experiments.08_language_models.models")
run = importlib.import_module("experiments.08_language_models.run")


@pytest.mark.parametrize(
    ("cell", "of_layer"),
    [
        ("Elman", lambda i, h: i * h + h * h + h),
        ("LSTM", lambda i, h: 4 * (i * h + h * h + h)),
        ("GRU", lambda i, h: 3 * (i * h + h * h + h) + h),
        ("minGRU", lambda i, h: 2 * (i * h + h)),
        ("LRU", lambda i, h: i * h + h + 5 * h * h + 3 * h + h * h + h),
    ],
)
def test_counts_are_those_of_the_equations(cell, of_layer):
    options = ModelOptions(cell=models.CELLS[cell], layers=2, hidden=7, embed=5)
    want = 11 * 5 + of_layer(5, 7) + of_layer(7, 7) + 7 * 11 + 11
    assert models.count_parameters(options, 11) == want


@pytest.mark.parametrize("target", [1, 2, 3, 299, 300, 301, 1000])
def test_search_finds_what_brute_force_finds(target):
    def count(size):
        return 3 * size * size + 2 * size

    assert models.solve_size(count, target) == min(range(1, 40), key=lambda size: abs(count(size) - target))


def test_models_compared_have_equal_sizes():
    for cell in models.CELLS:
        options, number = models.same_size(cell, 2, embed=16, vocab_size=60, target=30_000)
        assert number == models.count_parameters(options, 60) and abs(number - 30_000) <= 600
    with pytest.raises(ValueError, match=r"same_size: LSTM with 1 layers must have 100 parameters within 2%, got"):
        models.same_size("LSTM", 1, embed=16, vocab_size=60, target=100)


def test_missing_and_empty_texts_are_named(tmp_path):
    options = common.Options(quick=True, dataset="tinyshakespeare", data=tmp_path, out=tmp_path, seed=0)
    level = run.Settings().levels[0]
    with pytest.raises(common.DataError, match=r"input.txt: the text must be in this file, which is missing\.$"):
        run.read_text(options, level, run.Settings())
    (tmp_path / "input.txt").write_text(" \n")
    with pytest.raises(common.DataError, match=r"input.txt: must hold text, got an empty file\.$"):
        run.read_text(options, level, run.Settings())
    (tmp_path / "input.txt").write_text("abcdefghij" * 20)
    corpus = run.read_text(options, level, run.Settings())
    assert (len(corpus.train), len(corpus.valid), len(corpus.test)) == (180, 20, 0)
