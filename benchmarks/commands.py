"""The command line of the benchmarks."""

import pathlib
import shlex
import sys
from typing import Annotated, Any

import jax
import typer
from rich.console import Console
from rich.table import Table

import rnnjax
from benchmarks import latency, lm, memory, parts, report, tables
from benchmarks.contestants import RIVALS
from benchmarks.gpu import gpu_command
from benchmarks.gpu_programs import gpu_programs_command
from benchmarks.grid import DTYPES, GRIDS, MODES, Sizes, points
from benchmarks.provenance import provenance
from benchmarks.results_file import load_rows, read_json, write_json
from benchmarks.run_grid import Settings, run_grid
from benchmarks.scale_command import scale_command
from benchmarks.settings import setting_costs
from benchmarks.summary import summary
from benchmarks.text import text_command
from rnnjax.cells import cell_from_name
from rnnjax.engines.affine.native import compiles
from rnnjax.fit.devices import prepare_devices

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Measures rnnjax and its rivals, which take turns in one process. Keep the machine quiet meanwhile. Without "
    "a command it is 'run': python -m benchmarks --quick.",
)
console = Console()

Out = Annotated[pathlib.Path | None, typer.Option(help="Where to write the results, as JSON.", show_default=False)]
UseCores = Annotated[
    bool,
    typer.Option(
        "--use-cores",
        help="Call rnnjax.use_cores first: rnnjax splits batches over CPU devices, and the allocator keeps freed "
        "memory, for all contestants. Without it they run as in anybody's script.",
    ),
]
Rounds = Annotated[int, typer.Option(help="Turns of each of those that are compared.", min=1)]
Burst = Annotated[float, typer.Option(help="Length of a turn.", min=0)]
Shapes = Annotated[str, typer.Option(help="Shapes, each T,B,I,H, separated by spaces.")]
Cells = Annotated[
    str,
    typer.Option(help="Cells, separated by semicolons or commas: names with options, or path/to/file.py:Class."),
]


def split(text: str) -> list[str]:
    """Cuts at semicolons and commas, but not within parentheses: ``lstm,elman(activation='relu')``."""
    parts, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character in ",;" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def choose(what: str, text: str, known: Any) -> list[str]:
    """The names in the text, or all for ``all``; raises for one that is not known."""
    names = list(known) if text == "all" else split(text)
    wrong = [name for name in names if name not in known]
    if wrong:
        raise ValueError(f"{what}: there is no {wrong[0]!r}; known: {', '.join(known)}.")
    return names


def say(text: str) -> None:
    """A message of progress."""
    typer.echo(text)


@app.command()
def run(
    quick: Annotated[
        bool,
        typer.Option("--quick", help="One shape, few rounds, then the language model: under two minutes on two cores."),
    ] = False,
    grid: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(GRIDS)}: target has the seven shapes of the README, sweep grows T, B and H one by one, "
            "full is both, h200 is for a GPU."
        ),
    ] = "target",
    sizes: Annotated[
        str, typer.Option(help="Shapes instead of a grid, each T,B,I,H, separated by spaces.", show_default=False)
    ] = "",
    cells: Cells = "elman,lstm,gru",
    implementations: Annotated[
        str, typer.Option(help="Of rnnjax: default (the one that is chosen by itself), all, or names.")
    ] = "default",
    rivals: Annotated[str, typer.Option(help=f"all, none, or of {', '.join(RIVALS)}.")] = "all",
    modes: Annotated[str, typer.Option(help="forward (outputs and final state), training (gradients).")] = "all",
    dtype: Annotated[str, typer.Option(help=f"{', '.join(DTYPES)}; tf32 on a GPU only.")] = "float32",
    rounds: Annotated[int, typer.Option(help="Turns of every contestant.", min=1)] = 15,
    compile_rounds: Annotated[int, typer.Option(help="How often each is compiled.", min=1)] = 3,
    burst_seconds: Annotated[float, typer.Option(help="Length of a turn; at least one call.", min=0)] = 0.05,
    out: Out = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --out: points that it has from this machine and commit stay.")
    ] = False,
    use_cores: UseCores = False,
) -> None:
    """Cells x implementations and rivals x sizes x forward and training x dtypes."""
    if use_cores:
        rnnjax.use_cores()
    if quick:
        # For the language model; before JAX is in use.
        prepare_devices(1 if compiles(rnnjax.LSTM(128)) else 0, 32)
        grid, rounds, compile_rounds, burst_seconds = "quick", min(rounds, 5), 1, min(burst_seconds, 0.02)
    if grid == "h200":
        if jax.default_backend() != "gpu":
            raise ValueError(f"run: the grid h200 needs a GPU as JAX's backend, got {jax.default_backend()!r}.")
        cells = "lstm" if cells == "elman,lstm,gru" else cells
        dtype = "float32,tf32,float16,bfloat16" if dtype == "float32" else dtype
        implementations = "all" if implementations == "default" else implementations
        modes = "training" if modes == "all" else modes
    (name,) = choose("grid", grid, GRIDS)
    shapes = [Sizes.parse(text) for text in sizes.split()] or list(GRIDS[name])
    dtypes = choose("dtype", dtype, DTYPES)
    if "tf32" in dtypes and jax.default_backend() == "cpu":
        raise ValueError("dtype: tf32 exists on a GPU only; take float32.")
    specs = split(cells)
    for spec in specs:
        cell_from_name(spec, 1)  # a wrong name is better found now than in an hour
    settings = Settings(
        implementations=tuple(split(implementations)),
        rivals=() if rivals == "none" else tuple(choose("rivals", rivals, RIVALS)),
        rounds=rounds,
        compile_rounds=compile_rounds,
        burst_seconds=burst_seconds,
        memory_reused=use_cores,
    )
    file = run_grid(
        list(points(specs, shapes, dtypes, choose("modes", modes, MODES))),
        settings,
        command=command_line(),
        out=out,
        resume=resume,
        say=say,
        show=lambda rows: console.print(report.terminal_table(rows)),
    )
    if quick:
        file.header["language_model"] = language_model(quick=True)
        file.write()
    else:
        typer.echo(report.markdown(file.rows))
    if grid == "h200":
        typer.echo(report.step_table(file.rows))
    wrote(out)


