"""The options of a run, in groups, and what of them makes it that run."""

from __future__ import annotations

import dataclasses
from typing import Any

import rnnjax
from rnnjax.cells import CELLS
from rnnjax.checks import check_choice, check_flag, check_real, check_size, short
from rnnjax.fit.optimizers import OptimizerOptions
from rnnjax.kinds import check_fields
from rnnjax.online.names import BORDER_NAMES, check_border_name
from rnnjax.options import MAX_LAYERS, MAX_SIZE, check_most, option
from rnnjax.text.corpus import TextOptions

__all__ = ["KINDS", "RESUMABLE", "BudgetOptions", "ModelOptions", "RunConfig", "StreamOptions", "TrainOptions"]

# What a resumed run may change: how long, and how often one looks. All else would be another run.
RESUMABLE = frozenset(
    "steps epochs minutes evals eval_symbols patience sample_length log_every baselines devices valid".split()
)
# Of later versions, whose defaults make no other run.
_LATER = frozenset("border embed_dropout locked weight_dropout ar tar average average_after".split())
_STREAM = {"stream", "valid", "vocabulary_symbols"}
NEW_OPTIONS = frozenset({"devices", "baselines", *_LATER, *_STREAM})  # that folders of older versions lack
MAX_COUNTED = 1_000_000_000  # symbols of a stream, which wait in memory until they are counted
_LOOKED = "What is looked at"
MAX_BUDGET = {"epochs": 1e9, "minutes": 1e7}


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Which network.

    Every field says what it is; besides:

    Attributes:
        embed: size of the symbol embedding; 0 for one-hot inputs; -1 picks: H where tied, else 128 up to 256 symbols
            and 256 above. One-hot inputs learn much slower: a vector of norm 1 through a Glorot matrix hardly moves
            a gate at first.
        tie, dropout, embed_dropout, locked, weight_dropout, ar, tar: see `LanguageModel`; an ``embed_dropout`` of -1 is
            the same as ``dropout``.
    """

    cell: str = option(
        "lstm",
        f"Cell by name, or file.py:Class: {', '.join(sorted(CELLS.keys() - {'conv_lstm'}))}; with options: "
        "elman(activation=relu).",
        "CELL",
    )
    layers: int = option(1, "Layers.", "NUMBER")
    hidden: int = option(512, "Units a layer.", "UNITS")
    embed: int = option(-1, "Size of the embedding; 0: one-hot; -1: 128, or 256 from 257 symbols on.", "SIZE")
    tie: bool = option(False, "Use the embedding's weights for the output too.")
    dropout: float = option(0.0, "Dropout rate on embedding, between layers and on the output.", "RATE")
    embed_dropout: float = option(-1.0, "Another rate on the embedding; -1: the same.", "RATE")
    locked: bool = option(False, "One dropout mask a chunk instead of one a step (variational dropout).")
    weight_dropout: float = option(0.0, "Dropout rate on the recurrent weights.", "RATE")
    ar: float = option(0.0, "Factor of the squares of the outputs, in the loss.", "FACTOR")
    tar: float = option(0.0, "Factor of the squares of their changes from step to step.", "FACTOR")
    dtype: str = option("float32", "Of the matmuls.", "float32|bfloat16")

    def __post_init__(self) -> None:
        where = "ModelOptions"
        check_fields(self, least={"embed": -1}, rates=("dropout", "weight_dropout"))
        check_most(self, layers=MAX_LAYERS, hidden=MAX_SIZE, embed=MAX_SIZE)
        for name, least, below in (("embed_dropout", -1.0, 1.0), ("ar", 0.0, None), ("tar", 0.0, None)):
            check_real(where, name, getattr(self, name), least=least, below=below)
        if -1 < self.embed_dropout < 0:
            raise ValueError(f"{where}: embed_dropout must be -1 or lie in [0, 1), got {self.embed_dropout:g}.")
        check_choice(where, "dtype", self.dtype, ("float32", "bfloat16"))
        if not isinstance(self.cell, str):
            raise TypeError(f"{where}: cell must be the name of a cell, got {short(self.cell)}.")


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How the text is fed, and how often things are looked at.

    Every field says what it is; besides:

    Attributes:
        border: what becomes of gradients beyond the chunk, see `rnnjax.online`; on one device with ``"uoro"``.
        log_every: updates between lines of metrics; explosions are looked for as often.
        evals: evaluations, each with a checkpoint and a sample, spread evenly over the budget.
        eval_symbols: at most so many symbols of the validation text are used while training (the last evaluation
            takes up to 10 million of them); 0 for all.
        patience: stop after so many evaluations without a new best; 0 never stops early.
        sample_length: 0 for none.
        baselines: whether losses of simple models are computed beside the training; None: for a text that is not long.
        devices: that the batch is split over, see `rnnjax.fit.devices`; 0 for a number that fits. A run's folder holds
            the number that was taken (1 where it is older than this option), so that it goes on as it began.
    """

    batch_size: int = option(32, "Parallel streams of text.", "STREAMS")
    chunk_len: int = option(64, "Symbols between updates, and as far as gradients reach back.", "SYMBOLS")
    border: str = option("cut", "What gradients do beyond the chunk.", "|".join(BORDER_NAMES))
    seed: int = option(0, "Of initialisation, dropout and samples.", "NUMBER")
    log_every: int = option(20, "Updates between lines of metrics.", "UPDATES", panel=_LOOKED)
    evals: int = option(
        20, "Evaluations, each with a checkpoint and a sample, over the budget.", "NUMBER", panel=_LOOKED
    )
    eval_symbols: int = option(100_000, "Validation symbols used while training; 0: all.", "SYMBOLS", panel=_LOOKED)
    patience: int = option(
        0, "Stop after so many evaluations without a new best; 0: never.", "EVALUATIONS", panel=_LOOKED
    )
    sample_length: int = option(300, "Symbols of the samples while training.", "SYMBOLS", panel=_LOOKED)
    baselines: bool | None = option(
        None, "N-gram and xz losses of the same split; by default up to 8 million symbols.", panel=_LOOKED
    )
    devices: int = option(
        1, "That share the batch; 0: all accelerators; on a CPU one a core, up to 4 with 8 streams or more.", "NUMBER"
    )

    def __post_init__(self) -> None:
        where = "TrainOptions"
        check_fields(self, least=dict.fromkeys(("seed", "eval_symbols", "patience", "sample_length", "devices"), 0))
        if self.baselines is not None:
            object.__setattr__(self, "baselines", check_flag(where, "baselines", self.baselines))
        object.__setattr__(self, "border", check_border_name(where, self.border))
        _, _, steps = self.border.partition(":")
        if steps and int(steps) % self.chunk_len:
            raise ValueError(
                f"TrainOptions: border must look back a multiple of chunk_len = {self.chunk_len} symbols, got "
                f"{self.border!r}; take lookback:{max(1, round(int(steps) / self.chunk_len)) * self.chunk_len}."
            )
        if self.border == "uoro" and self.devices > 1:
            raise ValueError(
                f"TrainOptions: devices must be 1 with border {self.border!r}, whose trace is one for all rows, got "
                f"{self.devices}."
            )


