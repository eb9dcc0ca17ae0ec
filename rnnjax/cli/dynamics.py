"""``rnnjax gradflow``, ``lyapunov`` and ``fixedpoints``: why a trained run forgets, and where its states go."""

from __future__ import annotations

import pathlib
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import typer

from rnnjax.analysis.fixed_points import find_fixed_points, visited_states
from rnnjax.analysis.flat import flatten_state, state_size
from rnnjax.analysis.jacobians import kaplan_yorke_dimension
from rnnjax.analysis.plots import plot_fixed_points, plot_gradient_flow, plot_lyapunov
from rnnjax.analysis.recording import OneHot, SymbolModel
from rnnjax.analysis.text_flow import as_inputs, symbol_gradient_flow, symbol_lyapunov, text_pieces
from rnnjax.cli.analysis import TextArgument, read_text_of, symbol_model
from rnnjax.cli.options import Checkpoint, Json, RunArgument, TrustCode
from rnnjax.cli.output import echo, echo_json, echo_table
from rnnjax.files import save_figure
from rnnjax.fit.folder import remember
from rnnjax.lm.run import open_run
from rnnjax.network import start_state

__all__ = ["fixedpoints", "gradflow", "lyapunov"]

_Batch = Annotated[int, typer.Option("--batch-size", help="Pieces of the text, side by side.", min=1)]
_Length = Annotated[int, typer.Option(help="Symbols of each piece.", min=2)]
_Picture = Annotated[
    pathlib.Path | None, typer.Option("--out", help="File of the picture. By default in the run's folder.")
]