@app.command("lm")
def lm_command(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds, about half a minute.")] = False,
    out: Out = None,
) -> None:
    """Training step of the language model in characters a second against a torch script, and sampling speed."""
    result = {"command": command_line(), **language_model(quick)}
    if out is not None:
        write_json(out, result)
    wrote(out)


def language_model(quick: bool) -> dict[str, Any]:
    """Measures, shows and returns."""
    # As `rnnjax train`: the native loops use all cores of one device.
    asked = 1 if compiles(rnnjax.LSTM(128)) else 0
    prepare_devices(asked, min(batch for _, _, batch, _ in lm.CONFIGURATIONS.values()))
    rows = lm.training_speed(rounds=5 if quick else 21, burst_seconds=0.5 if quick else 2.0)
    sampling = lm.sampling_speed()
    everyone = ("rnnjax", lm.ONE, "torch")
    table = Table("LSTM language model, training", *(f"{who} char/s" for who in everyone), "ratio")
    for row in rows:
        parts = [
            f"{row[who]['characters_per_second']:,} ({row[who]['quartiles'][0]:,}-{row[who]['quartiles'][1]:,})"
            if who in row
            else ""
            for who in everyone
        ]
        table.add_row(row["configuration"], *parts, str(row.get("ratio", "")))
    console.print(table)
    drawn = f"{sampling['characters']:,} characters from {sampling['configuration']}"
    console.print(f"sampling {drawn}: {sampling['seconds']} s")
    return {"provenance": provenance(memory_reused=True), "training": rows, "sampling": sampling}


@app.command("latency")
def latency_command(
    cells: Cells = "elman,lstm,gru",
    sizes: Annotated[str, typer.Option(help="B,I,H, separated by spaces.")] = "1,64,128 1,512,512 32,128,128",
    rivals: Annotated[str, typer.Option(help=f"all, none, or of {', '.join(RIVALS)}.")] = "all",
    rounds: Annotated[int, typer.Option(help="Turns of every contestant.", min=1)] = 15,
    burst_seconds: Annotated[float, typer.Option(help="Length of a turn.", min=0)] = 0.02,
    characters: Annotated[int, typer.Option(help="Length of a sample from the language model; 0 for none.")] = 10_000,
    out: Out = None,
) -> None:
    """One step at a time: the latency of a step, and sampling speed."""
    rows = latency.step_latencies(
        split(cells),
        [] if rivals == "none" else choose("rivals", rivals, RIVALS),
        sizes=[Sizes.parse(f"1,{text}") for text in sizes.split()],
        rounds=rounds,
        burst_seconds=burst_seconds,
    )
    table = Table("one step", "B, I, H", "contestant", "microseconds", "quartiles")
    for row in rows:
        low, middle, high = (row["seconds"][key] * 1e6 for key in ("low", "median", "high"))
        where = f"{row['B']}, {row['I']}, {row['H']}"
        table.add_row(row["cell"], where, row["contestant"], f"{middle:.1f}", f"{low:.1f}-{high:.1f}")
    console.print(table)
    sampling = latency.sampling_speeds(length=characters, rounds=3) if characters else None
    if sampling:
        console.print(f"sampling {characters:,} characters from a 2x128 model:", sampling)
    result = {"command": command_line(), "provenance": provenance(), "steps": rows, "sampling": sampling}
    if out is not None:
        write_json(out, result)
    wrote(out)


