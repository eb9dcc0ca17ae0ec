"""Presets: option values by name, which options on the command line override."""

from __future__ import annotations

from typing import Any

from rnnjax.checks import did_you_mean

__all__ = ["PRESETS", "preset_options"]

PRESETS: dict[str, dict[str, Any]] = {
    # Karpathy's char-rnn (2015): its defaults, but for the budget, which was 50 epochs.
    "char-rnn": {
        "cell": "lstm",
        "layers": 2,
        "hidden": 128,
        "embed": 0,
        "batch_size": 50,
        "chunk_len": 50,
        "optimizer": "rmsprop",
        "lr": 2e-3,
        "schedule": "step",
        "decay": 0.97,
        "decay_from": 10,
        "warmup": 0.0,
        "clip": 5.0,
        "clip_by": "value",
    },
    # One wide layer, few large matmuls, a high rate that falls to almost nothing: more for the minute on few cores. The
    # decay of weights is worth a twentieth of a nat in one pass and more in many (docs/training.md).
    "wide": {
        "cell": "lstm",
        "layers": 1,
        "hidden": 512,
        "batch_size": 32,
        "chunk_len": 64,
        "optimizer": "adamw",
        "lr": 8e-3,
        "schedule": "cosine",
        "warmup": 0.02,
        "clip": 1.0,
        "clip_by": "norm",
        "weight_decay": 0.1,
    },
}
# The AWD-LSTM (Merity et al., 2018) with the rates of its small texts, on two layers that a few cores can train. Its
# rate of 30 without momentum is one of 3 with a momentum of 0.9.
PRESETS["awd"] = {
    "level": "word",
    "min_count": 10,
    "cell": "lstm",
    "layers": 2,
    "hidden": 256,
    "tie": True,
    "dropout": 0.3,
    "locked": True,
    "weight_dropout": 0.3,
    "ar": 2.0,
    "tar": 1.0,
    "batch_size": 32,
    "chunk_len": 64,
    "optimizer": "sgd",
    "lr": 3.0,
    "schedule": "constant",
    "warmup": 0.02,
    "clip": 0.25,
    "clip_by": "norm",
    "weight_decay": 1.2e-6,
    "average": 1.0,
    "average_after": 1,
}
# Without a test text, a tenth of the files is held out for validation.
PRESETS["demo"] = PRESETS["wide"] | {"minutes": 4.5, "evals": 9, "fractions": "0.9,0.1,0"}


def preset_options(name: str) -> dict[str, Any]:
    """The options of a preset.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in PRESETS:
        guess = did_you_mean(name, PRESETS) or "."
        raise ValueError(f"--preset: must be one of {', '.join(PRESETS)}, got {name!r}{guess}")
    return PRESETS[name]
