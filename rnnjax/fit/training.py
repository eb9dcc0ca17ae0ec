r"""`fit`: trains any loss with any optax optimizer, with evaluations, early stopping, checkpoints and exact resume."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from rnnjax.checks import check_choice, check_key, check_optimizer, check_real, check_size
from rnnjax.data.shuffled import ShuffledBatches
from rnnjax.fit.any_loss import EVAL_NAMES, Feed, FitTask, as_function, check_loss
from rnnjax.fit.devices import check_mesh
from rnnjax.fit.loop import Loop, Plan, Report
from rnnjax.fit.progress import Outcome, Place
from rnnjax.online import Cut, Lookback
from rnnjax.online.across import AnyBorder, check_border
from rnnjax.update import check_arrays, check_trainable

__all__ = ["fit"]


def fit(
    loss_fn: Callable[..., Any],
    params: Any,
    optimizer: optax.GradientTransformation,
    batches: Callable[[int], Any] | Iterable[Any],
    *,
    steps: int | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    state: Any = None,
    border: AnyBorder = Cut(),  # noqa: B008  (a frozen value)
    evaluate: Callable[[Any], Any] | None = None,
    monitor: str = "loss",
    mode: str = "min",
    evals: int = 10,
    patience: int = 0,
    log_every: int = 20,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
    batch_spec: Any = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    learning_rate: Callable[[Place], float] | None = None,
    explosion: float | None = None,
    report: Report = lambda row: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    r"""Trains until the budget is used up, and returns the parameters of the best evaluation.

    Update n = 0, 1, ... is what one would write by hand:

        loss, grads = value_and_grad(loss_fn)(params, batches(n), key=fold_in(key, n))
        params     <- params + optimizer(grads)

    With ``state``, the loss takes it and returns the next one; it is carried from update to update, and no gradient
    follows it back (truncated backpropagation through time) but the one that ``border`` sends.

    A loss or gradient that is not finite, or an interval of ``log_every`` updates whose mean loss explodes, rolls the
    training back to the last good interval (the next time to the last evaluation) and halves the learning rate, or
    every update, which is the same. Everything else depends on the step alone, so a training in a ``folder`` that is
    interrupted and resumed ends in the same bits as one that was not; a budget of minutes alone follows the clock.

    The compiled update is kept for this ``loss_fn`` and ``optimizer``: pass the same objects again, for other seeds
    for example, and nothing is compiled again. Both must be pure functions of their arguments.

    Args:
        loss_fn: ``(params, batch, *, key) -> loss``, or ``(loss, metrics)`` with a dict of scalars that go into the
            lines of metrics. With ``state``: ``(params, state, batch, *, key) -> (loss, state)``, or with the metrics
            as a third. It has to hand ``key`` on to `unroll` or to a model's ``apply``: without one, networks drop
            nothing, whatever their rates.
        params: any pytree of arrays; they are copied.
        optimizer: any optax optimizer; one that asks for it gets ``value``, ``grad`` and ``value_fn`` too.
        batches: step -> a pytree of arrays, see `ShuffledBatches`; must give the same batch for the same step. Or any
            iterable of batches: one that can be read again (a list, a data loader) is, epoch after epoch; where an
            iterator or generator ends, the training does. Only a function of the step resumes and rolls back exactly.
        steps: the budget: updates. Exactly one of the three is given.
        epochs: the budget: passes through the data; needs ``batches.steps_per_epoch``, or an iterable with a length.
        minutes: the budget: wall-clock time, everything included.
        state: carried from update to update, through the ends of epochs; None for a loss that has none.
        border: what crosses from a batch to the next, see `rnnjax.tbptt`; needs ``state``, and batches whose arrays
            have time as the first axis, of one length. Its trace is a part of every checkpoint.
        evaluate: ``params -> {"name": number}``, or one number, which is called ``loss``.
        monitor: the metric that says which parameters are best.
        mode: ``"min"`` or ``"max"``: where of the monitored metric the best is.
        evals: how often to evaluate and save, spread evenly over the budget, the last time at its end.
        patience: stop after so many evaluations without a new best; 0 never stops early.
        log_every: updates between lines of metrics; explosions are looked for as often, and ``should_stop`` is asked.
        key: for a random loss; None is ``jax.random.key(0)``.
        mesh: devices along one axis that share every batch in equal parts, those of other processes besides; the loss
            and its metrics must then be means over the batch. Every part draws from a key of its own, so a random loss
            depends on the number of devices. The first axis of every array of ``state`` are the rows. Where there are
            several processes (`jax.distributed`), each calls `fit` with the same arguments; process 0 evaluates for
            all that differs, and writes the folder, which all see.
        batch_spec: where the rows are in the arrays of a batch: a `jax.sharding.PartitionSpec`, or a tree of them that
            the batch begins with; None: they are the first axis of all.
        folder: where to keep ``metrics.jsonl`` and the newest and the best checkpoint; None keeps all in memory. One
            process owns it as long as it trains.
        resume: go on from the newest checkpoint of the folder, or start if there is none; only the budget and how
            often one looks may differ from before.
        learning_rate: `Place` -> the learning rate, for an optimizer with that hyperparameter, as
            ``optax.inject_hyperparams(optax.adam)(learning_rate=0.0)``; `OptimizerOptions` makes both; None leaves it
            to the optimizer.
        explosion: a mean loss of an interval above this counts as an explosion. None: more than 3 times
            ``max(1, |first|, first - lowest)`` above the first loss. ``math.inf``: only what is not finite.
        report: gets every row as it comes: ``compiling`` and ``compiled`` around the first update, ``train``,
            ``eval``, ``rollback``, ``checkpoint``, ``note`` and ``done``; see `Printer`. A context manager is entered
            and left.
        should_stop: True saves a checkpoint and returns.

    Returns:
        `Outcome`: ``params`` of the best evaluation, with its ``metrics`` and ``best_step``; ``reason`` and ``step`` of
        the end, ``history`` of evaluations, ``seconds``, and the carried ``state``.

    Raises:
        ValueError: for none or several budgets, numbers out of range, a monitored metric that is missing, a loss that
            is no scalar, or a folder that holds another run or is shared by processes of `jax.distributed`.
        TypeError: if ``loss_fn`` takes no ``key``, or an argument is of another kind.
        CheckpointError: if a checkpoint cannot be written or read, or another process trains in the folder.
        TrainingFailedError: if the loss exploded `MAX_ROLLBACKS` times in a row.

    >>> import jax, jax.numpy as jnp, numpy as np, optax
    >>> from rnnjax.data import ShuffledBatches
    >>> x = np.linspace(-1, 1, 64, dtype=np.float32)
    >>> def loss_fn(params, batch, *, key):
    ...     return jnp.mean((params["a"] * batch["x"] + params["b"] - batch["y"]) ** 2)
    >>> batches = ShuffledBatches({"x": x, "y": 2 * x + 1}, batch_size=16, key=jax.random.key(0))
    >>> params = {"a": jnp.zeros(()), "b": jnp.zeros(())}
    >>> outcome = fit(loss_fn, params, optax.sgd(0.3), batches, epochs=20)
    >>> outcome.reason, outcome.step, round(float(outcome.params["a"]), 2)
    ('budget', 80, 2.0)
    """
    check_loss(loss_fn)
    check_optimizer("fit", optimizer)
    check_arrays("fit", params=params, state=state)
    check_trainable("fit", params)
    if key is not None:
        check_key("fit", key)
    batches = as_function(batches)
    plan = Plan(
        steps=_steps(steps, epochs, minutes, batches),
        minutes=minutes,
        evals=check_size("fit", "evals", evals),
        patience=check_size("fit", "patience", patience, least=0),
        log_every=check_size("fit", "log_every", log_every),
    )
    check_choice("fit", "mode", mode, ("min", "max"))
    if patience and evaluate is None:
        raise ValueError(
            f"fit: patience counts evaluations, got {patience} without evaluate; pass evaluate=, or patience=0."
        )
    check_border("fit", border)
    if not isinstance(border, Cut) and state is None:
        raise ValueError(f"fit: border={border!r:.60} needs a state that is carried, got state=None; pass the first.")
    if resume and folder is None:
        raise ValueError("fit: resume goes on with the run of a folder, got folder=None; name the folder.")
    mesh, crew = check_mesh("fit", mesh)
    if mesh is not None and not isinstance(border, Cut):
        raise ValueError(f"fit: border={border!r:.60} goes with one device, got a mesh of {mesh.size}; leave it out.")
    random_key = jax.random.key(0) if key is None else key
    name = repr(border) if isinstance(border, Lookback) else type(border).__name__
    task = FitTask(
        loss_fn=loss_fn,
        params=params,
        optimizer=optimizer,
        batches=batches,
        state=state,
        measure=evaluate,
        monitor=monitor,
        mode=mode,
        key=random_key,
        learning_rate=learning_rate,
        limit=explosion,
        border=border,
        mesh=mesh,
        batch_spec=PartitionSpec(*mesh.axis_names) if mesh is not None and batch_spec is None else batch_spec,
        crew=crew,
        steps_per_epoch=getattr(batches, "steps_per_epoch", None),
        programs=len(getattr(batches, "boundaries", ())) or 1,
        identity={
            "key": np.asarray(jax.random.key_data(random_key)).tolist(),
            "monitor": f"{mode} {monitor}",
            "batches": repr(batches) if isinstance(batches, ShuffledBatches) else getattr(batches, "identity", ""),
            **({} if isinstance(border, Cut) else {"border": name}),
        },
    )
    root = None if folder is None else pathlib.Path(folder)
    if root is not None:
        crew.by_lead(lambda: _check_folder(root, resume, crew.count > 1))
    with contextlib.ExitStack() as stack:
        if isinstance(report, contextlib.AbstractContextManager):
            stack.enter_context(report)
        loop = Loop(task, plan, root, report)
        stack.enter_context(loop.owned())
        if resume and isinstance(batches, Feed):
            text = "batches of an iterable begin anew: only those of a function of the step go on as they would have"
            report({"kind": "note", "step": 0, "text": text})
        reason = loop.run(resume, should_stop)
        found, best_step = loop.best()
        rows = [row for row in loop.history if row["step"] == best_step]
        metrics = {k: v for k, v in rows[-1].items() if k not in EVAL_NAMES} if rows else {}
        loop.done(reason, best_step, metrics)
    return Outcome(
        params=found,
        reason=reason,
        step=loop.progress.step,
        best_step=best_step,
        metrics=metrics,
        history=loop.history,
        seconds=loop.seconds(),
        state=loop.carry.state if isinstance(border, Cut) else loop.carry.state.state,
    )


def _steps(steps: int | None, epochs: float | None, minutes: float | None, batches: Any) -> int | None:
    """The budget in updates, None where it is the clock's."""
    given = {name: v for name, v in (("steps", steps), ("epochs", epochs), ("minutes", minutes)) if v is not None}
    if len(given) != 1:
        what = " and ".join(given) or "none"
        raise ValueError(f"fit: give exactly one of steps, epochs and minutes as the budget, got {what}.")
    ((name, value),) = given.items()
    check_real("fit", name, value, above=0.0)
    if epochs is None:
        return None if steps is None else check_size("fit", "steps", steps)
    if not (steps_per_epoch := getattr(batches, "steps_per_epoch", None)):
        raise ValueError(
            "fit: epochs needs batches with steps_per_epoch, as ShuffledBatches, or an iterable with a length; pass "
            "steps instead."
        )
    return max(1, round(epochs * steps_per_epoch))


def _check_folder(folder: pathlib.Path, resume: bool, several: bool) -> None:
    if jax.process_count() > 1 and not several:
        raise ValueError(
            f"fit: a folder is written by one process, got one of {jax.process_count()} under jax.distributed, which "
            "would all write the same files; pass a mesh of all their devices."
        )
    metrics = folder / "metrics.jsonl"
    if not resume and metrics.exists() and metrics.stat().st_size:
        raise ValueError(f"fit: {folder} holds the metrics of another training; resume, or take another folder.")
