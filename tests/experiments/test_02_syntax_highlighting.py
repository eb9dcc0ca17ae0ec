"""Labels, windows, tables and treebanks of experiment 02, against labels by hand, `ast` and loops."""

import ast
import collections
import gzip
import html
import importlib
import pathlib
import re
import textwrap

import jax
import numpy as np
import pytest

from experiments import common

source = importlib.import_module("experiments.02_syntax_highlighting.source")
baselines = importlib.import_module("experiments.02_syntax_highlighting.baselines")
characters = importlib.import_module("experiments.02_syntax_highlighting.characters")
conllu = importlib.import_module("experiments.02_syntax_highlighting.conllu")
pages = importlib.import_module("experiments.02_syntax_highlighting.pages")
run = importlib.import_module("experiments.02_syntax_highlighting.run")
speech = importlib.import_module("experiments.02_syntax_highlighting.speech")
tagger = importlib.import_module("experiments.02_syntax_highlighting.tagger")

KINDS = dict(zip("_kbdan1sDco", source.CLASSES))  # a letter a class


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("def f(x): return len(x.y) + 1  # é\n", "kkk_donoo_kkkkkk_bbbonoao_o_1__ccc_"),
        ("class print(str): pass\n", "kkkkk_dddddobbboo_kkkk_"),
        ("x.print.def_ = None\n", "noaaaaaoaaaa_o_kkkk_"),
        ('"""doc"""\ns = """no\n"""\n', "DDDDDDDDD_n_o_sssssssss_"),
        ("x = 'é' \\\n  rb'\\''\n", "n_o_sss_____ssssss_"),
        ("f(\n 'no doc'\n)\n", "no__ssssssss_o_"),
        ("# c\n'''d'''  # c\n'a' 'b'\n", "ccc_DDDDDDD__ccc_sss_sss_"),
        ("y = f'{len(x)!r:>{w}} \\' {{}}' + 0x1F\n", "n_o_" + "s" * 26 + "_o_1111_"),
    ],
)
def test_labels_are_those_by_hand(text, marks):
    assert len(text) == len(marks)
    assert source.label(text).tolist() == [source.CLASSES.index(KINDS[mark]) for mark in marks]


def test_labels_agree_with_the_syntax_tree():
    text = pathlib.Path(textwrap.__file__).read_text(encoding="ascii")
    starts = np.cumsum([0, *(len(line) for line in text.splitlines(keepends=True))])
    labels = source.label(text)
    docs, attributes, defined = (np.zeros(len(text), bool) for _ in range(3))
    for node in ast.walk(ast.parse(text)):
        if not hasattr(node, "col_offset"):
            continue
        begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docs[begin:end] = True
        if isinstance(node, ast.Attribute):
            attributes[end - len(node.attr) : end] = True
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            begin = text.index(node.name, begin + len("def"))
            defined[begin : begin + len(node.name)] = True
    for name, true in (("docstring", docs), ("attribute", attributes), ("definition", defined)):
        np.testing.assert_array_equal(labels == source.CLASSES.index(name), true, err_msg=name)


@pytest.mark.parametrize("text", ["x = $\n", "f(\n", "'''open"])
def test_what_is_not_python_is_refused(text):
    with pytest.raises(ValueError, match="must be Python"):
        source.label(text)


@pytest.mark.parametrize("margin", [0, 3])
def test_every_character_is_labelled_in_one_window_with_its_margin(margin):
    rng = np.random.default_rng(0)
    known = {character: i for i, character in enumerate("abcdefg", start=1)}
    files = [
        source.Source("", "".join(rng.choice(list("abcdefgh"), size)), rng.integers(0, 11, size)) for size in (5, 23, 8)
    ]
    ids, labels = source.windows(files, known, size=10, margin=margin)
    assert ids.shape == labels.shape and ids.shape[1] == 10
    text = "".join(one.text for one in files)
    assert ids[labels >= 0].tolist() == ["?abcdefg".find(c) if c != "h" else source.UNKNOWN for c in text]
    assert labels[labels >= 0].tolist() == np.concatenate([one.labels for one in files]).tolist()
    # Around a labelled character stands what stands around it in the file: up to the margin, or the file's end.
    labelled, place = iter(np.argwhere(labels >= 0)), 0
    for one in files:
        found = source.encode(one.text, known)
        for at in range(len(found)):
            row, column = next(labelled)
            before, after = found[max(at - margin, 0) : at], found[at : at + margin + 1]
            np.testing.assert_array_equal(ids[row, column - len(before) : column], before)
            np.testing.assert_array_equal(ids[row, column : column + len(after)], after)
            place += 1
    assert place == len(text)


