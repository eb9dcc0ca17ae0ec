"""Buckets and packing: nothing lost, nothing doubled, and packed documents come out as if each were alone."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rnnjax
from rnnjax import GRU
from rnnjax.data import pack_documents, pad_sequences, unpack_documents
from rnnjax.data.batching import bucket_boundaries, bucket_by_length
from tests.cells_table import fast_jit

KEY = jax.random.key(0)
LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def documents_of(lengths):
    """Every step of every document is a number of its own."""
    numbers = itertools.count(1)
    return [np.asarray([[next(numbers)] for _ in range(length)], np.float32) for length in lengths]


def run(cell, params, xs, **options):
    return rnnjax.unroll(cell, params, cell.initial_state(xs.shape[1:-1]), xs, **options)


# --- buckets ---


@given(LENGTHS, st.integers(1, 7), st.integers(1, 5), st.none() | st.integers(0, 3))
def test_buckets_hold_every_sequence_once(lengths, batch_size, num_buckets, seed):
    buckets = bucket_by_length(lengths, batch_size, num_buckets=num_buckets, seed=seed)
    indices = np.concatenate([batch.indices for batch in buckets.batches])
    assert sorted(indices[indices >= 0]) == list(range(len(lengths)))
    assert (indices < 0).sum() == -len(lengths) % batch_size
    assert all(len(batch.indices) == batch_size for batch in buckets.batches)
    for batch in buckets.batches:
        assert batch.seq_len in buckets.boundaries
        assert batch.seq_len >= max(lengths[i] for i in batch.indices if i >= 0)
    assert len({batch.seq_len for batch in buckets.batches}) <= num_buckets
    steps = sum(batch.seq_len * batch_size for batch in buckets.batches)
    assert buckets.padding == pytest.approx(1 - sum(lengths) / steps)
    if seed is None:
        assert sorted(b.seq_len for b in buckets.batches) == [b.seq_len for b in buckets.batches]


@given(st.lists(st.integers(1, 15), min_size=1, max_size=12), st.integers(1, 4))
def test_boundaries_leave_the_least_padding(lengths, num_buckets):
    def steps(boundaries):
        return sum(min(top for top in boundaries if top >= length) for length in lengths)

    distinct = sorted(set(lengths))
    found = bucket_boundaries(lengths, num_buckets)
    every = (
        (*inner, distinct[-1])
        for count in range(min(num_buckets, len(distinct)))
        for inner in itertools.combinations(distinct[:-1], count)
    )
    assert steps(found) == min(map(steps, every))
    assert list(found) == sorted(set(found)) and len(found) <= num_buckets


def test_boundaries_of_many_lengths():
    lengths = np.random.default_rng(0).permutation(np.arange(1, 5001))
    found = bucket_boundaries(lengths, 5)
    np.testing.assert_allclose(found, [1000, 2000, 3000, 4000, 5000], atol=8)  # lengths are even, so are the best ones


def padded_share(lengths, size):
    """The share of empty steps where rows are padded in the order given."""
    steps = sum(len(part) * part.max() for part in (lengths[i : i + size] for i in range(0, len(lengths), size)))
    return 1 - lengths.sum() / steps


def test_buckets_waste_less_than_padding_and_shuffle_by_seed():
    lengths = np.maximum(1, np.random.default_rng(0).lognormal(3, 0.8, 500)).astype(int)
    first, again, other, plain = (bucket_by_length(lengths, 16, seed=seed) for seed in (0, 0, 1, None))
    ordered = padded_share(np.sort(lengths)[::-1], 16)  # as good as it gets, with a shape for every batch
    assert ordered < first.padding < 0.3 < 0.6 < padded_share(lengths, 16)
    as_lists = [[batch.indices.tolist() for batch in buckets.batches] for buckets in (first, again, other, plain)]
    assert as_lists[0] == as_lists[1] != as_lists[2]
    assert {frozenset(batch) for batch in as_lists[0]} != {frozenset(batch) for batch in as_lists[2]}


def test_a_bucketed_batch_runs():
    documents = documents_of([2, 5, 3])
    buckets = bucket_by_length([2, 5, 3], 2, boundaries=(4, 6))
    assert buckets.boundaries == (4, 6)
    found = []
    for indices, seq_len in buckets.batches:
        xs, lengths = pad_sequences(documents, indices, seq_len)
        assert xs.shape == (seq_len, 2, 1)
        found += [xs[:length, row, 0].tolist() for row, length in enumerate(lengths)]
        assert xs.sum() == sum(documents[i].sum() for i in indices if i >= 0)
    assert sorted(filter(None, found)) == sorted(document[:, 0].tolist() for document in documents)


# --- packing ---


@given(LENGTHS, st.sampled_from(["rows", "streams", "both"]), st.booleans())
def test_packing_loses_and_doubles_nothing(lengths, form, keep_order):
    documents = documents_of(lengths)
    sizes = {"rows": {"seq_len": 30}, "streams": {"num_rows": 4}, "both": {"seq_len": 32, "num_rows": 40}}[form]
    packed = pack_documents(documents, **sizes, keep_order=keep_order)
    T, N = packed.resets.shape
    assert (T, N) == (sizes.get("seq_len", T), sizes.get("num_rows", N))
    for got, document in zip(unpack_documents(packed, packed.xs), documents, strict=True):
        np.testing.assert_array_equal(got, document)
    held = packed.segment_ids >= 0
    assert held.sum() == sum(lengths) and (packed.xs[~held] == 0).all()
    np.testing.assert_array_equal(held, np.arange(T)[:, None] < packed.lengths)  # no gaps before the padding
    np.testing.assert_array_equal(packed.resets, held & (packed.positions == 0))
    np.testing.assert_array_equal(packed.ends, held & (packed.positions == packed.sizes[packed.segment_ids] - 1))
    assert packed.padding == pytest.approx(1 - sum(lengths) / (T * N))
    if form == "rows":  # best fit leaves at most one row half empty
        assert (packed.lengths * 2 <= T).sum() <= 1
    if form == "streams":
        assert packed.lengths.max() - packed.lengths.min() <= max(lengths)
    if keep_order:  # within a row
        assert all((np.diff(row[row >= 0]) >= 0).all() for row in packed.segment_ids.T)


@pytest.mark.parametrize("reverse", [False, True])
def test_packed_documents_come_out_as_if_alone(x64, reverse):
    """Values, and gradients of parameters and inputs, against one unroll a document."""
    cell = GRU(4)
    lengths = [3, 1, 6, 2, 4, 2]
    rng = np.random.default_rng(0)
    documents = [rng.normal(size=(length, 3)) for length in lengths]
    weights = [rng.normal(size=(length, 4)) for length in lengths]
    params = cell.init(KEY, 3, jnp.float64)
    packed = pack_documents(documents, seq_len=7)
    assert packed.resets.sum() == 6 and packed.resets.shape[1] == 3

    def loss(params, xs):
        # Another state than the fresh one: nothing of it may reach a document.
        state = jax.tree.map(lambda leaf: leaf + 9.0, cell.initial_state((3,), jnp.float64))
        options = {"lengths": packed.lengths, "resets": packed.ends if reverse else packed.resets}
        _, ys = rnnjax.unroll(cell, params, state, xs, reverse=reverse, **options)
        return sum(jnp.sum(w * y) for w, y in zip(weights, unpack_documents(packed, ys))), ys

    def alone(params, documents):
        total, outputs = 0.0, []
        for w, document in zip(weights, documents):
            state = cell.initial_state((), jnp.float64)
            _, ys = rnnjax.unroll(cell, params, state, document, reverse=reverse, implementation="scan")
            total += jnp.sum(w * ys)
            outputs.append(ys)
        return total, outputs

    (gradient, dxs), ys = fast_jit(jax.grad(loss, (0, 1), has_aux=True))(params, jnp.asarray(packed.xs))
    (want_gradient, want_dxs), want = fast_jit(jax.grad(alone, (0, 1), has_aux=True))(params, documents)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)
    jax.tree.map(close, unpack_documents(packed, ys), want)
    jax.tree.map(close, gradient, want_gradient)
    jax.tree.map(close, unpack_documents(packed, dxs), want_dxs)


def test_streams_in_chunks_carry_a_document_on(x64):
    """A document longer than a chunk goes on in the next one with the state carried over."""
    cell = GRU(4)
    rng = np.random.default_rng(0)
    documents = [rng.normal(size=(length, 3)) for length in (9, 4, 5)]
    params = cell.init(KEY, 3, jnp.float64)
    packed = pack_documents(documents, num_rows=2)
    assert packed.xs.shape == (9, 2, 3)
    state, pieces = cell.initial_state((2,), jnp.float64), []
    for start in (0, 3, 6):
        part = slice(start, start + 3)
        state, ys = rnnjax.unroll(cell, params, state, jnp.asarray(packed.xs[part]), resets=packed.resets[part])
        pieces.append(ys)
    got = unpack_documents(packed, jnp.concatenate(pieces))[0]
    _, want = rnnjax.unroll(cell, params, cell.initial_state((), jnp.float64), documents[0], implementation="scan")
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_symbols_and_their_targets_share_a_layout():
    texts = [np.frombuffer(text, np.uint8) for text in (b"abcd", b"xy", b"hello", b"q")]
    inputs, targets = (pack_documents(part, seq_len=6) for part in (texts, [text + 1 for text in texts]))
    assert inputs.xs.dtype == np.uint8 and inputs.xs.ndim == 2
    held = inputs.segment_ids >= 0
    np.testing.assert_array_equal(inputs.xs[held] + 1, targets.xs[held])


# --- errors ---


@pytest.mark.quick
def test_an_empty_sequence_takes_the_dtype_of_the_others():
    xs, lengths = pad_sequences([[], [1, 2]], indices=[1, -1, 0])
    np.testing.assert_array_equal(xs, [[1, 0, 0], [2, 0, 0]])
    assert xs.dtype == np.asarray([1]).dtype and lengths.tolist() == [2, 0, 0]


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (
            lambda: bucket_by_length([], 2),
            ValueError,
            "bucket_by_length: lengths must be a list of at least one length",
        ),
        (
            lambda: bucket_by_length([3, 0], 2),
            ValueError,
            "bucket_by_length: lengths must be at least 1, got 0 at index",
        ),
        (lambda: bucket_boundaries([3, -2], 1), ValueError, "bucket_boundaries: lengths must be at least 1, got -2"),
        (lambda: bucket_boundaries([1.5], 1), TypeError, "bucket_boundaries: lengths must be integers, got f64[1]."),
        (lambda: bucket_by_length([3], 0), ValueError, "bucket_by_length: batch_size must be at least 1, got 0."),
        (lambda: bucket_boundaries([3], 1.0), TypeError, "bucket_boundaries: num_buckets must be an int, got 1.0."),
        (
            lambda: bucket_by_length([3, 9], 1, boundaries=(4, 8)),
            ValueError,
            "bucket_by_length: the greatest boundary must hold every sequence, got 8 for a length of 9;",
        ),
        (lambda: pad_sequences([]), ValueError, "pad_sequences: there must be at least one sequence, got none."),
        (
            lambda: pad_sequences([[1, 2]], seq_len=1),
            ValueError,
            "pad_sequences: seq_len must be at least the longest sequence, 2, got 1.",
        ),
        (lambda: pad_sequences([[1, 2]], seq_len=2.5), TypeError, "pad_sequences: seq_len must be an int, got 2.5."),
        (
            lambda: pad_sequences([[1, 2], [3]], indices=[1, 5]),
            ValueError,
            "pad_sequences: indices must lie between 0 and 1, or be -1 for a row that holds nothing, got 5.",
        ),
        (
            lambda: pad_sequences([[1, 2], [3]], indices=[-1, -2]),
            ValueError,
            "pad_sequences: indices must lie between 0 and 1, or be -1 for a row that holds nothing, got -2.",
        ),
        (
            lambda: pad_sequences([[1]], indices=[0.0]),
            TypeError,
            "pad_sequences: indices must be integers, got f64[1].",
        ),
        (
            lambda: pad_sequences([[1]], indices=[[0]]),
            ValueError,
            "pad_sequences: indices must have shape [B], got i64",
        ),
        (lambda: pack_documents([], seq_len=3), ValueError, "pack_documents: there must be at least one document"),
        (
            lambda: pack_documents([[1], []], seq_len=3),
            ValueError,
            "pack_documents: every document must have at least one step, got none in documents[1].",
        ),
        (
            lambda: pack_documents([[], [1, 2]], seq_len=4),
            ValueError,
            "pack_documents: every document must have at least one step, got none in documents[0].",
        ),
        (
            lambda: pack_documents([[1], [1, 2, 3, 4]], seq_len=3),
            ValueError,
            "pack_documents: every document must fit into a row of seq_len = 3, got 4 steps in documents[1]; cut it,",
        ),
        (
            lambda: pack_documents([[1, 2], [1, 2]], seq_len=3, num_rows=1),
            ValueError,
            "pack_documents: the documents must fit into num_rows = 1 rows of seq_len = 3, got 4 steps in documents",
        ),
        (
            lambda: pack_documents([[1, 2], [1.0]], seq_len=3),
            ValueError,
            "pack_documents: every document must be an array [L, ...] with the dtype and the other axes of the first, "
            "i64[2], got f64[1] in documents[1].",
        ),
        (lambda: pack_documents([[1]]), ValueError, "pack_documents: seq_len or num_rows must be given, got neither;"),
        (lambda: pack_documents([[1]], seq_len=0), ValueError, "pack_documents: seq_len must be at least 1, got 0."),
        (
            lambda: unpack_documents(pack_documents([[1]], seq_len=3), np.zeros((4, 1))),
            ValueError,
            "unpack_documents: ys must have shape [3, 1, ...], as the rows of packed, got f64[4,1].",
        ),
    ],
)
@pytest.mark.quick
def test_errors(call, kind, sentence):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(sentence)