@app.command("memory")
def memory_command(
    cell: Annotated[str, typer.Option(help="A cell by name or file.py:Class.")] = "lstm",
    hidden: Annotated[int, typer.Option(help="H; the input has the same size.", min=1)] = 128,
    batch: Annotated[int, typer.Option(help="B.", min=1)] = 4,
    lengths: Annotated[str, typer.Option(help="T of the remat policies.")] = "1000,10000,100000",
    tbptt_lengths: Annotated[str, typer.Option(help="T of TBPTT.")] = "1000,10000,100000,1000000",
    chunk: Annotated[int, typer.Option(help="Steps between two updates of TBPTT.", min=1)] = 100,
    tbptt_hidden: Annotated[int, typer.Option(help="H of TBPTT.", min=1)] = 32,
    rounds: Annotated[int, typer.Option(help="Turns of every policy.", min=1)] = 3,
    limit_gb: Annotated[float, typer.Option(help="A policy that needs more is not run, only planned.")] = 4.0,
    out: Out = None,
) -> None:
    """Peak bytes and time of the remat policies, and TBPTT over long sequences in constant memory."""
    rows = memory.remat_costs(
        cell,
        hidden_size=hidden,
        batch_size=batch,
        lengths=[int(text) for text in split(lengths)],
        rounds=rounds,
        limit_bytes=limit_gb * 1e9,
        say=say,
    )
    table = Table("T", "implementation", "remat", "peak MB", "ms", title=f"{cell}, B = {batch}, H = {hidden}, gradient")
    for row in rows:
        taken = f"{row['seconds']['median'] * 1e3:.3g}" if row["seconds"] else "too large to run"
        peak = f"{row['peak_bytes'] / 1e6:.1f}"
        table.add_row(str(row["T"]), row["implementation"], str(row["remat"]), peak, taken)
    console.print(table)
    trained = memory.tbptt_costs(
        cell,
        hidden_size=tbptt_hidden,
        lengths=[int(text) for text in split(tbptt_lengths)],
        chunk_len=chunk,
        say=say,
    )
    title = f"TBPTT, {cell}, B = 1, H = {tbptt_hidden}, chunks of {chunk}"
    table = Table("T", "temporary KB", "data and results KB", "s", "first loss", "last loss", title=title)
    for row in trained:
        data = (row["argument_bytes"] + row["output_bytes"]) / 1e3
        temp, first, last = f"{row['temp_bytes'] / 1e3:.1f}", f"{row['first_loss']:.4f}", f"{row['last_loss']:.4f}"
        table.add_row(f"{row['T']:,}", temp, f"{data:.1f}", str(row["seconds"]), first, last)
    console.print(table)
    if out is not None:
        write_json(out, {"command": command_line(), "provenance": provenance(), "remat": rows, "tbptt": trained})
    wrote(out)


@app.command("cpu")
def cpu_command(
    cells: Cells = "lstm,gru",
    sizes: Shapes = "128,32,128,128 50,50,65,128 128,32,256,512",
    devices: Annotated[int, typer.Option(help="CPU devices that the batch is split over.", min=1)] = 2,
    rounds: Rounds = 15,
    burst_seconds: Burst = 0.05,
    out: Out = None,
) -> None:
    """What compiler options, and a batch split over several CPU devices, are worth on this machine."""
    jax.config.update("jax_num_cpu_devices", devices)
    measure_settings("cpu", cells, sizes, rounds, burst_seconds, out)


app.command("gpu")(gpu_command)
app.command("gpu-programs")(gpu_programs_command)
app.command("scale")(scale_command)
app.command("text")(text_command)


