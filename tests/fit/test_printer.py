"""What a training shows, from rows and from trainings."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from rnnjax.fit import Printer, fit

EVAL = {"kind": "eval", "step": 100, "epoch": 1, "loss": 0.25, "accuracy": 0.75, "best": True, "seconds": 30.0}
TRAIN = {"kind": "train", "step": 200, "epoch": 2, "progress": 0.25, "loss": 0.123456, "grad_norm": 1.5}
TRAIN |= {"grad_norm_max": 2.0, "lr": 0.01, "rmse": 0.4, "seconds": 75.0, "steps_per_second": 1234.5}
BACK = {"kind": "rollback", "step": 220, "to_step": 200, "lr_scale": 0.5, "reason": "an explosion", "seconds": 80.0}
DONE = {"kind": "done", "step": 800, "best_step": 100, "reason": "patience", "loss": 0.25, "seconds": 300.0}


def shown(*rows, terminal=False, **options):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    printer = Printer(console=console, **options)
    for row in rows:
        printer(row)
    assert printer.live is None or rows[-1]["kind"] != "done"
    return console.file.getvalue()


def test_lines_stay_and_the_log_has_more(tmp_path):
    text = shown(EVAL, TRAIN, BACK, DONE, log=tmp_path / "log", title="seed 3")
    assert [line.split() for line in text.splitlines()] == [
        "seed 3 0:30 step 100 loss 0.25 accuracy 0.75 best so far".split(),
        "seed 3 1:20 step 220 an explosion: back to step 200, learning rate times 0.5".split(),
        "seed 3 5:00 step 800 no new best for a while, done early, best at step 100: loss 0.25".split(),
    ]
    log = (tmp_path / "log").read_text().splitlines()
    assert len(log) == 4 and "loss 0.1235  rmse 0.4  gradient 1.500  lr 1.00e-02  1,234 steps/s" in log[1]


def test_a_terminal_sees_what_is_left():
    """A quarter took 75 seconds: three more are 225."""
    text = shown(EVAL, TRAIN | {"seconds": 75.0}, BACK, terminal=True)
    assert "25.0 %" in text and "3:45 left" in text and "1,234 steps/s" in text and "best at step 100" in text


def test_quiet_is_quiet(tmp_path):
    assert shown(EVAL, TRAIN, BACK, DONE, terminal=True, quiet=True, log=tmp_path / "log") == ""
    assert "accuracy 0.75" in (tmp_path / "log").read_text()


def test_fit_leaves_the_terminal_clean():
    """The cursor comes back, also where a training fails."""

    def loss_fn(params, batch, *, key):
        return jnp.sum(params**2)

    def train(evaluate):
        console = Console(file=io.StringIO(), force_terminal=True, width=120)
        printer = Printer(console=console)
        try:
            fit(loss_fn, np.ones(2), optax.sgd(0.1), lambda step: 0, steps=4, evaluate=evaluate, report=printer)
        finally:
            text = console.file.getvalue()
            assert printer.live is None and text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
        return text

    assert "done" in train(lambda params: float(jax.numpy.sum(params)))
    with pytest.raises(ZeroDivisionError):
        train(lambda params: 1 / 0)
