"""Splits, readers, baselines and the classifier of experiment 03, against counts and formulas by hand."""

import email
import importlib
import itertools
import math
import pathlib

import jax
import numpy as np
import pytest

from experiments import common

baselines = importlib.import_module("experiments.03_classify.baselines")
data = importlib.import_module("experiments.03_classify.data")
model = importlib.import_module("experiments.03_classify.model")
run = importlib.import_module("experiments.03_classify.run")


def examples(texts, labels, part, unit="characters"):
    classes = tuple("abcdefgh"[: max(labels) + 1])
    return data.Examples(tuple(texts), np.array(labels), np.array(part), classes, unit)


def test_parts_have_their_share_of_every_class_and_share_nothing():
    labels = np.random.default_rng(0).permutation([0] * 200 + [1] * 50 + [2] * 10)
    part = data.split_stratified(labels, (0.7, 0.1, 0.2), seed=1)
    for label, size in ((0, 200), (1, 50), (2, 10)):
        assert np.bincount(part[labels == label]).tolist() == [0.7 * size, 0.1 * size, 0.2 * size]
    assert (part == data.split_stratified(labels, (0.7, 0.1, 0.2), seed=1)).all()
    assert (part != data.split_stratified(labels, (0.7, 0.1, 0.2), seed=2)).any()


def write_names(folder):
    folder.mkdir()
    for language, letters in (("Latin", "abcdefghij"), ("Greek", "αβγδεζηθικ")):
        names = ["".join(pair) for pair in itertools.islice(itertools.permutations(letters, 2), 20)]
        (folder / f"{language}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (folder / "SOURCE.txt").write_text("where it is from\n\n")


def test_names_are_read_whole_and_split(tmp_path):
    write_names(tmp_path / "names")
    found = data.read_names(tmp_path / "names", seed=0)
    assert found.classes == ("Greek", "Latin") and len(found.texts) == len(set(found.texts)) == 40
    for part, size in (("train", 28), ("valid", 4), ("test", 8)):
        texts, labels = found.of(part)
        assert len(texts) == size and labels.sum() == size / 2
        assert all((text[0] < "z") == label for text, label in zip(texts, labels))
    known = data.vocabulary(found)
    assert set(known) == set("".join(found.of("train")[0])) and min(known.values()) == data.UNKNOWN + 1
    ids, lengths = data.encode(found, ["ab", "b?a"], known, seq_len=4)
    assert ids.tolist() == [[known["a"], known["b"], -1, -1], [known["b"], 0, known["a"], -1]]
    assert lengths.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("Greek.txt", b"one\n\ntwo\n", ", line 2: needs a name, got an empty line; remove it."),
        ("Greek.txt", b"one\n \t\ntwo\n", ", line 2: needs a name, got an empty line; remove it."),
        ("Greek.txt", b"", ", line 1: needs a name, got an empty line; remove it."),
        ("Greek.txt", b"one\ntwo\n", ", line 2: needs at least 10 names to be split into parts, got 2."),
        ("Greek.txt", b"one\n\xff\n", ", line 2: must be utf-8, got b'\\xff'; convert the file."),
        ("Greek.txt", None, " needs a file Language.txt for each of at least two languages, got 1."),
    ],
)
def test_bad_names_are_one_sentence_with_file_and_line(tmp_path, capsys, file, content, sentence):
    folder = tmp_path / "names"
    write_names(folder)
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        common.run(run.main, ["--quick", "--data", str(folder), "--out", str(tmp_path)])
    assert ended.value.code == 2
    where = f"{folder}:" if content is None else str(folder / file)
    assert capsys.readouterr().err == f"{where}{sentence}\n"


def test_folds_of_sentences_are_disjoint_and_cover_all(tmp_path):
    for name, word in (("neg", "bad"), ("pos", "good")):
        lines = [f"{word} film {i}\x85 so" for i in range(30)]
        (tmp_path / f"rt-polarity.{name}").write_bytes("\n".join(lines).encode("latin-1") + b"\n")
    folds = [data.read_polarity(tmp_path, seed=0, fold=fold) for fold in range(10)]
    tested = [text for fold in folds for text in fold.of("test")[0]]
    assert len(tested) == len(set(tested)) == 60
    for fold, following in zip(folds, [*folds[1:], folds[0]]):
        assert set(fold.of("valid")[0]) == set(following.of("test")[0])
        assert not set(fold.of("train")[0]) & set(fold.of("valid", "test")[0])
        assert all(text.startswith("good") == label for text, label in zip(fold.texts, fold.labels))
    assert folds[0].symbols(tested[0])[-1] == "so" and len(folds[0].symbols(tested[0])) == 4
    (tmp_path / "rt-polarity.pos").unlink()
    with pytest.raises(common.DataError, match=r"rt-polarity.pos: must exist"):
        data.read_polarity(tmp_path, seed=0, fold=0)


