"""Tagging: what is every character of a program, a comment, a string, a word of the language, a name or a number?

python examples/tagging.py [PICTURE]        a minute on two cores; draws where a file is named
"""

import argparse, io, keyword, os, pathlib, sys, tokenize
import jax, numpy as np, optax, rnnjax

STEPS, L = int(os.environ.get("STEPS", 400)), 120
TAGS = {"else": "0.6", "comment": "#009e73", "string": "#d55e00", "keyword": "#0072b2", "name": "k", "number": "#c7a"}

def tags_of(text):                                                       # Python's own tokenizer knows the answers
    tags, starts = np.zeros(len(text), np.int32), np.cumsum([0, *map(len, text.splitlines(keepends=True))])
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = {tokenize.COMMENT: 1, tokenize.STRING: 2, tokenize.NAME: 4, tokenize.NUMBER: 5}.get(token.type, 0)
        kind = 3 if kind == 4 and keyword.iskeyword(token.string) else kind
        tags[starts[token.start[0] - 1] + token.start[1] : starts[token.end[0] - 1] + token.end[1]] = kind
    return tags

texts = [pathlib.Path(module.__file__).read_text("utf-8") for module in (argparse, io, tokenize, os)]
codes = np.array([min(ord(character), 127) for character in "".join(texts)], np.int32)
tags = np.concatenate([tags_of(text) for text in texts])
rows = {"x": codes[: len(codes) // L * L].reshape(-1, L), "y": tags[: len(codes) // L * L].reshape(-1, L)}
cut = len(rows["x"]) * 9 // 10                                           # held out: the end of the last file
train, test = ({name: array[s] for name, array in rows.items()} for s in (slice(cut), slice(cut, None)))

both = rnnjax.Bidirectional((rnnjax.GRU(48),))                           # it also looks ahead: a quote closes later
model = rnnjax.topologies.ManyToMany(both, output_size=len(TAGS), vocab_size=128, embed_size=16)

def loss_fn(params, batch, *, key):
    return rnnjax.topologies.softmax_loss(model.apply(params, batch["x"].T), batch["y"].T)

batches = rnnjax.data.ShuffledBatches(train, batch_size=32, key=jax.random.key(0))
fitted = rnnjax.fit.fit(loss_fn, model.init(jax.random.key(1)), optax.adam(5e-3), batches, steps=STEPS)
guess = np.asarray(model.apply(fitted.params, test["x"].T).argmax(-1)).T
commonest = np.bincount(test["y"].ravel()).max() / guess.size
print(f"{np.mean(guess == test['y']):.1%} of the characters are right; always the commonest tag: {commonest:.1%}")

if len(sys.argv) > 1:
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(8, 5))
    column, line = 0, 0
    for code, tag in zip(test["x"][2:8].ravel(), guess[2:8].ravel()):
        ax.text(column, -line, chr(code).strip(), color=list(TAGS.values())[tag], family="monospace", fontsize=8)
        column, line = (0, line + 1) if chr(code) == "\n" else (column + 1, line)
    for k, (name, colour) in enumerate(TAGS.items()):
        ax.text(12 * k, 2, name, color=colour, fontsize=9, weight="bold")
    ax.set(xlim=(0, 95), ylim=(-line - 1, 3.5))
    ax.axis("off")
    figure.savefig(sys.argv[1], dpi=110, bbox_inches="tight")
