"""The problems: how each is drawn, scored and judged, what was published, and what of it is made smaller here."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.topologies import ManyToMany, binary_loss, mse_loss, softmax_loss

from . import grammars, lags, series
from .batch import Batch

__all__ = ["PROBLEMS", "Problem", "by_name"]

KINDS = {"class": softmax_loss, "set": binary_loss, "number": mse_loss}
Score = Callable[[ManyToMany, Any, Batch], jax.Array]


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        name: for the command line and files.
        title: for tables.
        kind: of the answers: a class, a set of classes, or numbers.
        sizes: numbers of an input, and of an answer.
        draw: ``(key, steps, batch) -> Batch``, for training.
        steps: T.
        test: ``(key, steps) -> Batch``, what is scored; steps is T of the training.
        score: one number of it.
        passes: what the score has to reach, at least or, with ``lower``, at most.
        blind: the score of who remembers nothing, or guesses; None where nobody would.
        asks: what the score is, and what of the published setting is made smaller; ``{length}`` is told by `question`.
        published: the setting and the result of the source; "" where it gives no number that compares.
        source: the paper.
        batch: B.
        updates: the budget.
        fixed: whether every update sees the same batch.
        full: T as published; None where it is the same.
        lengths: how the source says it, where that is not one number.
    """

    name: str
    title: str
    kind: str
    sizes: tuple[int, int]
    draw: Callable[..., Batch]
    steps: int
    test: Callable[[jax.Array, int], Batch]
    score: Score
    passes: float
    blind: float | None
    asks: str
    published: str
    source: str
    lower: bool = False
    batch: int = 16
    updates: int = 1000
    fixed: bool = False
    full: int | None = None
    lengths: str = ""

    def model(self, cell: Any) -> ManyToMany:
        """An affine readout of the cell at every step."""
        return ManyToMany(cell, self.sizes[1], input_size=self.sizes[0])

    def loss(self, model: ManyToMany, params: Any, batch: Batch) -> jax.Array:
        """The mean over what is asked."""
        outputs = model.apply(params, batch.xs)
        return KINDS[self.kind](outputs, batch.targets, mask=batch.asked)

    def length(self, full: bool = False) -> int:
        """T of a run."""
        return self.full or self.steps if full else self.steps

    def question(self, full: bool = False) -> str:
        """What is asked of a run, and how far it is shorter than what was published."""
        short = "" if full else f", not {self.lengths or self.full}"
        return self.asks.format(length=f"{self.length(full)}{short}")

    def reached(self, scores: Any) -> np.ndarray:
        """Whether scores pass; one that is not finite does not."""
        scores = np.asarray(scores)
        return scores <= self.passes if self.lower else scores >= self.passes


def by_class(model: ManyToMany, params: Any, batch: Batch) -> jax.Array:
    """The share of answers that are right."""
    right = model.apply(params, batch.xs).argmax(-1) == batch.targets
    return jnp.sum(right & batch.asked) / jnp.sum(batch.asked)


def sure(model: ManyToMany, params: Any, batch: Batch) -> jax.Array:
    """The least probability of a right last symbol."""
    last = jax.nn.softmax(model.apply(params, batch.xs)[-1])
    return jnp.min(jnp.take_along_axis(last, batch.targets[-1][:, None], 1))


def by_legal(model: ManyToMany, params: Any, batch: Batch) -> jax.Array:
    """Where the k symbols that may come are the k that are found likeliest, bool ``[T, B]``, with what is not asked."""
    outputs = model.apply(params, batch.xs)
    least = jnp.min(jnp.where(batch.legal, outputs, jnp.inf), -1)
    most = jnp.max(jnp.where(batch.legal, -jnp.inf, outputs), -1)
    return (least > most) | ~batch.asked


def strings(model: ManyToMany, params: Any, batch: Batch) -> jax.Array:
    """The share of strings without a mistake."""
    return by_legal(model, params, batch).all(0).mean()


def symbols(model: ManyToMany, params: Any, batch: Batch) -> jax.Array:
    """The share of symbols without a mistake."""
    return by_legal(model, params, batch).mean()


def longest(model: ManyToMany, params: Any, batch: Batch) -> jax.Array:
    """The largest n up to which all strings are right; row n - 1 holds that of n."""
    right = ((model.apply(params, batch.xs) > 0) == (batch.targets > 0.5)).all(-1) | ~batch.asked
    return jnp.sum(jnp.cumprod(right.all(0)))


def error(model: ManyToMany, params: Any, batch: Batch) -> jax.Array:
    """Mean squared error."""
    return mse_loss(model.apply(params, batch.xs), batch.targets, mask=batch.asked)


def nearest(kinds: int, model: ManyToMany, params: Any, batch: Batch) -> jax.Array:
    """The share of answers that are nearer to the right of equally spaced values than to another."""
    near = jnp.abs(model.apply(params, batch.xs) - batch.targets)[..., 0] < 1.0 / kinds
    return jnp.sum(near & batch.asked) / jnp.sum(batch.asked)


