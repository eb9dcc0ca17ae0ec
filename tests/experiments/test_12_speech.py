"""Files of sktime's format, and what is told of broken ones."""

import importlib

import numpy as np
import pytest

from experiments.common import DataError

speech = importlib.import_module("experiments.12_speech.run")


def write(path, rows):
    path.write_text("# words\n@problemName x\n@data\n" + "\n".join(rows) + "\n")
    return path


def utterance(frames, label, offset=0.0):
    channels = [",".join(str(offset + c + 100 * t) for t in range(frames)) for c in range(speech.CHANNELS)]
    return ":".join([*channels, str(label)])


def test_ragged_channels_become_padded_frames(tmp_path):
    part = speech.read_ts(write(tmp_path / "a.ts", [utterance(3, 2), utterance(5, 9, 0.5)]))
    assert part.xs.shape == (2, 5, 12) and part.lengths.tolist() == [3, 5] and part.labels.tolist() == [1, 8]
    np.testing.assert_allclose(part.xs[0, 2], np.arange(12) + 200)
    np.testing.assert_allclose(part.xs[1, 4], np.arange(12) + 400.5)
    assert not part.xs[0, 3:].any()
    scaled, _ = speech.standardised(part, part)
    frames = np.concatenate([scaled.xs[0, :3], scaled.xs[1]])
    np.testing.assert_allclose(frames.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(frames.std(0), 1, rtol=1e-5)
    assert not scaled.xs[0, 3:].any()


@pytest.mark.parametrize("row", ["1,2:3,4:1", utterance(3, "x"), utterance(2, 1).replace("0.0", "?", 1)])
def test_broken_line_is_told(tmp_path, row):
    with pytest.raises(DataError, match=r"a\.ts, line 5: needs"):
        speech.read_ts(write(tmp_path / "a.ts", [utterance(3, 2), row]))


def test_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr(speech.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install sktime, or --quick"):
        speech.bundled()
