"""A run: its options, its folder, and how to open one that was trained."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

import rnnjax
from rnnjax.cell import check_size
from rnnjax.cells import cell_from_name
from rnnjax.fit.checkpoint import CheckpointError, best, find_checkpoints, load, restore
from rnnjax.fit.optimizers import OptimizerOptions
from rnnjax.lm.model import LanguageModel, LMParams
from rnnjax.networks import Stack
from rnnjax.saving import write_atomic
from rnnjax.text.corpus import TextOptions
from rnnjax.text.vocabulary import Vocabulary

__all__ = [
    "BudgetOptions",
    "ModelOptions",
    "Run",
    "RunConfig",
    "RunPaths",
    "TrainOptions",
    "make_model",
    "open_run",
    "read_config",
    "write_json",
]


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Which network.

    Attributes:
        cell: name of a cell, see `rnnjax.cell_from_name`.
        layers: L.
        hidden: H of every layer.
        embed: size of the symbol embedding; 0 for one-hot inputs; -1 picks: H where tied, else 128 up to 256 symbols
            and 256 above. One-hot inputs learn much slower: a vector of norm 1 through a Glorot matrix hardly moves
            a gate at first.
        tie: whether the output uses the embedding's weights.
        dropout: rate, see `LanguageModel`.
        dtype: of the matmuls, ``float32`` or ``bfloat16``.
    """

    cell: str = "lstm"
    layers: int = 1
    hidden: int = 512
    embed: int = -1
    tie: bool = False
    dropout: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_size("--layers", "the number of layers", self.layers)
        check_size("--hidden", "the hidden size", self.hidden)
        if self.embed < -1:
            raise ValueError(f"--embed: must be -1 (automatic), 0 (one-hot) or a size, got {self.embed}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout: must be at least 0 and below 1, got {self.dropout:g}.")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"--dtype: must be float32 or bfloat16, got {self.dtype!r}.")


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How the text is fed, and how often things are looked at.

    Attributes:
        batch_size: B, parallel streams of text.
        chunk_len: T, symbols between updates, and as far as gradients reach.
        seed: of initialisation, dropout and samples.
        log_every: updates between lines of metrics; explosions are looked for as often.
        evals: evaluations, each with a checkpoint and a sample, spread evenly over the budget.
        eval_symbols: at most so many symbols of the validation text are used while training (the last evaluation
            always uses all of them); 0 for all.
        patience: stop after so many evaluations without a new best; 0 never stops early.
        sample_length: symbols of the sample at each evaluation; 0 for none.
        devices: that the batch is split over, see `rnnjax.lm.devices`; 0 for a number that fits. A run's folder holds
            the number that was taken (1 where it is older than this option), so that it goes on as it began.
    """

    batch_size: int = 32
    chunk_len: int = 64
    seed: int = 0
    log_every: int = 20
    evals: int = 20
    eval_symbols: int = 100_000
    patience: int = 0
    sample_length: int = 300
    devices: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "chunk_len", "log_every", "evals"):
            check_size(f"--{name.replace('_', '-')}", "the value", getattr(self, name))
        if self.seed >= 2**31:
            raise ValueError(f"--seed: must be below {2**31}, got {self.seed}.")
        for name in ("seed", "eval_symbols", "patience", "sample_length", "devices"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')}: must not be negative, got {getattr(self, name)}.")


@dataclasses.dataclass(frozen=True)
class BudgetOptions:
    """How long to train: exactly one of the three is set.

    Attributes:
        steps: updates.
        epochs: passes through the training text.
        minutes: of wall-clock time, everything included. The learning rate then follows the clock, so two such
            runs differ; the other two budgets are exactly repeatable.
    """

    steps: int | None = None
    epochs: float | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        given = {f"--{k}": v for k, v in dataclasses.asdict(self).items() if v is not None}
        if len(given) != 1:
            what = "none" if not given else " and ".join(given)
            raise ValueError(f"train: give exactly one of --steps, --epochs and --minutes as the budget, got {what}.")
        ((name, value),) = given.items()
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: must be a number above 0, got {value:g}.")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All options of a run, in groups."""

    text: TextOptions
    model: ModelOptions
    optimizer: OptimizerOptions
    train: TrainOptions
    budget: BudgetOptions

    def to_json(self) -> dict[str, Any]:
        """Plain dicts; `from_json` is the inverse."""
        return {"rnnjax": rnnjax.__version__, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunConfig:
        """The config that `to_json` wrote.

        Raises:
            ValueError: if a group or option is missing, unknown or out of range.
        """
        kinds = {
            "text": TextOptions,
            "model": ModelOptions,
            "optimizer": OptimizerOptions,
            "train": TrainOptions,
            "budget": BudgetOptions,
        }
        try:
            return cls(**{name: kind(**data[name]) for name, kind in kinds.items()})
        except (KeyError, TypeError) as error:
            raise ValueError(f"config: the file does not hold a run's options ({error}).") from error


class RunPaths(NamedTuple):
    """Where a run keeps its files."""

    root: pathlib.Path

    @property
    def config(self) -> pathlib.Path:
        """Options, provenance of the text, and what it ran on."""
        return self.root / "config.json"

    @property
    def vocabulary(self) -> pathlib.Path:
        """The symbols."""
        return self.root / "vocabulary.json"

    @property
    def metrics(self) -> pathlib.Path:
        """One JSON object a line."""
        return self.root / "metrics.jsonl"

    @property
    def samples(self) -> pathlib.Path:
        """What the model wrote at every evaluation."""
        return self.root / "samples.txt"

    @property
    def baselines(self) -> pathlib.Path:
        """Losses of simple models on the same split."""
        return self.root / "baselines.json"

    @property
    def checkpoints(self) -> pathlib.Path:
        """Folder of checkpoints."""
        return self.root / "checkpoints"

    @property
    def curve(self) -> pathlib.Path:
        """Picture of the losses."""
        return self.root / "loss.png"

    @property
    def log(self) -> pathlib.Path:
        """What `rnnjax train` printed, with times."""
        return self.root / "train.log"

    @property
    def tensorboard(self) -> pathlib.Path:
        """Folder of TensorBoard's events."""
        return self.root / "tensorboard"

    def foreign(self) -> list[str]:
        """Names in the folder that no run has written."""
        own = {
            path.name
            for path in (
                *(self.config, self.vocabulary, self.metrics, self.samples, self.baselines),
                *(self.checkpoints, self.curve, self.log, self.tensorboard),
            )
        } | {"gradflow.png", "lyapunov.png", "fixedpoints.png", "report.html"}  # of the commands of these names
        names = sorted(path.name for path in self.root.iterdir())
        foreign = [name for name in names if name not in own and not name.startswith(tuple(f".{n}." for n in own))]
        if self.config.is_file() and b'"rnnjax"' not in self.config.read_bytes():
            foreign.insert(0, self.config.name)  # somebody else's settings
        return foreign


class Run(NamedTuple):
    """A trained run, opened."""

    paths: RunPaths
    config: RunConfig
    provenance: dict[str, Any]  # sha256 and description of the text, versions, device
    vocabulary: Vocabulary
    model: LanguageModel
    params: LMParams
    meta: dict[str, Any]  # of the checkpoint: step, val_loss, ...


def make_model(options: ModelOptions, vocab_size: int) -> LanguageModel:
    """The network that the options describe.

    Raises:
        ValueError: for an unknown cell or sizes that do not fit.
    """
    cells = tuple(cell_from_name(options.cell, options.hidden) for _ in range(options.layers))
    embed = options.embed
    if embed == -1 and options.tie:
        embed = options.hidden
    elif embed == -1:
        embed = 128 if vocab_size <= 256 else 256
    return LanguageModel(vocab_size, Stack(cells), embed, options.tie, options.dropout, options.dtype)


def write_json(path: pathlib.Path, data: Any) -> None:
    """Writes a JSON file by `write_atomic`."""
    write_atomic(path, json.dumps(data, indent=1, ensure_ascii=False).encode("utf-8"))


def read_config(root: str | os.PathLike[str]) -> tuple[RunPaths, RunConfig, dict[str, Any], Vocabulary]:
    """The options, the provenance and the symbols of a run.

    Raises:
        FileNotFoundError: if there is no such run.
        ValueError: if its files are damaged.
    """
    paths = RunPaths(pathlib.Path(root))
    if not paths.config.is_file():
        raise FileNotFoundError(
            f"run: there is no run in {str(root)!r}, {paths.config.name} is missing; train one first."
        )
    try:
        data = json.loads(paths.config.read_text(encoding="utf-8"))
        config = RunConfig.from_json(data["options"])
        provenance = {key: data["provenance"][key] for key in ("sha256", "sources", "n_symbols", "device")}
        provenance |= data["provenance"]
        vocabulary = Vocabulary.from_json(json.loads(paths.vocabulary.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"run: the files of {str(root)!r} are damaged: {error}") from error
    return paths, config, provenance, vocabulary


def open_run(root: str | os.PathLike[str], *, checkpoint: str = "best") -> Run:
    """Opens a trained run on whatever device is there.

    Args:
        root: the run's folder.
        checkpoint: ``"best"`` (lowest validation loss) or ``"last"``.

    Raises:
        FileNotFoundError: if there is no such run or it has no checkpoint yet.
        ValueError: if its files are damaged or do not belong together.
    """
    if checkpoint not in ("best", "last"):
        raise ValueError(f"run: checkpoint must be 'best' or 'last', got {checkpoint!r}.")
    paths, config, provenance, vocabulary = read_config(root)
    found = find_checkpoints(paths.checkpoints)
    if not found:
        raise FileNotFoundError(f"run: {str(root)!r} has no complete checkpoint yet; go on with --resume {root}.")
    chosen = found[-1] if checkpoint == "last" else best(found)
    arrays, meta = load(chosen.path)
    model = make_model(config.model, len(vocabulary))
    like = jax.eval_shape(model.init, jax.random.key(0))
    params = restore(arrays, like, prefix="params", where=str(chosen.path))
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise CheckpointError(f"run: the parameters in {chosen.path} are not finite; remove that folder.")
    return Run(paths, config, provenance, vocabulary, model, jax.device_put(params), meta)