def test_files_of_a_package_are_held_out_whole():
    found = data.read_library(0, packages=("email", "xml"), size=60, most=100000)
    pieces = {part: set(found.of(part)[0]) for part in data.PARTS}
    sizes = {part: sum(map(len, texts)) for part, texts in pieces.items()}
    assert found.classes == ("email", "xml")
    files = [
        set(data.snippets(path.read_text("utf-8"), 60)) for path in pathlib.Path(email.__file__).parent.glob("*.py")
    ]
    shared = {text for one, other in itertools.combinations(files, 2) for text in one & other}  # licences
    assert all(sum(bool((one - shared) & texts) for texts in pieces.values()) <= 1 for one in files)
    assert 0.1 < sizes["test"] / sum(sizes.values()) < 0.3 and sizes["valid"] > 0.03 * sum(sizes.values())
    split = data._split_files({"a": 10, "b": 70, "c": 10, "d": 10})
    assert sorted(split) == ["a", "b", "c", "d"] and sorted(split.values()) == [0, 1, 2, 2] and split["b"] == 0
    assert sorted(data._split_files({"a": 1000, "b": 900, "c": 800}).values()) == [0, 1, 2]


def test_snippets_lose_nothing_but_the_tail():
    source = "".join(f"line {i}\n" for i in range(50))
    pieces = data.snippets(source, size=30)
    assert source.startswith("\n".join(pieces)) and all(30 <= len(piece) < 45 for piece in pieces)
    assert len(source) - len("\n".join(pieces)) < 40
    assert data.snippets("x" * 100, size=30) == ["x" * 60]


def test_pieces_of_code():
    found = data.UNITS["pieces"]("_is_HTTPError2 = aB['x1']  # Né")
    assert found == [*"_", "is", *"_", "http", "error", *"2=", "a", "b", *"['", "x", *"1']#", "n", "é"]


def test_scores_are_those_by_hand():
    found = baselines.scores(np.array([0, 0, 0, 1]), np.array([0, 1, 0, 1]), 3)
    assert found["accuracy"] == 0.75 and found["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["confusion"].tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_naive_bayes_is_the_formula():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 90)
    texts = [" ".join(rng.choice(list("uvwxyz"), 4, p=np.array([3, 2, 2, 2, 2, 1])[:: 1 - 2 * y] / 12)) for y in labels]
    part = np.repeat([0, 1, 2], 30)
    found = baselines.naive_bayes(examples(texts, labels, part, "words"), "words", (1, 1), alphas=(0.5,))

    right = 0
    counts = [[sum(texts[i].split().count(w) for i in range(60) if labels[i] == y) for w in "uvwxyz"] for y in (0, 1)]
    for i in range(60, 90):
        guess = [
            math.log((labels[:60] == y).mean())
            + sum(math.log((counts[y]["uvwxyz".index(w)] + 0.5) / (sum(counts[y]) + 3)) for w in texts[i].split())
            for y in (0, 1)
        ]
        right += (guess[1] > guess[0]) == labels[i]
    assert found["accuracy"] == pytest.approx(right / 30) and found["alpha"] == 0.5
    assert (
        baselines.majority(examples(texts, labels, part)) == (labels[60:] == np.bincount(labels[:30]).argmax()).mean()
    )


def test_probabilities_come_back_in_order_whatever_the_bucket():
    texts = ["ab", "b", "aaabba", "bab", "abab"]
    found = examples(texts, [0, 1, 0, 1, 2], [0, 0, 0, 2, 2])
    settings = model.Settings(hidden_size=3, embed_size=3, num_buckets=2, unknown_rate=0.5)
    classifier = model.Classifier(settings, found)
    params = jax.tree.map(lambda leaf: 2 * leaf, classifier.model.init(jax.random.key(0)))
    p = classifier.predictor(texts, batch_size=2)(params)
    assert np.allclose(p.sum(1), 1) and np.ptp(p[:, 0]) > 1e-3
    ids, lengths = data.encode(found, texts, classifier.known, 9)
    alone = jax.nn.softmax(jax.jit(classifier.model.apply)(params, ids.T, lengths=lengths))
    np.testing.assert_allclose(p, alone, atol=1e-6)


def test_texts_that_training_has():
    found = run.seen_and_new(examples(["a", "b", "a", "c"], [0, 0, 1, 1], [0, 1, 2, 2]), np.array([True, False]))
    assert found == {"seen in training": {"count": 1, "accuracy": 1.0}, "new": {"count": 1, "accuracy": 0.0}}
