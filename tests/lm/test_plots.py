"""The picture of a training shows the rows it is given, readably."""

import json
import pathlib

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rnnjax.lm.plots import loss_curve, read_metrics


def make_rows(count: int = 300) -> list[dict]:
    noise = np.random.default_rng(0).standard_normal(count)
    rows = []
    for i in range(1, count + 1):
        position = {"step": 20 * i, "epoch": 0, "symbols": 40_000 * i}
        loss = 1.2 + 2.0 * i**-0.5
        train = {
            "loss": loss + 0.02 * noise[i - 1],
            "grad_norm": 0.4,
            "grad_norm_max": 0.9,
            "lr": 3e-3 * (1 - i / count),
        }
        rows.append({"kind": "train", **position, **train, "seconds": float(i)})
        if i % max(1, count // 10) == 0:
            rows.append({"kind": "eval", **position, "val_loss": loss + 0.3 * (i > 0.8 * count), "seconds": float(i)})
    rows.append({"kind": "rollback", "step": 120, "to_step": 100, "lr_scale": 0.5, "reason": "x", "seconds": 9.0})
    rows.append({"kind": "done", "step": 20 * count, "val_loss": 1.3, "test_loss": None})
    return rows


def line(figure: Figure, label: str) -> np.ndarray:
    (found,) = (line for line in figure.axes[0].lines if line.get_label() == label)
    return np.array(found.get_data())


def test_curves_are_the_rows() -> None:
    rows = make_rows()
    figure = loss_curve(rows, {"unigram": 3.1})
    train = [row for row in rows if row["kind"] == "train"]
    evals = [row for row in rows if row["kind"] == "eval"]
    np.testing.assert_array_equal(
        line(figure, "training"), np.array([(row["symbols"], row["loss"]) for row in train]).T
    )
    np.testing.assert_array_equal(
        line(figure, "validation"), np.array([(row["symbols"], row["val_loss"]) for row in evals]).T
    )
    smooth = line(figure, "training, smoothed")[1]
    exact = 1.2 + 2.0 * np.arange(1, 301) ** -0.5
    assert np.abs(smooth - exact)[100:].max() < 0.4 * np.abs(line(figure, "training")[1] - exact)[100:].max()
    (star,) = (line for line in figure.axes[0].lines if line.get_marker() == "*")
    best = min(evals, key=lambda row: row["val_loss"])
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (best["symbols"], best["val_loss"])
    assert [text.get_text() for text in figure.axes[0].texts] == [
        f"best 1.300 ({1.3 / np.log(2):.3f} bits)",  # of the whole validation text, as the row of the end says it
        "unigram 3.100",
    ]
    rolled_back = line(figure, "rolled back")[0]
    assert rolled_back.tolist() == [100 * 2000, 100 * 2000]


@pytest.mark.parametrize("count", [1, 2, 30, 300])
@pytest.mark.parametrize(
    "baselines",
    [{}, {"unigram": 3.1, "witten_bell": 1.5, "xz": 1.51}, {"a": 1.3, "b": 1.3, "xz": 1.3, "c": float("nan")}],
)
def test_labels_lie_apart_and_inside(count: int, baselines: dict[str, float]) -> None:
    figure = loss_curve(make_rows(count), baselines)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in figure.axes[0].texts]
    assert len(boxes) == 1 + sum(np.isfinite(value) for value in baselines.values())
    inside = figure.axes[0].get_window_extent()
    for i, box in enumerate(boxes):
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_without_evaluations() -> None:
    figure = loss_curve([row for row in make_rows() if row["kind"] == "train"], {"xz": 1.7})
    assert [text.get_text() for text in figure.axes[0].texts] == ["xz -9e 1.700"]


def test_without_training() -> None:
    with pytest.raises(ValueError, match="at least one of kind 'train'"):
        loss_curve([row for row in make_rows() if row["kind"] == "eval"], {})


def test_half_written_line_is_passed_over(tmp_path: pathlib.Path) -> None:
    rows = make_rows(5)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path = tmp_path / "metrics.jsonl"
    path.write_text(text, encoding="utf-8")
    assert read_metrics(path) == rows
    path.write_text(text + '{"kind": "train", "loss": 1.', encoding="utf-8")
    assert read_metrics(path) == rows
    path.write_text(text + "12", encoding="utf-8")
    assert read_metrics(path) == rows
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path / "none.jsonl")
