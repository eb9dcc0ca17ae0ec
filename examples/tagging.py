"""Tagging: what is every character of a program, a comment, a string, a word of the language, a name or a number?

python examples/tagging.py [PICTURE]        a minute on two cores"""

import argparse, io, keyword, os, pathlib, sys, tokenize
from matplotlib import pyplot as plt
import jax, numpy as np, optax, rnnjax

TAGS = {"else": "0.6", "comment": "#009e73", "string": "#d55e00", "keyword": "#0072b2", "name": "k", "number": "#c7a"}

def tags_of(text):                                                       # Python's own tokenizer knows the answers
    tags, starts = np.zeros(len(text), np.int32), np.cumsum([0, *map(len, text.splitlines(keepends=True))])
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = {tokenize.COMMENT: 1, tokenize.STRING: 2, tokenize.NAME: 4, tokenize.NUMBER: 5}.get(token.type, 0)
        place = slice(*(starts[line - 1] + column for line, column in (token.start, token.end)))
        tags[place] = 3 if keyword.iskeyword(token.string) else kind
    return tags

text = "".join(pathlib.Path(module.__file__).read_text("utf-8") for module in (argparse, io, tokenize, os))
rows = np.stack([[min(ord(character), 127) for character in text], tags_of(text)], axis=1).astype(np.int32)
rows = rows[: len(rows) // 120 * 120].reshape(-1, 120, 2)                # [N, T, 2]: what is read, what is to be said
train, test = np.split(rows, [len(rows) * 9 // 10])                      # held out: the end of the last file
both = rnnjax.Bidirectional((rnnjax.GRU(48),))                           # it also looks ahead: a quote closes later
model = rnnjax.topologies.ManyToMany(both, output_size=len(TAGS), vocab_size=128, embed_size=16)

def loss_fn(params, batch, *, key):
    return rnnjax.topologies.softmax_loss(model.apply(params, batch[..., 0].T), batch[..., 1].T)

batches = rnnjax.data.ShuffledBatches(train, batch_size=32, key=jax.random.key(0))
fitted = rnnjax.fit.fit(loss_fn, model.init(jax.random.key(1)), optax.adam(5e-3), batches, steps=400)
guess = np.argmax(model.apply(fitted.params, test[..., 0].T), axis=-1).T
always = np.bincount(test[..., 1].ravel()).max() / guess.size
print(f"{np.mean(guess == test[..., 1]):.1%} of the characters are right; always the commonest tag: {always:.1%}")
figure, column, line = plt.figure(figsize=(8, 5)), 0, 2
for k, (name, colour) in enumerate(TAGS.items()):
    figure.text(k / 7, 1, name, color=colour, weight="bold")
for code, tag in zip(test[2:8, :, 0].ravel(), guess[2:8].ravel()):
    figure.text(column / 95, 1 - line / 30, chr(code).strip(), color=list(TAGS.values())[tag], family="monospace")
    column, line = (0, line + 1) if chr(code) == "\n" else (column + 1, line)
plt.savefig(sys.argv[1] if len(sys.argv) > 1 else "tagging.png", dpi=110, bbox_inches="tight")