def test_tables_of_neighbours_are_a_dictionary_that_backs_off():
    rng = np.random.default_rng(1)
    contexts = [(0, 0), (1, 0), (1, 1)]
    files = [(rng.integers(0, 5, 60), rng.integers(0, 3, 60)) for _ in range(2)]
    unseen = rng.integers(0, 6, 50)  # 5 is in no training file
    counts = collections.defaultdict(collections.Counter)

    def around(ids, at, left, right):
        return tuple(ids[i] if 0 <= i < len(ids) else None for i in range(at - left, at + right + 1))

    for ids, labels in files:
        for at, label in enumerate(labels):
            for context in contexts:
                counts[context, around(ids, at, *context)][label] += 1
    expected = []
    for at in range(len(unseen)):
        known = [counts[c, around(unseen, at, *c)] for c in contexts if (c, around(unseen, at, *c)) in counts]
        best = known[-1] if known else {0: 1}
        expected.append(min(label for label, count in best.items() if count == max(best.values())))
    table = baselines.NgramTable(contexts, files, size=6)
    assert table.predict(unseen).tolist() == expected
    assert table.predict(unseen, 1).tolist() == baselines.NgramTable(contexts[:1], files, 6).predict(unseen).tolist()
    with pytest.raises(ValueError, match="62 bits"):
        baselines.NgramTable([(9, 9)], files, size=100)


def test_scores_are_those_of_loops():
    labels, guessed, classes = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 0, 2]), ("a", "b", "c", "d")
    found = baselines.scores(labels, guessed, classes)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["recall"] == {"a": 0.5, "b": 1.0, "c": pytest.approx(2 / 3), "d": None}
    assert found["precision"] == {"a": 0.5, "b": 0.5, "c": 1.0, "d": None}
    assert found["confusion"].tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]


def test_place_in_word():
    text = "if abc.de == 'if':"
    labels = source.label(f"{text} pass\n")[: len(text)]
    right = np.array([character != "b" and character != "i" for character in text])
    found, count = characters.by_place_in_word(text, labels, right, most=2)
    assert count.tolist() == [3, 4]  # i a d; f b c e
    assert found.tolist() == [2, 3]


def test_colored_page_holds_the_text_and_marks_what_is_wrong():
    text = 'x = "<b>" & 1\n'
    truth = source.label(text)
    guessed = truth.copy()
    guessed[4:9] = source.CLASSES.index("comment")
    page = pages.colored_html("<title>", text, {"truth": truth, "network": guessed})
    shown = [html.unescape(re.sub("<[^>]*>", "", part)) for part in re.findall("<pre>(.*?)</pre>", page, re.DOTALL)]
    assert shown == [text, text]
    assert page.count(' wrong"') == 1 and 'title="comment, is string"' in page
    assert "64.3 %" in page and "&lt;title&gt;" in page


def line(place, form, tag):
    return "\t".join((place, form, "_", tag, *"______"))


TREES = "\n".join(
    [
        *("# sent_id = 1", line("1-2", "don't", "_"), line("1", "do", "AUX"), line("2", "n't", "PART"), ""),
        *(line("1", "New York", "PROPN"), line("1.1", "said", "VERB"), line("2", "!", "PUNCT"), ""),
    ]
)


