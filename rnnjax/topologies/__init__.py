"""Topologies: models that map one or many inputs to one or many outputs, and the losses that train them.

| model | reads | answers |
|---|---|---|
| `OneToOne` | one input | once |
| `OneToMany` | one input | a sequence, from a state that the input starts |
| `ManyToOne` | a sequence | once, from the last step, a mean, a maximum or attention |
| `ManyToMany` | a sequence | at every step (synced) |
| `EncoderDecoder` | a sequence | another sequence, once all is read (delayed), with or without attention |

Each is a frozen dataclass with ``init(key) -> params`` and ``apply(params, xs, ...) -> outputs``, and nothing but a
network, a way in and a way out. Symbols come as integers (``vocab_size``), everything else as numbers
(``input_size``); rows of different lengths come padded, with ``lengths``.

>>> import jax, jax.numpy as jnp, rnnjax
>>> model = rnnjax.topologies.ManyToOne(rnnjax.GRU(8), output_size=3, vocab_size=5, pooling="mean", dropout=0.2)
>>> params = model.init(jax.random.key(0))
>>> symbols, lengths, labels = jnp.zeros((7, 2), int), jnp.array([7, 4]), jnp.array([2, 0])
>>> def loss_fn(params, key):
...     logits = model.apply(params, symbols, lengths=lengths, key=key)
...     return rnnjax.topologies.softmax_loss(logits, labels, label_smoothing=0.1)
>>> loss, gradient = jax.value_and_grad(loss_fn)(params, jax.random.key(1))
"""

from rnnjax.cells import describable
from rnnjax.topologies import bridge
from rnnjax.topologies.attention import Attention
from rnnjax.topologies.encoder_decoder import EncoderDecoder
from rnnjax.topologies.losses import (
    accuracy,
    binary_accuracy,
    binary_loss,
    huber_loss,
    mse_loss,
    sequence_accuracy,
    softmax_loss,
)
from rnnjax.topologies.many_to_many import ManyToMany
from rnnjax.topologies.many_to_one import ManyToOne, OneToOne
from rnnjax.topologies.one_to_many import OneToMany
from rnnjax.topologies.parts import masked_mean

__all__ = [
    "Attention",
    "EncoderDecoder",
    "ManyToMany",
    "ManyToOne",
    "OneToMany",
    "OneToOne",
    "accuracy",
    "binary_accuracy",
    "binary_loss",
    "huber_loss",
    "masked_mean",
    "mse_loss",
    "sequence_accuracy",
    "softmax_loss",
]

for _kind in (Attention, bridge.ContextState, EncoderDecoder, ManyToMany, ManyToOne, OneToMany, OneToOne):
    describable(_kind)
