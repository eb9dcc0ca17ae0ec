"""Sequences in a CSV file: strokes of a pen, each of its own length, and which sign each of them is.

python examples/csv_sequences.py [PICTURE]        twenty seconds on two cores; draws where a file is named
"""

import csv, os, sys, tempfile
import jax, jax.numpy as jnp, numpy as np, optax, rnnjax

STEPS, KINDS = int(os.environ.get("STEPS", 300)), ("circle", "eight", "wave")
path, rng = os.path.join(tempfile.mkdtemp(), "strokes.csv"), np.random.default_rng(0)
with open(path, "w", newline="") as file:                                # your file: a row a point
    rows = csv.writer(file)
    rows.writerow(["stroke", "kind", "x", "y"])
    for stroke in range(600):
        t = np.linspace(0, 2 * np.pi, rng.integers(15, 40)) * rng.choice([-1, 1]) + rng.uniform(0, 6)
        kind = KINDS[stroke % 3]
        x = t / 3 if kind == "wave" else np.cos(t) if kind == "circle" else np.sin(t)
        points = np.stack([x, np.sin(t) if kind == "circle" else np.sin(2 * t)], 1) * rng.uniform(0.5, 2)
        for point in points + 0.1 * rng.normal(size=points.shape):
            rows.writerow([stroke, kind, *point.round(3)])

strokes = {}
with open(path, newline="") as file:
    for row in csv.DictReader(file):
        strokes.setdefault(row["stroke"], (KINDS.index(row["kind"]), []))[1].append((float(row["x"]), float(row["y"])))
moves = [np.diff(np.array(points, np.float32), axis=0) for _, points in strokes.values()]  # not places
padded, lengths = rnnjax.data.pad_sequences(moves)                       # [T, N, 2], [N]
data = {"x": padded.swapaxes(0, 1), "n": lengths, "y": np.array([kind for kind, _ in strokes.values()])}
train, test = ({name: array[s] for name, array in data.items()} for s in (slice(450), slice(450, 600)))
model = rnnjax.topologies.ManyToOne(rnnjax.GRU(24), output_size=3, input_size=2)

def logits_of(params, batch):
    return model.apply(params, jnp.swapaxes(batch["x"], 0, 1), lengths=batch["n"])

def loss_fn(params, batch, *, key):
    return rnnjax.topologies.softmax_loss(logits_of(params, batch), batch["y"])

batches = rnnjax.data.ShuffledBatches(train, batch_size=50, key=jax.random.key(0))
fitted = rnnjax.fit.fit(loss_fn, model.init(jax.random.key(1)), optax.adam(5e-3), batches, steps=STEPS)
guess = np.asarray(logits_of(fitted.params, test)).argmax(1)
print(f"{np.mean(guess == test['y']):.1%} of 150 new strokes are right; a third by chance")

if len(sys.argv) > 1:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 9, figsize=(8, 2.3), layout="constrained")
    for k, ax in enumerate(axes.flat):
        ax.plot(*np.cumsum(moves[450 + k], 0).T, color="#0072b2" if guess[k] == test["y"][k] else "#d55e00")
        ax.set_title(KINDS[guess[k]], fontsize=8)
        ax.set(xticks=[], yticks=[], aspect="equal")
        ax.spines[:].set_visible(False)
        ax.margins(0.1)
    figure.suptitle("New strokes, and what each is taken for (orange: wrong)", fontsize=9)
    figure.savefig(sys.argv[1], dpi=110)
