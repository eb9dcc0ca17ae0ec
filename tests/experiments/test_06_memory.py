"""The copy and adding problems against loops, the no-memory lines against samples, and digits as sequences."""

import gzip
import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from experiments.common import DataError
from experiments.idx_files import read_digits, read_idx
from experiments.lru_block import LRUBlock

tasks = importlib.import_module("experiments.06_memory.tasks")
cells = importlib.import_module("experiments.06_memory.cells")


def test_copy_says_the_first_symbols_after_the_mark():
    batch = tasks.copy(np.random.default_rng(0), 7, 5)
    for row in range(5):
        xs, labels = batch["xs"][:, row].tolist(), batch["labels"][:, row].tolist()
        said = xs[:10]
        assert xs == [*said, *[8] * 6, 9, *[8] * 10] and max(said) < 8
        assert labels == [*[8] * 17, *said]
        # From the symbol to its repetition there are lag + 10 steps.
        assert [labels[t + 17] for t in range(10)] == [xs[t] for t in range(10)]


def test_adding_marks_a_number_in_each_half_and_labels_their_sum():
    xs, labels = tasks.adding(np.random.default_rng(1), 9, 40).values()
    for row in range(40):
        marked = np.flatnonzero(xs[:, row, 1])
        assert len(marked) == 2 and marked[0] < 4 <= marked[1]
        assert labels[row] == pytest.approx(xs[marked[0], row, 0] + xs[marked[1], row, 0])


def test_no_memory_lines_are_what_the_best_guess_reaches():
    labels = tasks.adding(np.random.default_rng(2), 20, 20_000)["labels"]
    assert tasks.no_memory("adding", 20) == pytest.approx(np.mean((labels - 1) ** 2), rel=0.03)
    batch = tasks.copy(np.random.default_rng(3), 4, 3)
    logits = np.full((24, 3, 10), -1e9)
    logits[:14, :, 8], logits[14:, :, :8] = 0, 0  # certain of the blank, then uniform over the eight
    losses = -jax.nn.log_softmax(logits)[np.arange(24)[:, None], np.arange(3), batch["labels"]]
    assert tasks.no_memory("copy", 4) == pytest.approx(float(losses.mean()))
    assert tasks.no_memory("copy", 4) == pytest.approx(10 * math.log(8) / 24)


def write_digits(folder, images, labels, part="train"):
    name = {"train": "train", "test": "t10k"}[part]
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))


def test_pixels_are_averaged_split_and_permuted(tmp_path):
    rng = np.random.default_rng(4)
    images, labels = rng.integers(0, 256, (6, 28, 28), np.uint8), np.arange(6, dtype=np.uint8)
    for part in ("train", "test"):
        write_digits(tmp_path, images, labels, part)
    plain = tasks.read_pixels(tmp_path, pool=2, permuted=False, train=3, valid=2, test=4)
    shuffled = tasks.read_pixels(tmp_path, pool=2, permuted=True, train=3, valid=2, test=4)
    assert [plain[part].labels.tolist() for part in plain] == [[0, 1, 2], [4, 5], [0, 1, 2, 3]]
    # Step 15 is the second square of the second row of squares.
    assert plain["train"].xs[1, 15] == pytest.approx(images[1, 2:4, 2:4].mean() / 255)
    steps = [tuple(step) for step in plain["train"].xs.T]  # the values of a step in all images tell it apart
    order = [steps.index(tuple(step)) for step in shuffled["train"].xs.T]
    assert sorted(order) == list(range(196)) != order
    np.testing.assert_array_equal(plain["test"].xs[:, order], shuffled["test"].xs)


def test_damaged_digit_files_are_named(tmp_path):
    images, labels = np.zeros((3, 28, 28), np.uint8), np.array([1, 2, 11], np.uint8)
    write_digits(tmp_path, images, labels)
    with pytest.raises(DataError, match=r"labels-idx1-ubyte.gz: labels must be 0 to 9, got 11 at entry 2\.$"):
        read_digits(tmp_path, "train")
    write_digits(tmp_path, images, labels[:2])
    with pytest.raises(DataError, match=r"labels-idx1-ubyte.gz: must hold a label for each of 3 images, got 2\.$"):
        read_digits(tmp_path, "train")
    write_digits(tmp_path, images[:0], labels[:0])
    with pytest.raises(DataError, match="must hold images of 28 x 28"):
        read_digits(tmp_path, "train")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match=r"images-idx3-ubyte.gz: cannot be read"):
        read_digits(tmp_path, "train")
    (tmp_path / "raw").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 5, 1, 2]))
    with pytest.raises(DataError, match=r"raw: must hold 5 bytes, got 2\.$"):
        read_idx(tmp_path / "raw", 1)
    with pytest.raises(DataError, match="must be an idx file of bytes with 3 axes"):
        read_idx(tmp_path / "raw", 3)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz: is missing"):
        read_digits(tmp_path, "test")


def test_all_cells_have_about_as_many_parameters():
    sizes = {}
    for name in cells.NAMES:
        params = jax.eval_shape(lambda key, name=name: cells.entry(name, 50).cell.init(key, 10), jax.random.key(0))
        sizes[name] = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert max(sizes.values()) < 1.4 * min(sizes.values())
    with pytest.raises(ValueError, match="a cell must be one of Elman, IRNN"):
        cells.entry("lstm", 10)


def test_lru_block_against_a_loop():
    block = LRUBlock(4, r_min=0.5)
    params = block.init(jax.random.key(0), 3)
    xs = np.random.default_rng(5).normal(size=(6, 3)).astype(np.float32)
    _, ys = rnnjax.unroll(block, params, block.initial_state(), jnp.asarray(xs))
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    eigenvalues = np.exp(-np.exp(p.lru.nu_log) + 1j * np.exp(p.lru.theta_log))
    B, C = p.lru.w_ih[:, :4] + 1j * p.lru.w_ih[:, 4:], p.lru.w_hy[:4] + 1j * p.lru.w_hy[4:]

    def gelu(v):
        return 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))

    s = np.zeros(4, complex)
    for x, y in zip(xs, ys):
        u = gelu(x @ p.w_in + p.b_in)
        s = eigenvalues * s + np.exp(p.lru.gamma_log) * (u @ B)
        v = gelu((s @ C).real + u @ p.lru.w_skip)
        np.testing.assert_allclose(y, u + v / (1 + np.exp(-(v @ p.w_gate + p.b_gate))), rtol=2e-5, atol=1e-6)
