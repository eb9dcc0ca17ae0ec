"""Bars of tunes counted by hand, collections cut into tunes, and the n-gram against its own probabilities."""

import collections
import importlib

import pytest

abc, run = (importlib.import_module(f"experiments.13_tunes.{name}") for name in ("abc", "run"))
HEAD = "M:{}\nL:1/8\nK:G\n"


@pytest.mark.parametrize(
    ("metre", "bar", "valid"),
    [
        ("4/4", "ABcd e2f2", True),
        ("C", "ABcd e2f", False),
        ("C|", "A4 z4", True),
        ("3/4", "A3/2B/2 c2 d2", True),
        ("6/8", "A>BA (3BcdB", True),  # a dotted pair is two, a triplet two as well
        ("6/8", "A2B c2d", True),
        ("2/4", "[AC]2 {ga}b2", True),  # a chord is one, grace notes none
        ("2/4", '"Am"A2 !f!B2', True),
        ("2/4", "A//B//c/ d e", False),
        ("2/4", "A<<B c2", True),
        ("9/8", "^A,2_B' c3 =d3", True),
    ],
)
def test_bars_are_as_long_as_by_hand(metre, bar, valid):
    tune = HEAD.format(metre) + f"G|{bar}|{bar}|{bar}:|\n"
    assert abc.bars(tune) == (2, 2 * valid)  # the first is an upbeat, the last ends a part


def test_tune_without_a_metre_has_no_bars():
    assert abc.bars("M:none\nL:1/8\nK:G\nG|AB|cd|ef|]\n") == (0, 0)
    assert abc.bars("K:G\nG|AB|cd|\n") == (0, 0)


def test_collection_is_cut_into_tunes(tmp_path):
    (tmp_path / "a.abc").write_text(
        "words\nX:1\nT:One\nT:Other name\nR:reel\nM:C\nL:1/8\nK:D % key\nAB|cd %x\nefg|]\n\nmore words\n"
        "X: 2\nT:No key\nM:C\nAB|\n\nX:3\nT:Two\nM:6/8\nK:G\nGAB|\nw:la la\n"
    )
    assert abc.read(tmp_path) == [
        "T:One\nM:C\nL:1/8\nK:D\nAB|cd\nefg|]\n",
        "T:Two\nM:6/8\nL:1/8\nK:G\nGAB|\n",
    ]
    assert abc.split("ut\n\nT:A\nK:G\nAB|\n\nT:B\nK") == ["T:A\nK:G\nAB|\n"]


def test_ngram_draws_by_witten_bell():
    """After one letter, seen with two successors three times: (c + N p') / (3 + 2), with p' of single letters."""
    text = "abacabxx"
    model = run.NGram(text, 2)
    draws = collections.Counter(model.write(1, seed, start="a") for seed in range(4000))
    single = {s: (text.count(s) + 4 * 0.25) / (8 + 4) for s in "abcx"}
    wanted = {s: ({"b": 2, "c": 1}.get(s, 0) + 2 * single[s]) / 5 for s in "abcx"}
    for symbol, share in wanted.items():
        assert draws[symbol] / 4000 == pytest.approx(share, abs=0.04)


def test_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install music21, or --quick"):
        run.corpus_folder()
