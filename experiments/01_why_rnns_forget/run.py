"""Why do recurrent networks forget? One task at growing lag, and the gradient that has to cross it.

python -m experiments.01_why_rnns_forget.run [--quick] [--out FOLDER]
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments import common
from rnnjax.analysis import gradient_flow, gradient_lost, lyapunov_spectrum, record, recurrent_bound

HERE = pathlib.Path(__file__).resolve().parent
SYMBOLS, HIDDEN, BATCH = 4, 32, 32
CELLS = {"Elman": rnnjax.Elman(HIDDEN), "LSTM": rnnjax.LSTM(HIDDEN), "GRU": rnnjax.GRU(HIDDEN)}
KEEP = {"LSTM": "f", "GRU": "z"}  # the gate that multiplies the old state
EXPLODING = rnnjax.Elman(HIDDEN, recurrent_init=rnnjax.initializers.Orthogonal(1.5))
CHUNK = 25


class Settings(NamedTuple):
    """How long everything takes."""

    lags: tuple[int, ...] = (10, 30, 100)
    seeds: int = 3
    steps: int = 1000
    exploding_lag: int = 20
    exploding_steps: int = 600
    seed: int = 0


QUICK = Settings(lags=(4, 8), seeds=1, steps=20, exploding_lag=8, exploding_steps=10)


class Params(NamedTuple):
    """The network: a cell and an affine readout."""

    cell: Any
    w_out: jax.Array  # [H, SYMBOLS]
    b_out: jax.Array  # [SYMBOLS]


def init(cell, key):
    key_cell, key_out = jax.random.split(key)
    w_out = rnnjax.initializers.Glorot()(key_out, (HIDDEN, SYMBOLS))
    return Params(cell.init(key_cell, SYMBOLS + 1), w_out, jnp.zeros(SYMBOLS))


def draw(key, lag, batch=BATCH):
    """A symbol at step 0, noise ever since, and the question at the end: which symbol was it?"""
    key_symbol, key_noise = jax.random.split(key)
    symbol = jax.random.randint(key_symbol, (batch,), 0, SYMBOLS)
    noise = jax.random.normal(key_noise, (lag + 1, batch, 1))
    first = jax.nn.one_hot(symbol, SYMBOLS)[None]
    return jnp.concatenate([jnp.concatenate([first, jnp.zeros((lag, batch, SYMBOLS))]), noise], axis=-1), symbol


def losses_of(params, symbol):
    """Every step's loss if the question came there: ``ys [T, B, H]`` to ``[T, B]``."""

    def losses(ys):
        logits = ys @ params.w_out + params.b_out
        labels = jnp.broadcast_to(symbol, logits.shape[:-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    return losses


def train(cell, params, keys, lag, optimizer):
    """``len(keys)`` updates in one program: the parameters, and loss, accuracy and gradient norm of each."""

    def loss_fn(params, xs, symbol):
        _, ys = rnnjax.unroll(cell, params.cell, cell.initial_state((BATCH,)), xs)
        logits = ys[-1] @ params.w_out + params.b_out
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, symbol).mean()
        return loss, jnp.mean(logits.argmax(-1) == symbol)

    def update(carry, key):
        (loss, accuracy), gradient = jax.value_and_grad(loss_fn, has_aux=True)(carry[0], *draw(key, lag))
        updates, opt_state = optimizer.update(gradient, carry[1])
        return (optax.apply_updates(carry[0], updates), opt_state), (loss, accuracy, optax.tree.norm(gradient))

    (params, _), history = jax.lax.scan(update, (params, optimizer.init(params)), keys)
    return params, history


def train_seeds(cell, lag, settings, optimizer, steps):
    """Networks before and after, and their histories ``[seeds, steps]``; all seeds in one program."""
    key_init, key_data = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), lag))
    before = jax.vmap(lambda key: init(cell, key))(jax.random.split(key_init, settings.seeds))
    keys = jax.random.split(key_data, (settings.seeds, steps))
    after, history = jax.jit(jax.vmap(lambda p, k: train(cell, p, k, lag, optimizer)))(before, keys)
    return before, after, [np.asarray(values) for values in history]


