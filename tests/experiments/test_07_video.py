"""Clips against what their frames show, the scores against loops, and memory that must not be there."""

import importlib

import jax
import numpy as np
import pytest

from experiments.idx_files import Digits

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
clips = importlib.import_module("experiments.07_video.clips")
model = importlib.import_module("experiments.07_video.model")
run = importlib.import_module("experiments.07_video.run")

# Every kind of digit is one full square of its own brightness.
SQUARES = Digits(np.stack([np.full((8, 8), 20 * (k + 1), np.uint8) for k in range(10)]), np.arange(10, dtype=np.uint8))


def test_labels_say_what_the_frames_show():
    made = clips.make_clips(np.random.default_rng(0), SQUARES, 9, 60)
    assert set(made.present.any(axis=0).sum(axis=-1)) == {1, 2}
    for clip in range(60):
        kinds = np.flatnonzero(made.present[:, clip].any(axis=0))
        for kind in kinds:
            seen = made.present[:, clip, kind]
            if (made.present[:, clip] & (np.arange(10) > kind)).any():
                continue  # something brighter lies above it
            corners = {}
            for t in np.flatnonzero(seen):
                rows, columns = np.nonzero(np.isclose(made.frames[t, clip] * 255, 20 * (kind + 1), atol=1e-3))
                corners[t] = np.array([rows.min(), columns.min()])
                assert len(rows) == 64
            for t in range(9):
                if t in corners and t - 1 in corners:
                    step = clips.MOVES[made.moves[t, clip, kind]]
                    np.testing.assert_array_equal(corners[t], corners[t - 1] + step)
                else:
                    assert made.moves[t, clip, kind] == clips.UNKNOWN
        assert (made.frames[:, clip].any(axis=(1, 2)) == made.present[:, clip].any(axis=-1)).all()


def test_parts_share_no_image():
    digits = clips.bundled()
    assert digits.images.shape == (1797, 8, 8) and digits.images.max() == 255
    marked = Digits(np.arange(len(digits.labels)), digits.labels)
    parts = clips.split(marked, (0.7, 0.1))
    assert [len(part.labels) for part in parts] == [1258, 180, 359]
    assert sorted(np.concatenate([part.images for part in parts])) == list(range(1797))
    assert all((part.labels == digits.labels[part.images]).all() for part in parts)


@pytest.mark.parametrize("network", ["conv_lstm", "lstm"])
def test_only_with_memory_an_answer_knows_of_earlier_frames(network):
    frames = np.random.default_rng(1).random((3, 1, 16, 16)).astype(np.float32)
    other = frames.copy()
    other[0] = 0
    for memory in (True, False):
        tagger = model.FrameTagger(network, channels=2, hidden_size=3, memory=memory)
        apply = jax.jit(tagger.apply)
        params = tagger.init(jax.random.key(0))
        a, b = apply(params, frames), apply(params, other)
        assert not np.allclose(a.present[0], b.present[0])
        assert np.allclose(a.moves[2], b.moves[2], atol=1e-7) is not memory


def test_scores_against_a_loop():
    rng = np.random.default_rng(2)
    present = rng.random((4, 3, 10)) < 0.2
    moves = np.where(present & (rng.random(present.shape) < 0.7), rng.integers(0, 4, present.shape), clips.UNKNOWN)
    answer = model.Answer(
        np.where(rng.random(present.shape) < 0.05, -1.0, 1.0) * (2 * present - 1.0), rng.normal(size=(4, 3, 10, 4))
    )
    answer.moves[rng.random(present.shape) < 0.6] = 0
    digits = frames = right = known = hits = named = 0
    for t in range(4):
        for b in range(3):
            wanted = {k for k in range(10) if present[t, b, k]}
            given = {k for k in range(10) if answer.present[t, b, k] > 0}
            hits, named = hits + len(wanted & given), named + len(wanted) + len(given)
            arrows = [k for k in range(10) if moves[t, b, k] >= 0]
            good = [k for k in arrows if int(np.argmax(answer.moves[t, b, k])) == moves[t, b, k]]
            right, known = right + len(good), known + len(arrows)
            digits += wanted == given
            frames += wanted == given and good == arrows
    scores = model.judge(answer, present, moves)
    want = {"digits": digits / 12, "f1": 2 * hits / named, "moves": right / known, "frames": frames / 12}
    assert scores == pytest.approx(want)
    assert 0 < scores["frames"] < scores["digits"] < 1 and 0 < scores["moves"] < 1


def test_words_of_a_frame():
    present, moves = np.zeros(10, bool), np.full(10, clips.UNKNOWN)
    assert run.words(present, moves) == "-"
    present[[3, 7]], moves[7] = True, 2
    assert run.words(present, moves) == "3· 7↑"
    assert dict(zip(run.ARROWS, clips.MOVES.tolist())) == {"←": [0, -1], "→": [0, 1], "↑": [-1, 0], "↓": [1, 0]}