@pytest.mark.parametrize("ending", ["", "\n"])
@pytest.mark.parametrize("name", ["en-ud-dev.conllu", "en-ud-dev.conllu.gz"])
def test_treebank_has_single_tokens_alone(tmp_path, name, ending):
    content = (TREES + ending).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert [(one.words, one.tags) for one in conllu.read_conllu(tmp_path / name)] == [
        (("do", "n't"), ("AUX", "PART")),
        (("New York", "!"), ("PROPN", "PUNCT")),
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (TREES.replace("AUX", ""), "line 3: needs one of the 17 universal tags in column 4, got ''."),
        (TREES.replace("PROPN", "NNP"), "line 6: needs one of the 17 universal tags in column 4, got 'NNP'."),
        (TREES.replace("2\t!", "2\t"), "line 8: needs a word in column 2, got an empty one."),
        (TREES.replace("2\tn't\t_", "2\tn't"), "line 4: needs 10 columns with a tab between them, got 9."),
        (TREES + "\n# nothing\n\n", "line 10: begins a sentence without words; remove it."),
        (TREES.replace("do\t", "d\udcff\t"), "line 3: must be UTF-8; convert the file."),
    ],
)
def test_bad_treebank_is_one_sentence_with_file_and_line(tmp_path, capsys, content, sentence):
    folder = tmp_path / "ud_ewt"
    folder.mkdir()
    for part in ("train", "dev", "test"):
        whole = content if part == "dev" else TREES
        (folder / f"en-ud-{part}.conllu").write_bytes(whole.encode(errors="surrogateescape"))
    with pytest.raises(SystemExit) as ended:
        common.run(run.main, ["--quick", "--data", str(folder), "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{folder / 'en-ud-dev.conllu'}, {sentence}\n"


def test_treebank_that_is_not_whole(tmp_path):
    path = tmp_path / "en-ud-train.conllu.gz"
    path.write_bytes(gzip.compress(TREES.encode())[:-9])
    with pytest.raises(common.DataError, match=r"train.conllu.gz: must be a whole gzip file"):
        conllu.read_treebank(tmp_path)
    path.unlink()
    with pytest.raises(common.DataError, match=r"needs one file \*-ud-train.conllu or .conllu.gz, got 0"):
        conllu.read_treebank(tmp_path)


def test_encoder_folds_words_and_keeps_letters():
    train = [conllu.Sentence(("The", "the", "12", "99", "rare"), ("DET", "DET", "NUM", "NUM", "ADJ"))]
    encoder = conllu.Encoder(train, min_count=2, first=2, last=3)
    assert dict(encoder.words) == {"00": 1, "the": 2} and encoder.counts.tolist() == [0, 2, 2]
    forms = ["THE", "abcdefgh", "34", "rare"]
    found = encoder.encode([conllu.Sentence(tuple(forms), ("X",) * 4)], {form: i for i, form in enumerate(forms)}, 5)
    assert found["words"].tolist() == [[2, 0, 1, 0, -1]] and found["forms"].tolist() == [[0, 1, 2, 3, -1]]
    assert found["tags"].tolist() == [[16, 16, 16, 16, -1]] and found["lengths"].tolist() == [4]
    ids, lengths = encoder.spell(forms)
    letters = {i: character for character, i in encoder.characters.items()}
    assert lengths.tolist() == [3, 5, 2, 4]
    assert ["".join(letters.get(i, "?") for i in row if i >= 0) for row in ids] == ["T??", "a???h", "??", "rare"]


def test_most_frequent_tag_and_unseen_words():
    sentences = [[("a", "X"), ("a", "ADJ"), ("a", "ADJ")], [("b", "NOUN"), ("c", "NOUN"), ("d", "NOUN")]]
    assert baselines.most_frequent_tag(sentences) == ({"a": "ADJ", "b": "NOUN", "c": "NOUN", "d": "NOUN"}, "NOUN")
    found = speech.seen_and_new(["a", "A", "b"], {"a", "b"}, np.array([True, True, False]))
    assert found == {"seen": {"words": 2, "accuracy": 0.5}, "unseen": {"words": 1, "accuracy": 1.0}}


def test_tags_come_back_to_their_words_whatever_the_batch():
    texts = ("a", "bb a ccc", "ccc", "a bb", "dddd")
    sentences = [conllu.Sentence(tuple(text.split()), ("X",) * len(text.split())) for text in texts]
    settings = tagger.Settings(*(4, 3, 3, 4, 3), batch_size=2)
    model = tagger.Tagger(settings, conllu.Encoder(sentences, min_count=1), ["dddd", "a", "ccc", "bb"])
    params = jax.tree.map(lambda leaf: 3 * leaf, model.init(jax.random.key(0)))
    found = model.tag(params, sentences, boundaries=[3])
    batch = model.spell(model.encoder.encode(sentences, model.forms, 3))
    expected = np.asarray(jax.jit(model.apply)(params, batch)).argmax(-1)  # [T, N], all at once
    for row, (sentence, tags) in enumerate(zip(sentences, found, strict=True)):
        assert tags.tolist() == expected[: len(sentence.words), row].tolist()
        assert batch["sizes"][row].tolist() == [*map(len, sentence.words), 0, 0][:3]
    assert len({int(tag) for tags in found for tag in tags}) > 1