def look_inside(cell, params, lag):
    """Gradient by lag, forget gates, leading exponent and what a cut would lose, of one network on new sequences."""
    xs, symbol = draw(jax.random.key(1000 + lag), lag)
    state = cell.initial_state((BATCH,))
    flow = gradient_flow(cell, params.cell, state, xs, losses_of(params, symbol), times=[lag], chunk_len=CHUNK)

    def at_the_end(ys):  # the loss of the task: the last step's alone
        return losses_of(params, symbol)(ys) * (jnp.arange(lag + 1) == lag)[:, None]

    found = {
        "gradient_by_lag": flow.norm.tolist(),
        "reaches_the_symbol": float(flow.typical[-1] / max(flow.typical[0], 1e-300)),
        "leading_exponent": float(
            lyapunov_spectrum(cell, params.cell, state, xs, num_exponents=1, warmup=lag // 4).exponents[0]
        ),
        "lost_to_chunks": gradient_lost(cell, params.cell, state, xs, at_the_end, chunk_len=CHUNK).share,
    }
    if isinstance(cell, rnnjax.Elman):
        found["bound"] = recurrent_bound(cell, params.cell).bound
    name = next((name for name, one in CELLS.items() if one == cell), None)
    if name in KEEP:
        leaf = f"L1.{KEEP[name]}"
        gates = np.asarray(record(cell, params.cell, state, xs, select=[leaf])[1][leaf])  # [T, B, H]
        found["forget_gate_quantiles"] = np.quantile(gates, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
        # What the best unit keeps over k steps, all gates multiplied: the memory's own path for the gradient.
        logs = np.cumsum(np.log(np.maximum(gates[::-1], 1e-30)), axis=0).mean(axis=1)  # [T, H]
        found["kept_by_gates"] = np.exp(logs.max(axis=1)).tolist()
    return found


def explode(settings):
    """The same task for a network that starts beyond the edge, with plain gradient descent, clipped and not."""
    found = {}
    for name, clip in (("unclipped", optax.identity()), ("clipped at 1", optax.clip_by_global_norm(1.0))):
        optimizer = optax.chain(clip, optax.sgd(0.1))
        arguments = (EXPLODING, settings.exploding_lag, settings, optimizer, settings.exploding_steps)
        before, _, (loss, accuracy, norm) = train_seeds(*arguments)
        found[name] = {
            "loss": loss.tolist(),
            "gradient_norm": norm.tolist(),
            "last_loss": [float(np.mean(row[-20:])) for row in loss],
            "largest_loss": [float(np.max(row)) for row in loss],
            "last_accuracy": [float(np.mean(row[-20:])) for row in accuracy],
            "largest_gradient_norm": [float(np.max(row)) for row in norm],
        }
    found["at the start"] = look_inside(EXPLODING, jax.tree.map(lambda leaf: leaf[0], before), settings.exploding_lag)
    return found


def relative_line(axes, values, first, **look):
    """Values of lags 1, 2, .. relative to one number; zeros and what is far below the axis stay at its edge."""
    axes.plot(np.arange(1, len(values) + 1), np.maximum(np.array(values) / first, 1e-16), **look)


def picture(result):
    from matplotlib.figure import Figure

    colors = {"Elman": "#D55E00", "LSTM": "#0072B2", "GRU": "#009E73"}
    figure = Figure(figsize=(13, 7.5), dpi=110, layout="constrained")
    (before, after, learned), (gates, loss, norm) = figure.subplots(2, 3)
    longest = str(max(map(int, result["runs"]["Elman"])))
    for name, runs in result["runs"].items():
        color = colors[name]
        for axes, when in ((before, "before"), (after, "after")):
            for seed, found in enumerate(runs[longest][when]):
                look = {"alpha": 0.35} if seed else {"label": name}
                relative_line(axes, found["gradient_by_lag"], found["gradient_by_lag"][0], color=color, **look)
            if name in KEEP:
                look = {"linestyle": "--", "linewidth": 1, "label": f"{name}, product of the gates (best unit)"}
                relative_line(axes, runs[longest][when][0]["kept_by_gates"], 1, color=color, **look)
        lags = sorted(map(int, runs))
        learned.plot(lags, [np.mean(runs[str(lag)]["accuracy"]) for lag in lags], "o-", color=color, label=name)
        for lag in lags:
            learned.plot([lag] * len(runs[str(lag)]["accuracy"]), runs[str(lag)]["accuracy"], ".", color=color)
        if name in KEEP:
            for when, style in (("before", ":"), ("after", "-")):
                quantiles = np.array([runs[str(lag)][when][0]["forget_gate_quantiles"] for lag in lags])
                gates.plot(lags, quantiles[:, 2], style, marker="o", color=color, label=f"{name} {KEEP[name]}, {when}")
                if when == "after":
                    gates.fill_between(lags, quantiles[:, 0], quantiles[:, 4], color=color, alpha=0.15, linewidth=0)
    for axes, when in ((before, "before training"), (after, "after training")):
        axes.set(yscale="log", ylim=(1e-12, 1e3), xlabel="lag k", title=f"gradient by lag {when}, lag {longest}")
        axes.set_ylabel("|dL / d state(t - k)|, relative to k = 1")
        if int(longest) > CHUNK:
            axes.axvline(CHUNK, color="#555555", linestyle=":", linewidth=1, label=f"cut of chunks of {CHUNK}")
        axes.legend(fontsize=7, frameon=False, loc="lower left")
    learned.axhline(1 / SYMBOLS, color="#555555", linestyle=":", linewidth=1)
    learned.set(xscale="log", ylim=(0, 1.05), xlabel="lag of the task", title="accuracy (dotted: chance)")
    gates.set(xscale="log", ylim=(0, 1), xlabel="lag of the task", title="forget gates: median, middle 90 % after")
    for name, color in (("unclipped", "#D55E00"), ("clipped at 1", "#0072B2")):
        for seed, (row, norms) in enumerate(
            zip(result["exploding"][name]["loss"], result["exploding"][name]["gradient_norm"])
        ):
            label = name if seed == 0 else None
            loss.plot(row, color=color, linewidth=0.8, alpha=0.9 if seed == 0 else 0.35, label=label)
            norm.plot(norms, color=color, linewidth=0.8, alpha=0.9 if seed == 0 else 0.35, label=label)
    loss.set(yscale="log", xlabel="update", title="exploding: loss [nats]")
    norm.set(yscale="log", xlabel="update", title="exploding: gradient norm, before clipping")
    for axes in (learned, gates):
        axes.set_xticks(lags, [str(lag) for lag in lags])
        axes.set_xticks([], minor=True)
    for axes in (learned, gates, loss, norm):
        axes.legend(fontsize=8, frameon=False)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eeeeee", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    options = common.parse(argv, here=HERE, doc=__doc__)
    settings = (QUICK if options.quick else Settings())._replace(seed=options.seed)
    runs: dict[str, Any] = {}
    for name, cell in CELLS.items():
        runs[name] = {}
        for lag in settings.lags:
            optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))
            before, after, (_, accuracy, norm) = train_seeds(cell, lag, settings, optimizer, settings.steps)
            seeds = [jax.tree.map(lambda leaf, i=i: leaf[i], (before, after)) for i in range(settings.seeds)]
            runs[name][str(lag)] = {
                "accuracy": accuracy[:, -50:].mean(axis=1).tolist(),
                "clipped_share": (norm > 1).mean(axis=1).tolist(),
                "before": [look_inside(cell, network[0], lag) for network in seeds],
                "after": [look_inside(cell, network[1], lag) for network in seeds],
            }
            found = runs[name][str(lag)]
            reach = [
                float(np.median([one["reaches_the_symbol"] for one in found[when]])) for when in ("before", "after")
            ]
            common.say(
                options,
                f"{name:6} lag {lag:4}: accuracy {np.mean(found['accuracy']):.2f}, gradient at the symbol / at lag 1: "
                f"{reach[0]:.1e} before, {reach[1]:.1e} after",
            )
    result = {
        "question": "Why do recurrent networks forget, and what do gates change?",
        "settings": {
            **settings._asdict(),
            "hidden_size": HIDDEN,
            "batch_size": BATCH,
            "symbols": SYMBOLS,
            "chunk_len": CHUNK,
        },
        "runs": runs,
        "exploding": explode(settings),
    }
    for name in ("unclipped", "clipped at 1"):
        found = result["exploding"][name]
        common.say(
            options, f"exploding, {name}: loss {found['last_loss']}, largest gradient {found['largest_gradient_norm']}"
        )
    common.finish(options, result, {"why_rnns_forget.png": picture(result)})


if __name__ == "__main__":
    common.run(main)
