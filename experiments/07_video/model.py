"""Networks that label every frame, and how their labels are judged."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import rnnjax
from rnnjax.topologies import binary_loss, softmax_loss

from . import clips

__all__ = ["Answer", "FrameTagger", "judge", "loss_of"]


class Answer(NamedTuple):
    """Logits for every frame."""

    present: jax.Array  # [T, B, 10]
    moves: jax.Array  # [T, B, 10, 4]


class Params(NamedTuple):
    """Parameters of `FrameTagger`."""

    kernels: tuple[jax.Array, ...]  # [5, 5, 1, C] and [3, 3, C, C]
    biases: tuple[jax.Array, ...]
    cell: Any
    w_out: jax.Array  # [C + H, 50]
    b_out: jax.Array  # [50]


@dataclasses.dataclass(frozen=True)
class FrameTagger:
    r"""Two convolutions of each frame by itself, a recurrent cell, and an answer a frame.

        e_t        = relu(conv_3(relu(conv_5(frame_t, stride 2))))        [8, 8, C]
        state, y_t = cell.step(state, e_t)
        answer_t   = [max over places of e_t, max over places of y_t, or y_t itself] @ w_out + b_out

    Args:
        network: ``"conv_lstm"``, which keeps its state as an image, or ``"lstm"``, which reads ``e_t`` flattened.
        channels: C.
        hidden_size: H, channels or units.
        memory: if not, the state is reset before every frame: the same network, which sees one frame alone.
    """

    network: str = "conv_lstm"
    channels: int = 32
    hidden_size: int = 32
    memory: bool = True

    @property
    def _side(self) -> int:
        return clips.CANVAS // 2

    @property
    def cell(self) -> Any:
        """The recurrent cell."""
        if self.network == "lstm":
            return rnnjax.LSTM(self.hidden_size)
        return rnnjax.ConvLSTM(self.hidden_size, spatial_shape=(self._side, self._side))

    def init(self, key: jax.Array) -> Params:
        keys = jax.random.split(key, 4)
        C, H, he = self.channels, self.hidden_size, jax.nn.initializers.he_normal()
        inputs = C if self.network == "conv_lstm" else C * self._side**2
        return Params(
            kernels=(he(keys[0], (5, 5, 1, C)), he(keys[1], (3, 3, C, C))),
            biases=(jnp.zeros(C), jnp.zeros(C)),
            cell=self.cell.init(keys[2], inputs),
            w_out=rnnjax.initializers.Glorot()(keys[3], (C + H, 50)),
            b_out=jnp.zeros(50),
        )

    def apply(self, params: Params, frames: jax.Array) -> Answer:
        """Logits of every frame of ``frames [T, B, 16, 16]``; without memory none knows of another."""
        T, B = frames.shape[:2]
        x = frames.reshape(T * B, *frames.shape[2:], 1)
        for kernel, bias, stride in zip(params.kernels, params.biases, (2, 1)):
            layout = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=layout)
            x = jax.nn.relu(x + bias)
        seen = x.max(axis=(1, 2)).reshape(T, B, -1)
        x = x.reshape(T, B, *(x.shape[1:] if self.network == "conv_lstm" else (-1,)))
        resets = None if self.memory else jnp.ones((T, B), bool)
        _, ys = rnnjax.unroll(self.cell, params.cell, self.cell.initial_state((B,)), x, resets=resets)
        if self.network == "conv_lstm":
            ys = ys.max(axis=(2, 3))
        logits = jnp.concatenate([seen, ys], axis=-1) @ params.w_out + params.b_out
        return Answer(logits[..., :10], logits[..., 10:].reshape(T, B, 10, 4))


def loss_of(answer: Answer, present: jax.Array, moves: jax.Array) -> jax.Array:
    """Nats a frame for which digits are there, and nats a move for where they go."""
    what = 10 * binary_loss(answer.present, present)  # the sum over the ten digits
    return what + softmax_loss(answer.moves, moves, ignore_label=clips.UNKNOWN)


def judge(answer: Answer, present: Any, moves: Any) -> dict[str, Any]:
    """How good the labels of all frames are.

    Returns:
        ``digits``: the share of frames in which exactly the right digits are named; ``f1`` of the single digits;
        ``moves``: the share of moves that are right, of digits that were there one frame before; ``frames``: the share
        of the frames in which all of that is right.
    """
    named = answer.present > 0
    right = named == present
    known = moves != clips.UNKNOWN
    guessed = answer.moves.argmax(axis=-1) == moves
    exact = right.all(axis=-1)
    return {
        "digits": exact.mean(),
        "f1": 2 * (named & present).sum() / (named.sum() + present.sum()),
        "moves": (guessed & known).sum() / known.sum(),
        "frames": (exact & (guessed | ~known).all(axis=-1)).mean(),
    }