def gradflow(
    run: RunArgument,
    text: TextArgument = None,
    length: _Length = 512,
    batch_size: _Batch = 4,
    max_lag: Annotated[int, typer.Option(help="Steps back; at most half the length.", min=1)] = 200,
    out: _Picture = None,
    checkpoint: Checkpoint = "best",
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Measure how the gradient of the loss shrinks on its way back through time, with the cut of the training.

    [bold]rnnjax gradflow runs/demo[/bold]
    """
    opened = open_run(run, checkpoint=checkpoint, trust_code=trust_code)
    model = symbol_model(opened)
    ids = _pieces(read_text_of(opened, text, 0).ids, length + 1, batch_size)
    flow = symbol_gradient_flow(model, ids, max_lag=min(max_lag, length // 2), chunk_len=opened.config.train.chunk_len)
    path = out or _picture(run, "gradflow.png")
    save_figure(plot_gradient_flow(flow, layers=flow.by_layer.shape[1] > 1), path)
    lags = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if k <= len(flow.lags)]
    if as_json:
        echo_json(
            {
                "run": str(run),
                "lags": flow.lags,
                "norm": flow.norm,
                "layers": flow.by_layer.T,
                "chunk_len": flow.chunk_len,
                "lost": flow.lost,
                "picture": str(path),
            }
        )
        return
    names = [f"layer {k + 1}" for k in range(flow.by_layer.shape[1])]
    echo_table(
        ("lag", "gradient", "relative", *names),
        [
            (
                str(k),
                f"{flow.norm[k - 1]:.3e}",
                f"{flow.norm[k - 1] / max(float(flow.norm[0]), 1e-300):.3e}",
                *(f"{value:.3e}" for value in flow.by_layer[k - 1]),
            )
            for k in lags
        ],
    )
    if flow.lost is not None:
        echo(f"\nChunks of {flow.chunk_len} steps cut off {100 * flow.lost:.1f} % of it, summed over the lags.")
    echo(f"picture {path}")


def lyapunov(
    run: RunArgument,
    text: TextArgument = None,
    count: Annotated[int, typer.Option(help="Leading exponents.", min=1)] = 16,
    length: _Length = 400,
    warmup: Annotated[int, typer.Option(help="First symbols, which are not counted.", min=0)] = 100,
    batch_size: _Batch = 2,
    out: _Picture = None,
    checkpoint: Checkpoint = "best",
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Measure the Lyapunov exponents along a text: at what rates a small change of the state dies out or grows.

    [bold]rnnjax lyapunov runs/demo --count 32[/bold]
    """
    if warmup >= length:
        raise ValueError(f"--warmup: must be below --length, {length}, got {warmup}.")
    opened = open_run(run, checkpoint=checkpoint, trust_code=trust_code)
    model = symbol_model(opened)
    ids = _pieces(read_text_of(opened, text, 0).ids, length, batch_size)
    spectrum = symbol_lyapunov(model, ids, count=count, warmup=warmup)
    path = out or _picture(run, "lyapunov.png")
    save_figure(plot_lyapunov(spectrum), path)
    dimension = kaplan_yorke_dimension(spectrum.exponents)
    if as_json:
        found = {"exponents": spectrum.exponents, "dimension": dimension}
        echo_json({"run": str(run), **found, "picture": str(path)})
        return
    spread = spectrum.by_example.std(axis=0)
    echo_table(
        ("rank", "exponent", "deviation", "time constant"),
        [
            (str(k), f"{value:.4f}", f"{wide:.4f}", f"{-1 / value:.1f} steps" if value < 0 else "grows")
            for k, (value, wide) in enumerate(zip(spectrum.exponents, spread, strict=True), 1)
        ],
    )
    echo(f"\nKaplan-Yorke dimension {dimension:.2f} from {len(spectrum.exponents)} exponents, in nats a symbol.")
    echo(f"picture {path}")


def fixedpoints(
    run: RunArgument,
    text: TextArgument = None,
    symbol: Annotated[
        str, typer.Option(metavar="SYMBOL", help="The input that is held. None: the mean input over the text.")
    ] = "",
    starts: Annotated[int, typer.Option(help="Visited states from which to search.", min=1)] = 16,
    steps: Annotated[int, typer.Option(help="Of Adam, from every start.", min=0)] = 500,
    out: _Picture = None,
    checkpoint: Checkpoint = "best",
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Find the states at which the network rests while its input stands still, and whether they are stable.

    [bold]rnnjax fixedpoints runs/demo --symbol e[/bold]
    """
    opened = open_run(run, checkpoint=checkpoint, trust_code=trust_code)
    model = symbol_model(opened)
    ids = read_text_of(opened, text, 20_000).ids
    x = _held_input(model, ids, symbol, opened.vocabulary.symbols)
    state = start_state(model.cell, model.params, ())
    cell, inputs = as_inputs(model, ids[:1000].astype(np.int32))
    visited = visited_states(cell, model.params, state, inputs, count=256, key=jax.random.key(0))
    chosen = jax.tree.map(lambda leaf: leaf[:starts], visited)
    # Newton's steps need the square of the state's size in memory and its cube in time.
    polish = 30 if state_size(model.cell) <= 1100 else 0
    found = find_fixed_points(model.cell, model.params, chosen, x, steps=steps, polish_steps=polish, visited=visited)
    path = out or _picture(run, "fixedpoints.png")
    if len(found.points):
        save_figure(plot_fixed_points(found, states=np.asarray(flatten_state(model.cell, visited))), path)
    rows = []
    for k in range(len(found.points)):
        kind = "slow" if not found.fixed[k] else "stable" if found.stable[k] else "unstable"
        size = float(np.abs(found.eigenvalues[k]).max())
        far = f"{found.distance[k]:.3g}"
        rows.append((str(k + 1), kind, f"{found.speed[k]:.2e}", f"{size:.4f}", str(int(found.hits[k])), far))
    if as_json:
        keys = ("point", "kind", "speed", "largest_eigenvalue", "searches", "distance")
        kinds = (int, str, float, float, int, float)
        points = [{key: kind(cell) for key, kind, cell in zip(keys, kinds, row, strict=True)} for row in rows]
        known = {"run": str(run), "points": points, "far": found.far, "lowest_speed": found.lowest_speed}
        echo_json(known | {"picture": str(path) if points else None})
        return
    if not rows:
        echo(
            f"None of {starts} searches came to rest: the lowest speed was {found.lowest_speed:.2e}, and a slow point "
            f"has 1e-4 at most; take more --steps, or another --symbol."
        )
        if found.far:
            echo(f"{found.far} others ended where the network never is.")
        return
    echo_table(("point", "kind", "speed", "largest |eigenvalue|", "searches", "distance"), rows)
    echo(f"\nspeed is |s - F(s, x)|^2 / 2; {int(found.hits.sum())} of {starts} searches ended in these points.")
    echo(f"distance is that to the nearest visited state; {found.far} searches ended where the network never is.")
    echo(f"picture {path}")


def _held_input(model: SymbolModel, ids: np.ndarray, symbol: str, symbols: tuple[str, ...]) -> jax.Array:
    if not symbol:
        shares = jnp.asarray(np.bincount(ids, minlength=len(symbols)) / len(ids), jnp.float32)  # of every symbol
        return shares if isinstance(model.inputs, OneHot) else shares @ model.inputs.astype(jnp.float32)
    if symbol not in symbols:
        raise ValueError(f"--symbol: must be one of the {len(symbols)} symbols of the run, got {symbol!r}.")
    return model.inputs[symbols.index(symbol)]


def _pieces(ids: np.ndarray, length: int, batch_size: int) -> np.ndarray:
    """Equally far apart pieces of a text, ``[length, B]``."""
    if len(ids) < length:
        raise ValueError(f"--length: the text has {len(ids):,} symbols, and {length:,} are needed; take less.")
    return text_pieces(ids, length, batch_size)


def _picture(run: pathlib.Path, name: str) -> pathlib.Path:
    """The file of a picture in the folder of a run, which knows it as ours."""
    remember(run, [name])
    return run / name
