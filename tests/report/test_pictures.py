"""The static pictures that go with a page hold the numbers they were given."""

import numpy as np
import pytest

from rnnjax.analysis.unit_plots import SEQUENTIAL, plot_losses, shade_of
from rnnjax.lm.plots import compare_losses, gradient_curves


def rows(scale=1.0):
    train = [
        {"kind": "train", "symbols": 100 * k, "grad_norm": 1 / k, "grad_norm_max": 3 / k, "clip_rate": 0.5 / k}
        for k in range(1, 6)
    ]
    losses = (2.0 * scale, 1.5 * scale, float("nan"), 1.75 * scale)
    evals = [
        {"kind": "eval", "symbols": 100 * k, "seconds": 7.0 * k, "val_loss": loss} for k, loss in enumerate(losses, 1)
    ]
    return [*train, *evals]


def lines(axes):
    return {line.get_label(): np.array(line.get_data()) for line in axes.lines}


def test_gradient_norms_and_clip_rate():
    norms, clipped = gradient_curves(rows(), clip=0.8).axes
    found = lines(norms)
    seen = np.arange(1, 6)
    np.testing.assert_allclose(found["mean"], [100 * seen, 1 / seen])
    np.testing.assert_allclose(found["largest"], [100 * seen, 3 / seen])
    np.testing.assert_allclose(found["clipped at 0.8"][1], 0.8)
    np.testing.assert_allclose(lines(clipped)["clip rate"], [100 * seen, 50 / seen])
    assert "clipped at 0.8" not in lines(gradient_curves(rows()).axes[0])
    with pytest.raises(ValueError, match="of kind 'train', got none"):
        gradient_curves(rows()[5:])


def test_losses_of_several_runs():
    found = lines(compare_losses({"a": rows(), "b": rows(2.0)}).axes[0])
    np.testing.assert_allclose(found["a 1.500 (2.164 bits)"], [[100, 200, 400], [2.0, 1.5, 1.75]])
    np.testing.assert_allclose(found["b 3.000 (4.328 bits)"][1], [4.0, 3.0, 3.5])
    over = lines(compare_losses({"a": rows()}, over="seconds").axes[0])
    np.testing.assert_allclose(over["a 1.500 (2.164 bits)"][0], [7, 14, 28])
    for runs, more, message in (
        ({}, {}, "at least one run"),
        ({"a": rows()[:5]}, {}, "run 'a' must hold"),
        ({"a": rows()}, {"over": "days"}, "'symbols' or 'seconds'"),
    ):
        with pytest.raises(ValueError, match=message):
            compare_losses(runs, **more)


def test_losses_colour_a_text():
    text = "ab\n<$" * 4
    losses = np.tile([0.0, 1.0, 2.0, 4.0, 9.0], 4)
    losses[0] = np.nan
    axes = plot_losses(text, losses, title="run", most=4.0, columns=10).axes[0]
    page = axes.images[0].get_array()
    expected = np.array([SEQUENTIAL[k] for k in (0, 1, 2)])  # 0, 1 and 2 of at most 4 nats: three of the five stops
    np.testing.assert_array_equal(page[0, :3], expected)
    np.testing.assert_array_equal(page[1, :2], [SEQUENTIAL[4]] * 2)
    assert axes.get_title() == "run  white 0, darkest 4 nats" and page.shape[0] == 5
    assert [shown.get_text() for shown in axes.texts[:2]] == ["a", "b"]
    darkness = [sum(shade_of(share)) for share in np.linspace(0, 1, 50)]
    assert darkness == sorted(darkness, reverse=True)
    with pytest.raises(ValueError, match="one loss a character"):
        plot_losses("abc", losses)