def valid_time(data: np.ndarray, unit: float, warm_up: int, model: ManyToMany, params: Any, batch: Batch) -> jax.Array:
    """For how long, in units of time, the model by itself stays within 0.4 standard deviations; mean over rows."""
    scale = jnp.asarray(np.diff(data, axis=0).std(0))
    rows = batch.xs.shape[1]
    state, outputs = model.advance(params, model.start(params, (rows,)), batch.xs[:warm_up])

    def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
        state, x = carry
        state, y = model.step(params, state, x)
        x = x + y * scale
        return (state, x), x

    first = batch.xs[warm_up - 1] + outputs[-1] * scale
    _, later = jax.lax.scan(step, (state, first), None, batch.xs.shape[0] - warm_up - 1)
    free = jnp.concatenate([first[None], later])
    errors = jnp.sqrt(jnp.mean((free - batch.xs[warm_up:]) ** 2, -1))
    return unit * jnp.mean(jnp.sum(jnp.cumprod(errors <= 0.4, axis=0), axis=0))


def _counted(key: jax.Array, steps: int, batch: int, *, letters: int) -> Batch:
    return grammars.counted(jax.random.randint(key, (batch,), 1, 11), letters, (steps - 1) // letters)


def _table() -> tuple[Problem, ...]:
    many = functools.partial
    reber = many(grammars.embedded_reber, continual=False)
    stream = many(grammars.embedded_reber, continual=True)
    two, three = ((0.1, 0.2), (0.5, 0.6)), ((0.1, 0.2), (0.33, 0.43), (0.66, 0.76))
    mackey, lorenz = series.mackey_glass(), series.lorenz()

    def drawn(draw: Callable[..., Batch], batch: int = 128, length: int = 0) -> Callable[[jax.Array, int], Batch]:
        return lambda key, steps: draw(key, length or steps, batch)  # as long as in training, if nothing is said

    def counting(letters: int, published: str) -> Problem:
        return Problem(
            "anbncn"[: 2 * letters], " ".join(f"{letter}^n" for letter in "abc"[:letters]), "set", (4, 4),
            many(_counted, letters=letters), 10 * letters + 1,
            lambda key, steps: grammars.counted(jnp.arange(1, 31), letters, 30), longest, 13, None,
            "largest n up to which all are right, of 30; trained with n = 1 to 10",
            f"trained with n = 1 to 10: LSTM with peepholes, {published}", "Gers & Schmidhuber 2001",
        )  # fmt: skip

    sums, products = many(lags.arithmetic, product=False), many(lags.arithmetic, product=True)
    first, second = many(lags.order, places=two), many(lags.order, places=three)
    noisy = many(lags.noisy_lag, least=50, distractors=10)
    classes = many(lags.two_sequences, informative=3)
    copy, selective = many(lags.copy, copied=5, kinds=8), many(lags.selective_copy, copied=4, kinds=8)
    delays = many(lags.spikes, shortest=10, kinds=10)
    hs97 = "Hochreiter & Schmidhuber 1997"
    return (
        Problem(
            "reber", "embedded Reber", "class", (7, 7), reber, 40, drawn(reber), strings, 1.0, 0.0,
            "share of 128 strings without a mistake: all",
            "LSTM, 3 to 4 blocks: 100 % of trials, after 8,440 strings in the best setting; Elman networks: none",
            f"{hs97}, experiment 1; Cleeremans et al. 1989",
        ),
        Problem(
            "continual_reber", "continual Reber", "class", (7, 7), stream, 60, drawn(stream, 16, 300), symbols, 0.999,
            None, "share of the symbols of 16 streams of 300 without a mistake; streams of 60 in training, not endless",
            "free of mistakes for 10^6 symbols: LSTM with forget gates 18 % of trials, with a falling rate 62 %, "
            "without forget gates none", "Gers, Schmidhuber & Cummins 2000",
        ),
        Problem(
            "adding", "adding", "number", (2, 1), sums, 50, drawn(sums), error, 0.01, 1 / 6,
            "mean squared error; T = {length}", "T = 100: LSTM, after 74,000 sequences",
            f"{hs97}, experiment 4", lower=True, full=100,
        ),
        Problem(
            "multiplication", "multiplication", "number", (2, 1), products, 50, drawn(products), error, 0.005,
            7 / 144, "mean squared error; T = {length}", "T = 100: LSTM, error 0.0223 after 482,000 sequences",
            f"{hs97}, experiment 5", lower=True, full=100,
        ),
        Problem(
            "order_2", "temporal order, 2", "class", (8, 4), first, 50, drawn(first, 256), by_class, 0.99, 0.25,
            "share of 256 right; T = {length}", "T = 100 to 110: LSTM, after 31,390 sequences",
            f"{hs97}, experiment 6a", full=105, lengths="100 to 110",
        ),
        Problem(
            "order_3", "temporal order, 3", "class", (8, 8), second, 50, drawn(second, 256), by_class, 0.99, 0.125,
            "share of 256 right; T = {length}", "T = 100 to 110: LSTM, after 571,100 sequences",
            f"{hs97}, experiment 6b", full=105, lengths="100 to 110",
        ),
        Problem(
            "lag", "time lag 100", "class", (101, 101), lags.lag, 100, drawn(lags.lag), sure, 0.75, 0.5,
            "probability of the right last symbol, for both sequences",
            "p = 100: LSTM in every trial, after 5,040 sequences; BPTT and RTRL in none",
            f"{hs97}, experiment 2a", fixed=True, updates=2500,
        ),
        Problem(
            "noisy_lag", "noisy time lag", "class", (14, 2), noisy, 80, drawn(noisy, 256), by_class, 0.99, 0.5,
            "share of 256 right; lag of at least 50, 10 distractors in the place of 50",
            "50 distractors, lag of at least 50: LSTM, after 30,000 sequences", f"{hs97}, experiment 2c",
        ),
        Problem(
            "two_sequences", "two sequences", "class", (1, 2), classes, 100, drawn(classes, 256), by_class, 0.99,
            0.5, "share of 256 right; T = 100, three informative steps", "LSTM, after 27,380 sequences",
            f"{hs97}, experiment 3a; Bengio et al. 1994",
        ),
        counting(2, "in the mean to n = 118, at best to 1,000"),
        counting(3, "in the mean to n = 28, at best to 52"),
        Problem(
            "spikes", "timing of spikes", "number", (1, 1), delays, 80, drawn(delays), many(nearest, 10), 0.95, 0.1,
            "share of delays of 10 to 19 steps that are told right", "", "Gers, Schraudolph & Schmidhuber 2002",
        ),
        Problem(
            "waveform", "waveform", "number", (1, 1), series.waveform, 100, drawn(series.waveform, 1), error, 0.1,
            1.0, "normalised squared error of samples made without input; T = {length}",
            "320 samples of speech and music", "Koutnik et al. 2014", lower=True, batch=1, fixed=True, full=320,
        ),
        Problem(
            "mackey_glass", "Mackey-Glass", "number", (1, 1), many(series.chaos, series=mackey, low=0, high=4500), 100,
            lambda key, steps: series.chaos(key, 400, 16, series=mackey, low=4500, high=6000),
            many(valid_time, mackey, 1.0, 100), 84.0, None,
            "valid prediction time in units of time (tau = 17), of 300 at most, within 0.4 standard deviations",
            "84 steps ahead is the usual test", "Mackey & Glass 1977; Jaeger & Haas 2004",
        ),
        Problem(
            "lorenz", "Lorenz", "number", (3, 3), many(series.chaos, series=lorenz, low=0, high=4500), 100,
            lambda key, steps: series.chaos(key, 250, 16, series=lorenz, low=4500, high=6000),
            many(valid_time, lorenz, 0.9056 * series.LORENZ_STEP, 100), 2.0, None,
            "valid prediction time in Lyapunov times, of 6.8 at most, within 0.4 standard deviations", "",
            "Lorenz 1963; Vlachas et al. 2020",
        ),
        Problem(
            "parity", "parity", "class", (1, 2), lags.parity, 20, drawn(lags.parity, length=40), by_class, 0.99, 0.5,
            "share of answers that are right over 40 bits, after training with 20", "",
            "Minsky & Papert 1969; Grazzi et al. 2025",
        ),
        Problem(
            "copy", "copy", "class", (10, 8), copy, 20, drawn(copy), by_class, 0.99, 0.125,
            "share of symbols that are right; 5 of 8 kinds, not 10, after a gap of {length}",
            "", f"{hs97}; Arjovsky et al. 2016", full=100, lengths="100 and more",
        ),
        Problem(
            "selective_copy", "selective copy", "class", (10, 8), selective, 28, drawn(selective), by_class, 0.99,
            0.125, "share of symbols that are right; 4 of 8 kinds among 24 blanks, not 16 of 16 in 4,096 steps",
            "two layers: selective SSM (Mamba) 99.8 %, S4 18.3 %", "Jing et al. 2019; Gu & Dao 2023",
        ),
        Problem(
            "flip_flop", "flip-flop, 3 bits", "number", (3, 3), lags.flip_flop, 50, drawn(lags.flip_flop, length=100),
            error, 0.02, None, "mean squared error over 100 steps, after training with 50", "", "Sussillo & Barak 2013",
            lower=True,
        ),
        Problem(
            "digits", "digits by pixel", "class", (1, 10), many(series.digits, test=False), 64,
            lambda key, steps: series.digits(key, 64, 360, test=True), by_class, 0.9, 0.1,
            "share of 360 test images that are right; 8 x 8 pixels, not 28 x 28",
            "28 x 28: IRNN 97 %, LSTM 98.2 %", "Le et al. 2015; Arjovsky et al. 2016", batch=32,
        ),
    )  # fmt: skip


PROBLEMS = _table()


def by_name(name: str) -> Problem:
    """A problem by its name.

    Raises:
        ValueError: if none is called so.
    """
    for problem in PROBLEMS:
        if problem.name == name:
            return problem
    raise ValueError(f"--problem: none is called {name!r}; known: {', '.join(one.name for one in PROBLEMS)}.")
