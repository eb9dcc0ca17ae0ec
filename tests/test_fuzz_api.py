"""A short slice of the fuzzer of the public API; `make fuzz` runs the rest."""

import random

import pytest

from tests.fuzz import fuzz_api


def test_calls_with_arguments_of_every_kind_get_a_result_or_a_sentence():
    assert fuzz_api.fuzz(40, seed=7, only="e") == []


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (ValueError("pool: lengths must lie between 0 and 4, got 7."), ""),
        (TypeError("unroll() missing 1 required positional argument: 'xs'"), ""),
        (AttributeError("'int' object has no attribute 'shape'"), "AttributeError: "),
        (ValueError("operands could not be broadcast together"), "ValueError without a name: "),
        (TypeError("pool: ys must be an array,\ngot [1]."), "TypeError without a name: "),
        (TimeoutError(), "no answer in "),
    ],
)
def test_the_fuzzer_knows_a_sentence(error, found):
    assert fuzz_api.verdict(error).startswith(found) and bool(fuzz_api.verdict(error)) == bool(found)


def test_the_fuzzer_finds_what_is_broken():
    target = fuzz_api.Target("broken", lambda x: x.shape, {"x": None})
    found = [fuzz_api.attempt(target, random.Random(seed)) for seed in range(9)]
    assert any(finding is not None and "AttributeError" in finding.what for finding in found)