@dataclasses.dataclass(frozen=True)
class BudgetOptions:
    """How long to train: exactly one of the three is set.

    Attributes:
        minutes: of wall-clock time, everything included. The learning rate then follows the clock, so two such
            runs differ; the other two budgets are exactly repeatable.
    """

    steps: int | None = option(None, "Budget: updates.", "UPDATES")
    epochs: float | None = option(None, "Budget: passes through the training text.", "PASSES")
    minutes: float | None = option(None, "Budget: minutes in all.", "MINUTES")

    def __post_init__(self) -> None:
        given = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        if len(given) != 1:
            what = "none" if not given else " and ".join(given)
            raise ValueError(f"BudgetOptions: exactly one of steps, epochs and minutes must be given, got {what}.")
        ((name, value),) = given.items()
        if name == "steps":
            value = check_size("BudgetOptions", name, value)
        else:
            value = check_real("BudgetOptions", name, value, above=0.0)
            check_most(self, **{name: MAX_BUDGET[name]})
        object.__setattr__(self, name, value)

    def updates(self, steps_per_epoch: int) -> int | None:
        """The budget in updates, None where it is the clock's."""
        return self.steps if self.epochs is None else max(1, round(self.epochs * steps_per_epoch))


@dataclasses.dataclass(frozen=True)
class StreamOptions:
    """A text that is read as it comes, see `rnnjax.lm.batches`.

    Attributes:
        stream: whether it is.
        valid: a file to evaluate on; None holds out a part of the text.
        vocabulary_symbols: the first so many symbols of the text give the vocabulary; later ones that it lacks become
            the unknown symbol. Bytes are known anyway.
    """

    stream: bool = option(False, "Read TEXT as it comes, once and without an end: - or a pipe.")
    valid: str | None = option(None, "Evaluate on this file; by default one part in 20 of the stream.", "FILE")
    vocabulary_symbols: int = option(
        1_000_000, "Take the vocabulary of a stream from its beginning; the rest is unknown.", "SYMBOLS"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        check_most(self, vocabulary_symbols=MAX_COUNTED)
        if self.valid is not None and (not isinstance(self.valid, str) or "\0" in self.valid):
            raise TypeError(f"StreamOptions: valid must be the name of a file, got {short(self.valid)}.")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All options of a run, in groups."""

    text: TextOptions
    model: ModelOptions
    optimizer: OptimizerOptions
    train: TrainOptions
    budget: BudgetOptions
    stream: StreamOptions = StreamOptions()

    def to_json(self) -> dict[str, Any]:
        """Plain dicts; `from_json` is the inverse."""
        return {"rnnjax": rnnjax.__version__, **dataclasses.asdict(self)}

    def flat(self) -> dict[str, Any]:
        """All options by name, whatever their group."""
        return {name: value for group in KINDS for name, value in dataclasses.asdict(getattr(self, group)).items()}

    @classmethod
    def from_json(cls, data: Any) -> RunConfig:
        """The config that `to_json` wrote.

        Raises:
            ValueError: if a group or option is missing, unknown, of another kind or out of range.
        """
        groups = {}
        for name, kind in KINDS.items():
            try:
                known = {field.name for field in dataclasses.fields(kind)}
                values = data.get(name, {}) if name == "stream" else data[name]
                if missing := known - (NEW_OPTIONS | values.keys()):
                    raise ValueError(f"{min(missing)} is missing")
                groups[name] = kind(**values)
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise ValueError(f"config: the file does not hold a run's options ({name}: {error}).") from error
        return cls(**groups)

    def identity(self) -> dict[str, Any]:
        """The options that make it this run and no other: all but the budget and how often one looks.

        The names of the files are none of them: a text may be moved, and what it holds is compared.
        """
        found: dict[str, Any] = {}
        for group, kind in KINDS.items():
            values, fields = dataclasses.asdict(getattr(self, group)), dataclasses.fields(kind)
            usual = {field.name for field in fields if field.name in _LATER and values[field.name] == field.default}
            found[group] = {k: v for k, v in values.items() if k not in RESUMABLE | usual}
        del found["text"]["paths"]
        if not self.stream.stream:  # as in folders from before there were streams
            del found["stream"]
        return found


KINDS: dict[str, Any] = {
    "model": ModelOptions,
    "optimizer": OptimizerOptions,
    "train": TrainOptions,
    "budget": BudgetOptions,
    "stream": StreamOptions,
    "text": TextOptions,  # last: what is wrong elsewhere is better told by the others
}
