"""Why do recurrent networks forget? One task at growing lag, and the gradient that has to cross it.

python -m experiments.01_why_rnns_forget.run [--quick] [--again] [--out FOLDER]
"""

import argparse
import itertools
import json
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
CELLS = {"Elman": rnnjax.Elman(HIDDEN), "LSTM": rnnjax.LSTM(HIDDEN), "GRU": rnnjax.GRU(HIDDEN)}  # looked into
KEEP = {"LSTM": "f", "GRU": "z"}  # the gate that multiplies the old state
EXPLODING = rnnjax.Elman(HIDDEN, recurrent_init=rnnjax.initializers.Orthogonal(1.5))
CHUNK = 25


class Start(NamedTuple):
    """A network as it starts: what the first picture compares."""

    cell: Any
    label: str
    color: str


def starts(longest: int) -> dict[str, Start]:
    """By name; the chrono initialisation is told the longest lag."""
    chrono, orthogonal = rnnjax.initializers.Chrono(max(3, longest)), rnnjax.initializers.Orthogonal
    return {
        "tanh, radius 0.8": Start(rnnjax.Elman(HIDDEN, recurrent_init=orthogonal(0.8)), "0.8", "#F0A35E"),
        "tanh, radius 1.0": Start(CELLS["Elman"], "1.0", "#D55E00"),
        "tanh, radius 1.2": Start(rnnjax.Elman(HIDDEN, recurrent_init=orthogonal(1.2)), "1.2", "#7A2E00"),
        "LSTM, forget bias 0": Start(rnnjax.LSTM(HIDDEN, forget_bias=0.0), "LSTM, bias 0", "#9CC9E8"),
        "LSTM, forget bias 1": Start(CELLS["LSTM"], "LSTM, bias 1", "#3D97CF"),
        "LSTM, forget bias 5": Start(rnnjax.LSTM(HIDDEN, forget_bias=5.0), "LSTM, bias 5", "#0072B2"),
        "LSTM, chrono": Start(rnnjax.LSTM(HIDDEN, forget_bias=chrono), "LSTM, chrono", "#003B5C"),
        "GRU": Start(CELLS["GRU"], "GRU", "#66C2A5"),
        "GRU, chrono": Start(rnnjax.GRU(HIDDEN, update_bias=chrono), "GRU, chrono", "#00664D"),
    }


class Settings(NamedTuple):
    """How long everything takes."""

    lags: tuple[int, ...] = (10, 30, 100)
    seeds: int = 3
    steps: int = 1000
    exploding_lag: int = 20
    exploding_steps: int = 600
    all_starts: bool = True  # or those alone that are looked into anyhow
    seed: int = 0


QUICK = Settings(lags=(4, 8), seeds=1, steps=20, exploding_lag=8, exploding_steps=10, all_starts=False)


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


def train_seeds(cell, lag, settings, optimizer, steps, others=()):
    """Networks before and after, and their histories ``[seeds, steps]``; all seeds in one program.

    Cells that differ in how they begin alone, ``others``, join it: their seeds follow, one cell after the other.
    """
    key_init, key_data = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), lag))
    made = [
        jax.vmap(lambda key, one=one: init(one, key))(jax.random.split(key_init, settings.seeds))
        for one in (cell, *others)
    ]
    before = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *made)
    keys = jnp.concatenate([jax.random.split(key_data, (settings.seeds, steps))] * len(made))
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


def gradient_at_the_start(cell, settings, noise, lag):
    """Gradient by lag, 1, 2, .., relative to lag 1, of new networks that read noise of some size: median over seeds."""

    def one(key):
        params = init(cell, key)
        xs = noise * jax.random.normal(jax.random.fold_in(key, 1), (lag + 1, BATCH, SYMBOLS + 1))
        some = jax.random.normal(jax.random.fold_in(key, 2), (HIDDEN,))  # any direction of the output
        state = cell.initial_state((BATCH,))
        typical = gradient_flow(cell, params.cell, state, xs, lambda ys: ys @ some, times=[lag]).typical
        return typical / max(typical[0], 1e-300)

    keys = jax.random.split(jax.random.key(settings.seed), settings.seeds)
    return np.median([one(key) for key in keys], axis=0)


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


