"""Shuffled batches: every example once an epoch, no draw along the way, buckets that cut what is padding alone."""

import gc
import weakref

import jax
import numpy as np
import pytest

from rnnjax.data import ShuffledBatches

KEY = jax.random.key(0)


def ids_of(batches, epoch):
    per = batches.steps_per_epoch
    return [batches(epoch * per + place) for place in range(per)]


@pytest.mark.parametrize(("last", "steps"), [("drop", 3), ("fill", 4)])
def test_an_epoch_is_the_data(last, steps):
    data = (np.arange(14), {"double": 2.0 * np.arange(14)})
    batches = ShuffledBatches(data, batch_size=4, key=KEY, last=last)
    assert batches.steps_per_epoch == steps
    orders = []
    for epoch in range(3):
        found = ids_of(batches, epoch)
        assert all(ids.shape == (4,) and np.array_equal(rest["double"], 2.0 * ids) for ids, rest in found)
        orders.append([int(i) for ids, _ in found for i in ids])
        counts = np.bincount(orders[-1], minlength=14)
        assert sorted(counts) == ([0] * 2 + [1] * 12 if last == "drop" else [1] * 12 + [2] * 2)
    assert orders[0] != orders[1] != orders[2]
    left_out = [set(range(14)) - set(order) for order in orders]
    assert last == "fill" or len({frozenset(out) for out in left_out}) > 1  # others in each epoch


def test_batches_depend_on_the_step_and_the_key_alone():
    data = np.arange(30)
    one, two = (ShuffledBatches(data, 4, key=jax.random.key(5)) for _ in range(2))
    forwards = [one(step) for step in range(20)]
    backwards = [two(step) for step in reversed(range(20))][::-1]
    assert np.array_equal(forwards, backwards)
    assert not np.array_equal(forwards, [ShuffledBatches(data, 4, key=jax.random.key(6))(step) for step in range(20)])
    assert np.array_equal(forwards[0], ShuffledBatches(data, 4, key=jax.random.PRNGKey(5))(0))  # a key of either kind


def test_data_go_with_the_batches():
    """Without waiting for the garbage collector: data sets are large."""
    batches = ShuffledBatches(np.arange(30), 4, key=KEY)
    data = weakref.ref(batches.arrays)
    for step in (0, 9, 20, 3):
        batches(step)
    gc.disable()
    try:
        del batches
        assert data() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("last", ["drop", "fill"])
def test_buckets_cut_padding_alone(last):
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 40, size=101)
    xs = np.zeros((101, 40), np.int64)
    for row, length in zip(xs, lengths, strict=True):
        row[:length] = rng.integers(1, 9, size=length)

    def trim(batch, seq_len):
        return batch | {"xs": batch["xs"][:, :seq_len]}

    arrays = {"xs": xs, "lengths": lengths, "id": np.arange(101)}
    batches = ShuffledBatches(arrays, 8, key=KEY, last=last, lengths=lengths, num_buckets=4, trim=trim)
    shapes, steps, left_out = set(), 0, set()
    for epoch in range(4):
        found = ids_of(batches, epoch)
        seen = np.concatenate([batch["id"] for batch in found])
        counts = np.bincount(seen, minlength=101)
        assert counts.max() == (1 if last == "drop" else 2) and (counts == 0).sum() == (5 if last == "drop" else 0)
        left_out |= set(np.flatnonzero(counts == 0))
        for batch in found:
            shapes.add(batch["xs"].shape)
            steps += batch["xs"].size
            assert batch["xs"].shape[1] >= batch["lengths"].max()
            assert np.array_equal(batch["xs"].sum(1), xs[batch["id"]].sum(1))  # nothing was cut that counts
    assert len(shapes) <= 4 and steps < 0.75 * 4 * 101 * 40
    assert last == "fill" or len(left_out) > 10  # not the shortest, again and again


@pytest.mark.parametrize(("count", "most"), [(15, 1), (40, 5), (400, 8)])
def test_few_batches_have_few_lengths(count, most):
    lengths = np.random.default_rng(2).integers(1, 100, size=4 * count)
    batches = ShuffledBatches(np.ones(4 * count), 4, key=KEY, lengths=lengths, trim=lambda batch, n: n)
    assert {batches(step) for step in range(count)} <= set(batches.boundaries) and len(batches.boundaries) == most


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShuffledBatches({"a": np.ones(3), "b": np.ones(4)}, 2, key=KEY), r"same leading axis .*'a'.* \[3\]"),
        (lambda: ShuffledBatches(np.float32(1), 2, key=KEY), "same leading axis"),
        (lambda: ShuffledBatches({}, 2, key=KEY), "got no arrays"),
        (lambda: ShuffledBatches(np.ones(0), 2, key=KEY), "at least one"),
        (lambda: ShuffledBatches(np.ones(3), 4, key=KEY), "at most the number of examples, 3, got 4"),
        (lambda: ShuffledBatches(np.ones(3), 0, key=KEY), "batch_size must be at least 1"),
        (lambda: ShuffledBatches(np.ones(3), 2, key=KEY, last="pad"), "last must be 'drop' or 'fill', got 'pad'"),
        (lambda: ShuffledBatches(np.ones(3), 2, key=KEY, lengths=[1, 2, 3]), "lengths and trim go together"),
        (
            lambda: ShuffledBatches(np.ones(3), 2, key=KEY, lengths=[1, 2], trim=lambda batch, n: batch),
            r"shape \[N\] with N = 3, got \(2,\)",
        ),
        (lambda: ShuffledBatches(np.ones(3), 2, key=KEY)(-1), "step must be at least 0"),
    ],
)
def test_mistakes_get_a_sentence(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert str(caught.value).startswith("ShuffledBatches: ")
