"""The contestants: rnnjax and its rivals, each a small builder from a problem to something that can be called."""

from collections.abc import Callable, Sequence

from benchmarks.contestants import bare, equinox_rnn, flax_rnn, haiku_rnn, keras_rnn, ours, torch_rnn
from benchmarks.contestants.base import (
    FAILURES,
    Contestant,
    Outputs,
    Prepared,
    Problem,
    Skip,
    make_problem,
    precision,
    why,
)

__all__ = [
    "FAILURES",
    "RIVALS",
    "Contestant",
    "Outputs",
    "Prepared",
    "Problem",
    "Skip",
    "build",
    "make_problem",
    "precision",
    "why",
]

RIVALS: dict[str, Callable[[Problem], Contestant]] = {
    "flax.linen": flax_rnn.make_linen,
    "flax.nnx": flax_rnn.make_nnx,
    "haiku": haiku_rnn.make,
    "equinox": equinox_rnn.make,
    "keras": keras_rnn.make,
    "torch": torch_rnn.make,
    "bare scan": bare.make,
}


def build(
    problem: Problem, implementations: Sequence[str], rivals: Sequence[str]
) -> tuple[list[Contestant], dict[str, str]]:
    """The contestants that can take part, ours first, and for every other one the reason why it does not."""
    made: list[Contestant] = []
    skipped: dict[str, str] = {}
    builders: dict[str, Callable[[], Contestant]] = {}
    for name in ours.implementation_names(problem, list(implementations)):
        builders[f"rnnjax {name}"] = lambda name=name: ours.make(problem, name)
    for name in rivals:
        builders[name] = lambda name=name: RIVALS[name](problem)
    for name, builder in builders.items():
        try:
            made.append(builder())
        except Skip as reason:
            skipped[name] = str(reason)
        except FAILURES as error:  # of a rival that does not know the dtype, say; an error of ours is one
            if name not in rivals:
                raise
            skipped[name] = why(error)
    return made, skipped
