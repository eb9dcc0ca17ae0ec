"""Losses, metrics and masks: against torch, NumPy loops and each other; what does not count reaches nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnjax.topologies import (
    accuracy,
    binary_accuracy,
    binary_loss,
    huber_loss,
    masked_mean,
    mse_loss,
    sequence_accuracy,
    softmax_loss,
)
from rnnjax.topologies.parts import length_mask
from tests.cells_table import fast_jit

T, B, V = 5, 4, 3
LENGTHS = np.array([5, 2, 0, 3])
RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.normal(size=(T, B, V)) * 3, RNG.integers(V, size=(T, B))
ANSWERS = RNG.integers(2, size=(T, B)).astype(float)
WEIGHTS = np.array([0.5, 2.0, 1.25])
VALID = np.arange(T)[:, None] < LENGTHS


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_softmax_loss_is_that_of_torch(x64, smoothing, weights):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    labels = np.where(VALID, LABELS, -100)
    want = torch.nn.functional.cross_entropy(
        torch.tensor(LOGITS).reshape(-1, V),
        torch.tensor(labels).reshape(-1),
        weight=None if weights is None else torch.tensor(weights),
        label_smoothing=smoothing,
        ignore_index=-100,
    ).item()
    options = {"label_smoothing": smoothing, "class_weights": weights}
    logits = jnp.asarray(LOGITS)
    many = fast_jit(
        lambda logits: (
            softmax_loss(logits, LABELS, lengths=LENGTHS, **options),
            softmax_loss(logits, LABELS, mask=VALID, **options),
            softmax_loss(logits, labels, ignore_label=-100, **options),
            softmax_loss(logits[VALID], LABELS[VALID], **options),
        )
    )
    for got in many(logits):
        np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_binary_loss_is_that_of_torch_and_of_two_classes(x64, smoothing):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    z, y = LOGITS[..., 0], RNG.uniform(size=(T, B))
    plain = torch.nn.functional.binary_cross_entropy_with_logits
    smooth = (1 - smoothing) * y + smoothing / 2
    want = plain(torch.tensor(z[VALID]), torch.tensor(smooth[VALID])).item()
    got = binary_loss(jnp.asarray(z), y, lengths=LENGTHS, label_smoothing=smoothing)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    two, w = jnp.stack([jnp.zeros_like(z), z], axis=-1), np.array([0.5, 2.0])
    options = {"lengths": LENGTHS, "label_smoothing": smoothing, "class_weights": w}
    want = softmax_loss(two, ANSWERS.astype(int), **options)
    np.testing.assert_allclose(binary_loss(jnp.asarray(z)[..., None], ANSWERS, **options), want, rtol=1e-12)


def test_regression_losses_are_those_of_torch(x64):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    targets = RNG.normal(size=LOGITS.shape)
    p, t = torch.tensor(LOGITS[VALID]), torch.tensor(targets[VALID])
    got = mse_loss(jnp.asarray(LOGITS), targets, lengths=LENGTHS)
    np.testing.assert_allclose(got, torch.nn.functional.mse_loss(p, t).item(), rtol=1e-12)
    for delta in (0.5, 2.0):
        got = huber_loss(jnp.asarray(LOGITS), targets, lengths=LENGTHS, delta=delta)
        np.testing.assert_allclose(got, torch.nn.functional.huber_loss(p, t, delta=delta).item(), rtol=1e-12)


LOSSES = {
    "softmax": (lambda x, **o: softmax_loss(x, LABELS, label_smoothing=0.1, class_weights=WEIGHTS, **o), LOGITS),
    "binary": (lambda x, **o: binary_loss(x, ANSWERS, class_weights=WEIGHTS[:2], **o), LOGITS[..., 0]),
    "mse": (lambda x, **o: mse_loss(x, np.where(VALID, LABELS, np.nan), **o), LOGITS[..., :1]),
    "huber": (lambda x, **o: huber_loss(x, np.where(VALID, LABELS, np.nan), **o), LOGITS[..., 0]),
    "mean": (lambda x, **o: masked_mean(x, **o), LOGITS),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", LOSSES)
def test_what_does_not_count_reaches_neither_loss_nor_gradient(x64, name):
    """Also infinities; the gradient of what counts is that of finite differences."""
    loss, x = LOSSES[name]
    wide = VALID.reshape(VALID.shape + (1,) * (x.ndim - 2))
    measure = fast_jit(jax.value_and_grad(loss))
    clean = measure(jnp.asarray(x), lengths=LENGTHS)
    for dirt in (np.nan, np.inf):
        dirty = measure(np.where(wide, x, dirt), lengths=LENGTHS)
        assert float(dirty[0]) == float(clean[0])
        np.testing.assert_array_equal(dirty[1], clean[1])
    assert not np.asarray(clean[1])[~VALID].any() and np.asarray(clean[1])[VALID].all()
    at = (2, 3, 0)[: x.ndim]
    bump = np.zeros_like(x)
    bump[at] = 1e-6
    slope = (measure(x + bump, lengths=LENGTHS)[0] - measure(x - bump, lengths=LENGTHS)[0]) / 2e-6
    np.testing.assert_allclose(clean[1][at], slope, rtol=1e-6)
    value, slope = measure(x, lengths=np.zeros(B, int))
    assert float(value) == 0 and not np.asarray(slope).any()  # nothing counts


@pytest.mark.quick
def test_masks_and_lengths_together():
    mask = RNG.integers(2, size=(T, B)).astype(bool)
    values = RNG.normal(size=(T, B, 2)).astype(np.float32)
    got = masked_mean(values, lengths=LENGTHS, mask=mask)
    np.testing.assert_allclose(got, values[VALID & mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(masked_mean(values), values.mean(), rtol=1e-5)
    np.testing.assert_allclose(masked_mean(values, mask=mask[:, 0]), values[mask[:, 0]].mean(), rtol=1e-5)
    np.testing.assert_array_equal(length_mask(LENGTHS, T), VALID)


@pytest.mark.quick
def test_a_label_that_is_no_class_shows():
    """It raises, as in torch, but where values are traced: what indexing makes of them would look fine."""
    for label in (V, -1, -100):
        labels = LABELS.copy()
        labels[0, 0] = label
        with pytest.raises(ValueError, match=f"^softmax_loss: labels must lie between 0 and {V - 1}, got values from "):
            softmax_loss(LOGITS, labels)
        assert np.isnan(fast_jit(softmax_loss)(LOGITS, labels))
        assert np.isfinite(softmax_loss(LOGITS, labels, ignore_label=label))


@pytest.mark.quick
def test_metrics_count_by_hand():
    logits, labels = np.round(LOGITS, 1), LABELS
    right = [logits[t, b].argmax() == labels[t, b] for t in range(T) for b in range(B) if VALID[t, b]]
    np.testing.assert_allclose(accuracy(logits, labels, lengths=LENGTHS), np.mean(right), rtol=1e-6)
    second = [
        labels[t, b] in np.argsort(-logits[t, b], kind="stable")[:2]
        for t in range(T)
        for b in range(B)
        if VALID[t, b] and labels[t, b] != 1
    ]
    got = accuracy(logits, labels, lengths=LENGTHS, ignore_label=1, top_k=2)
    np.testing.assert_allclose(got, np.mean(second), rtol=1e-6)
    yes = (logits[..., 0] > 0) == (ANSWERS == 1)
    got = binary_accuracy(logits[..., :1], ANSWERS, lengths=LENGTHS)
    np.testing.assert_allclose(got, yes[VALID].mean(), rtol=1e-6)
    labels = logits.argmax(-1)
    labels[:, 0], labels[2:, 1] = (labels[:, 0] + 1) % V, (labels[2:, 1] + 1) % V  # row 1 is wrong in its padding
    got = sequence_accuracy(logits, labels, lengths=LENGTHS)  # rows: wrong, right, empty, right
    np.testing.assert_allclose(got, 2 / 3, rtol=1e-6)
    for metric in (accuracy, sequence_accuracy):
        assert metric(logits, labels, lengths=np.zeros(B, int)) == 0


@pytest.mark.quick
def test_low_precision_is_summed_in_float32():
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    got = softmax_loss(logits, LABELS)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, softmax_loss(logits.astype(jnp.float32), LABELS), rtol=1e-6)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (
            lambda: softmax_loss(LOGITS, ANSWERS),
            TypeError,
            r"^softmax_loss: labels must be integers, got f32\[5,4\]\.$",
        ),
        (lambda: softmax_loss(LOGITS, LABELS[0]), ValueError, r"must have the shape of the logits without their last"),
        (
            lambda: softmax_loss(LOGITS, LABELS, class_weights=[1, 2]),
            ValueError,
            r"class_weights must have shape \[3\]",
        ),
        (lambda: softmax_loss(LOGITS, LABELS, label_smoothing=2), ValueError, "must lie in \\[0, 1\\], got 2"),
        (
            lambda: softmax_loss(LOGITS, LABELS, lengths=[1, 2]),
            ValueError,
            r"^softmax_loss: lengths must have the batch",
        ),
        (lambda: softmax_loss(LOGITS, LABELS, lengths=[1.0] * 4), TypeError, "lengths must be integers"),
        (lambda: softmax_loss(LOGITS, LABELS, mask=LABELS), TypeError, r"mask must be bool, got i32\[5,4\]; compare"),
        (lambda: softmax_loss(LOGITS, LABELS, mask=VALID.T), ValueError, r"mask must have the first axes of labels"),
        # The classic: [B, 1] - [B] is [B, B].
        (lambda: mse_loss(np.zeros(4), np.zeros((4, 1))), ValueError, r"^mse_loss: predictions must have the shape of"),
        (lambda: binary_loss(np.zeros((4, 2)), np.zeros(4)), ValueError, r"^binary_loss: logits must have the shape"),
        (
            lambda: huber_loss(np.zeros(4), np.zeros(4), delta=0),
            ValueError,
            "huber_loss: delta must be a finite number",
        ),
        (
            lambda: accuracy(LOGITS, LABELS, top_k=4),
            ValueError,
            r"^accuracy: top_k must lie between 1 and 3, got 4",
        ),
    ],
)
def test_errors(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