@app.command("graphs")
def graphs_command(
    cells: Cells = "lstm,gru",
    sizes: Shapes = "512,16,512,512 512,64,512,512 512,16,1024,1024 512,16,2048,2048",
    rounds: Rounds = 15,
    burst_seconds: Burst = 0.05,
    out: Out = None,
) -> None:
    """What CUDA graphs, of the body of a loop or of all of it, are worth on this GPU for engines that loop in XLA."""
    measure_settings("gpu", cells, sizes, rounds, burst_seconds, out)


def measure_settings(
    backend: str, cells: str, sizes: str, rounds: int, burst_seconds: float, out: pathlib.Path | None
) -> None:
    """Measures, shows and writes."""
    shapes = [Sizes.parse(text) for text in sizes.split()]
    rows = setting_costs(backend, split(cells), shapes, rounds=rounds, burst_seconds=burst_seconds)
    table = Table("cell", "T, B, I, H", "mode", "setting", "ms", "speed-up")
    for row in rows:
        where, taken = ", ".join(str(row[axis]) for axis in "TBIH"), row["seconds"]["median"] * 1e3
        table.add_row(row["cell"], where, row["mode"], row["setting"], f"{taken:.3g}", f"{row['speedup']:.2f}")
    console.print(table)
    if out is not None:
        write_json(out, {"command": command_line(), "provenance": provenance(), "rows": rows})
    wrote(out)


@app.command("parts")
def parts_command(
    sizes: Shapes = "128,32,128,128 128,32,256,512 50,50,65,128 64,16,256,256",
    rounds: Rounds = 15,
    burst_seconds: Burst = 0.05,
    out: Out = None,
) -> None:
    """Where the time of an LSTM goes: matmuls, pointwise work and loop one by one, rnnjax's beside torch's."""
    rows = parts.part_times([Sizes.parse(t) for t in sizes.split()], rounds=rounds, burst_seconds=burst_seconds)
    typer.echo(report.parts_table(rows))
    if out is not None:
        write_json(out, {"command": command_line(), "provenance": provenance(), "parts": rows})
    wrote(out)


@app.command("plots")
def plots_command(
    results: Annotated[list[pathlib.Path], typer.Argument(help="Result files of 'run'.")],
    folder: Annotated[pathlib.Path, typer.Option(help="Where the pictures go.")] = pathlib.Path("docs/benchmarks"),
) -> None:
    """Heat-maps of ratios, and time against T, B and H, one file of each kind, mode and dtype."""
    from benchmarks.plots import draw_all  # matplotlib is slow to import

    for path in results:
        for picture in draw_all(load_rows([path]), folder, path.stem):
            typer.echo(picture)


@app.command("tables")
def tables_command(
    results: Annotated[list[pathlib.Path], typer.Argument(help="Result files of 'run', or one of another command.")],
    readme: Annotated[
        pathlib.Path | None,
        typer.Option(
            help=f"A file with the lines {report.BEGIN} and {report.END}, or benchmarks:memory and so on: what is "
            "between them is replaced."
        ),
    ] = None,
    steps: Annotated[bool, typer.Option("--steps", help="Microseconds a step instead, as for the grid h200.")] = False,
    in_short: Annotated[bool, typer.Option("--summary", help="Means and worst ratios alone.")] = False,
) -> None:
    """Prints the tables of result files, or writes them into a document."""
    first = read_json(results[0])
    kind = tables.kind_of(first)
    if kind is not None and (len(results) > 1 or steps or in_short):
        raise ValueError(f"tables: {str(results[0])!r} is of 'benchmarks {kind}', whose files come one at a time.")
    if kind is not None:
        text = tables.table(kind, first)
        if first["provenance"]["cores"] == 1:
            kind += "-1core"
    else:
        rows = load_rows(results)
        if in_short:
            kind, text = "summary", summary(rows)
        else:
            kind = "cores" if all(row["memory_reused"] for row in rows) else None
            text = report.step_table(rows) if steps else report.markdown(rows)
    if readme is None:
        typer.echo(text)
    else:
        report.update_readme(readme, text, kind or "")
        wrote(readme)


def command_line() -> str:
    """For the record."""
    return shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])


def wrote(out: pathlib.Path | None) -> None:
    """Says where the results are."""
    if out is not None:
        typer.echo(f"written to {out}")


def main(arguments: list[str] | None = None) -> None:
    """Without a command it is ``run``; what a user can get wrong is said in one sentence."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or (arguments[0].startswith("-") and arguments[0] != "--help"):
        arguments = ["run", *arguments]
    try:
        app(arguments, prog_name="python -m benchmarks")
    except (ValueError, FileNotFoundError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        raise SystemExit(2) from None