def story(result):
    """The gradient by lag for plain networks and for gates, and what each of them then learns."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.6), dpi=110, layout="constrained")
    plain, gated, learned = figure.subplots(1, 3, width_ratios=(1, 1, 0.95))
    found, lags = result["starts"], result["settings"]["lags"]
    networks = {name: start for name, start in starts(max(lags)).items() if name in found}
    for name, start in networks.items():
        axes = plain if isinstance(start.cell, rnnjax.Elman) else gated
        values = np.maximum(np.array(found[name]["with inputs"], float), 1e-30)
        steps = np.arange(1, len(values) + 1)
        if axes is plain:
            quiet = np.maximum(np.array(found[name]["quiet"], float), 1e-30)
            axes.plot(steps, quiet, color=start.color, linewidth=2.5)
            axes.plot(steps, values, color=start.color, linewidth=1.2, linestyle="--")
            axes.annotate(f" radius {start.label}", (steps[-1], quiet[-1]), color=start.color, va="center", fontsize=11)
        else:
            axes.plot(steps, values, color=start.color, linewidth=2.5)
    ends = {n: max(found[n]["with inputs"][-1], 1e-30) for n in networks if not n.startswith("tanh")}
    places = spread([np.log10(max(value, 10**-10.5)) for value in ends.values()], least=1.3)
    for name, place in zip(ends, places):
        color, label = networks[name].color, networks[name].label
        gated.annotate(f" {label}", (steps[-1], 10**place), color=color, va="center", fontsize=11)
    for axes, title in (
        (plain, "A tanh network multiplies by the same matrix:\nit vanishes or explodes"),
        (gated, "A gate that stays open keeps it"),
    ):
        axes.set(yscale="log", ylim=(1e-12, 1e12), xlabel="steps back", xlim=(0, steps[-1] * 1.34))
        axes.set_title(title, fontsize=12)
        axes.plot([0, steps[-1]], [1, 1], color="#999999", linewidth=0.8, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xticks(np.linspace(0, steps[-1] - 1, 5).round().astype(int))
    plain.set_ylabel("size of the gradient, one step back = 1")
    plain.text(0.03, 0.88, "solid: no input, powers of the radius\ndashed: with inputs, tanh is less steep",
               transform=plain.transAxes, fontsize=9, color="#555555")  # fmt: skip
    shares = np.array([[np.mean(found[name]["accuracy"][str(lag)]) for lag in lags] for name in networks])
    learned.imshow(shares, cmap="Blues", vmin=1 / SYMBOLS - 0.1, vmax=1.15, aspect="auto")
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            color = "white" if share > 0.65 else "#333333"
            learned.text(j, i, f"{100 * share:.0f} %", ha="center", va="center", color=color, fontsize=11)
    learned.set_xticks(range(len(lags)), [f"{lag} steps" for lag in lags])
    learned.set_yticks(range(len(networks)), list(networks))
    for tick, start in zip(learned.get_yticklabels(), networks.values()):
        tick.set_color(start.color)
    learned.tick_params(length=0)
    learned.spines[:].set_visible(False)
    learned.set_title("What each then remembers\n(right answers, 25 % is chance)", fontsize=12)
    return figure


def spread(places, least):
    """Places of labels, moved apart to a least distance, in the order that they have."""
    order = np.argsort(places)
    moved = np.array(places, float)
    for _ in range(50):
        for low, high in itertools.pairwise(order):
            gap = least - (moved[high] - moved[low])
            if gap > 0:
                moved[low] -= gap / 2
                moved[high] += gap / 2
    return moved.tolist()


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
    for axes in (loss, norm):
        axes.legend(fontsize=8, frameon=False)
    entries = {}  # one legend for the rest, below what it would hide
    for axes in (before, gates):
        for handle, label in zip(*axes.get_legend_handles_labels()):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), fontsize=8, frameon=False, loc="outside lower center", ncols=5)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eeeeee", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure


def compare_starts(options, settings, runs):
    """Gradients of networks as they start, and what they learn; the three that were looked into are there already."""
    longest, found = max(settings.lags), {}
    known = {cell: name for name, cell in CELLS.items()}
    compared = {name: start for name, start in starts(longest).items() if settings.all_starts or start.cell in known}
    for name, start in compared.items():
        found[name] = {
            "quiet": gradient_at_the_start(start.cell, settings, 0.0, longest),
            "with inputs": gradient_at_the_start(start.cell, settings, 1.0, longest),
            "accuracy": {},
        }
        if start.cell in known:
            own = runs[known[start.cell]]
            found[name]["accuracy"] = {str(lag): own[str(lag)]["accuracy"] for lag in settings.lags}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))
    for kind in (rnnjax.Elman, rnnjax.LSTM, rnnjax.GRU):
        names = [name for name, one in compared.items() if isinstance(one.cell, kind) and one.cell not in known]
        for lag in settings.lags if names else ():
            first, *others = [compared[name].cell for name in names]
            _, _, (_, accuracy, _) = train_seeds(first, lag, settings, optimizer, settings.steps, others)
            rows = accuracy[:, -50:].mean(axis=1).reshape(len(names), settings.seeds)
            for name, row in zip(names, rows):
                found[name]["accuracy"][str(lag)] = row.tolist()
                common.say(options, f"{name:20} lag {lag:4}: accuracy {row.mean():.2f}")
    return found


def measured_before(options, settings):
    """Networks that an earlier run with these settings looked into, or nothing: that takes most of the time."""
    path = options.out / "result.json"
    earlier = json.loads(path.read_text(encoding="utf-8")).get("default", {}) if path.is_file() else {}
    same = all(earlier.get("settings", {}).get(name) == value for name, value in described(settings).items())
    return (
        {name: earlier[name] for name in ("runs", "exploding", "runs_made_with", "made_with") if name in earlier}
        if same and not options.extra["again"]
        else {}
    )


def described(settings):
    """Settings as they stand in result.json."""
    sizes = {"hidden_size": HIDDEN, "batch_size": BATCH, "symbols": SYMBOLS, "chunk_len": CHUNK}
    own = {name: value for name, value in settings._asdict().items() if name != "all_starts"}
    return {**own, "lags": list(settings.lags), **sizes}


def look_into_all(options, settings):
    """All cells at all lags, before and after training."""
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
    return runs


def main(argv: Sequence[str] | None = None) -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--again", action="store_true", help="measure also what is there with the same settings")

    options = common.parse(argv, here=HERE, doc=__doc__, add=add)
    settings = (QUICK if options.quick else Settings())._replace(seed=options.seed)
    earlier = measured_before(options, settings)
    runs = earlier.get("runs") or look_into_all(options, settings)
    result = {
        "question": "Why do recurrent networks forget, and what do gates change?",
        "settings": described(settings),
        "starts": compare_starts(options, settings, runs),
        "runs": runs,
        "runs_made_with": earlier.get("runs_made_with", earlier.get("made_with", "as all")),
        "exploding": earlier.get("exploding") or explode(settings),
    }
    for name in ("unclipped", "clipped at 1"):
        found = result["exploding"][name]
        common.say(
            options, f"exploding, {name}: loss {found['last_loss']}, largest gradient {found['largest_gradient_norm']}"
        )
    pictures = {"why_rnns_forget.png": story(result), "details.png": picture(result)}
    common.finish(options, result, pictures)


if __name__ == "__main__":
    common.run(main)
