"""Truncated backpropagation through time against loops written out by hand."""

import gc
import weakref

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax import programs
from rnnjax.online import Lookback
from tests.test_split import script

T, B, SIZE, HIDDEN = 12, 3, 2, 5
CELL = rnnjax.GRU(HIDDEN)


def loss_fn(params, state, chunk):
    state, ys = rnnjax.unroll(CELL, params, state, chunk["x"], resets=chunk.get("resets"), implementation="scan")
    return jnp.mean((ys[..., 0] - chunk["y"]) ** 2), state


slopes = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


@pytest.fixture(scope="module")
def problem():
    key_params, key_x, key_y = jax.random.split(jax.random.key(0), 3)
    params = CELL.init(key_params, SIZE)
    stream = {"x": jax.random.normal(key_x, (T, B, SIZE)), "y": jax.random.normal(key_y, (T, B))}
    return params, CELL.initial_state((B,)), stream


def cut(stream, start, stop):
    return {name: array[start:stop] for name, array in stream.items()}


def run(problem, optimizer, chunk_len, **options):
    params, state, stream = problem
    return rnnjax.tbptt(
        loss_fn, optimizer, params, optimizer.init(params), state, stream, chunk_len=chunk_len, **options
    )


def close(left, right, tolerance=1e-5):
    chex.assert_trees_all_close(left, right, rtol=tolerance, atol=tolerance)


@pytest.mark.quick
@pytest.mark.parametrize("chunk_len", [T, T + 5])
def test_one_chunk_is_full_backpropagation(problem, chunk_len):
    params, state, stream = problem
    result = run(problem, optax.sgd(1.0), chunk_len)
    (loss, final), grads = slopes(params, state, stream)
    close(result.params, jax.tree.map(lambda p, g: p - g, params, grads))
    close(result.state, final)
    close(result.info.loss, loss[None])
    norm = np.sqrt(sum(float(np.sum(np.square(g))) for g in jax.tree.leaves(grads)))
    close(result.info.grad_norm, jnp.asarray([norm]))


@pytest.mark.parametrize("chunk_len", [4, 5])
def test_chunks_carry_the_state_and_cut_the_gradient(problem, chunk_len):
    """chunk_len 5 leaves a shorter last chunk, which is trained on as well."""
    params, state, stream = problem
    losses = []
    for start in range(0, T, chunk_len):
        frozen = jax.tree.map(np.asarray, state)  # numbers alone: no gradient can pass
        chunk = cut(stream, start, start + chunk_len)
        (loss, state), grads = slopes(params, frozen, chunk)
        params = jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)
        losses.append(loss)
    result = run(problem, optax.sgd(0.3), chunk_len)
    close(result.params, params)
    close(result.state, state)
    close(result.info.loss, jnp.stack(losses))


def test_truncation_changes_the_gradient(problem):
    """Otherwise the test above could not tell a cut from none."""
    params, state, stream = problem

    def last_loss(params, state):
        _, state = loss_fn(params, state, cut(stream, 0, 8))
        return loss_fn(params, jax.lax.stop_gradient(state) if truncate else state, cut(stream, 8, T))[0]

    truncate = True
    short = jax.grad(last_loss)(params, state)
    truncate = False
    full = jax.grad(last_loss)(params, state)
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(short, full, strict=True)) > 1e-3


@pytest.mark.parametrize("lookback", [4, 6, 10, 40])
def test_lookback_follows_the_gradient_through_earlier_chunks(problem, lookback):
    """With frozen parameters, update n has the gradient of chunk n's loss back to step max(0, 2 (n + 1) - k2)."""
    params, state, stream = problem
    result = run(problem, optax.sgd(0.0), 2, border=Lookback(lookback))
    for n in range(T // 2):
        start = max(0, 2 * (n + 1) - lookback)

        def window_loss(params, start=start, n=n):
            at_start = state if start == 0 else loss_fn(params, state, cut(stream, 0, start))[1]
            at_start = jax.lax.stop_gradient(at_start)
            near = at_start if start == 2 * n else loss_fn(params, at_start, cut(stream, start, 2 * n))[1]
            return loss_fn(params, near, cut(stream, 2 * n, 2 * n + 2))[0]

        loss, grads = jax.value_and_grad(window_loss)(params)
        close(result.info.loss[n], loss)
        close(result.info.grad_norm[n], optax.tree.norm(grads))
    close(result.state, loss_fn(params, state, stream)[1])


def test_lookback_with_updates_equals_a_loop(problem):
    """The state before a window is the one that earlier parameters left there; nothing else is stale."""
    params, start, stream = problem
    for n in range(T // 3):
        begin = max(0, n - 1)

        def window_loss(params, start=start, begin=begin, n=n):
            after_first = near = start
            if begin < n:
                _, near = loss_fn(params, start, cut(stream, 3 * begin, 3 * n))
                after_first = near
            loss, state = loss_fn(params, near, cut(stream, 3 * n, 3 * n + 3))
            return loss, (after_first, state)

        (_, (start, state)), grads = jax.value_and_grad(window_loss, has_aux=True)(params)
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
    result = run(problem, optax.sgd(0.5), 3, border=Lookback(6))
    close(result.params, params)
    close(result.state, state)


def test_resets_of_single_rows_stop_state_and_gradient(problem):
    """A row with a reset at step 5 trains like two rows of their own."""
    params, state, stream = problem
    resets = jnp.zeros((T, B), bool).at[5, 1].set(True)
    result = run((params, state, stream | {"resets": resets}), optax.sgd(0.0), T)
    row = {"x": stream["x"][:, 1:2], "y": stream["y"][:, 1:2]}
    single = CELL.initial_state((1,))

    def by_hand(params):
        others = {name: jnp.delete(array, 1, axis=1) for name, array in stream.items()}
        rest = loss_fn(params, CELL.initial_state((B - 1,)), others)[0] * T * (B - 1)
        first = loss_fn(params, single, cut(row, 0, 5))[0] * 5
        second = loss_fn(params, single, cut(row, 5, T))[0] * (T - 5)
        return (rest + first + second) / (T * B)

    loss, grads = jax.jit(jax.value_and_grad(by_hand))(params)
    close(result.info.loss[0], loss)
    close(result.info.grad_norm[0], optax.tree.norm(grads))


def test_every_update_gets_a_key_of_its_own(problem):
    params, state, stream = problem

    def noisy(params, state, chunk, *, key):
        return jax.random.uniform(key) + 0.0 * params.b.sum(), state

    optimizer = optax.sgd(0.0)
    arguments = (noisy, optimizer, params, optimizer.init(params), state, stream)
    losses = rnnjax.tbptt(*arguments, chunk_len=5, key=jax.random.key(1)).info.loss
    again = rnnjax.tbptt(*arguments, chunk_len=5, key=jax.random.key(1)).info.loss
    assert len(set(map(float, losses))) == 3 and np.array_equal(losses, again)


def test_chunks_of_one_look_back_get_keys_of_their_own(problem):
    """Pitfall 11: a mask that came again in the chunk before would be half of a dropout."""
    params, _, stream = problem

    def difference(params, state, chunk, *, key):
        draw = jax.random.uniform(key)
        return draw - state + 0.0 * params.b.sum(), draw

    optimizer = optax.sgd(0.0)
    start = jnp.zeros(())
    result = rnnjax.tbptt(
        difference, optimizer, params, optimizer.init(params), start, stream, chunk_len=3, border=Lookback(6),
        key=jax.random.key(1),
    )  # fmt: skip
    assert (jnp.abs(result.info.loss) > 1e-4).all()


def test_parts_of_a_batch_train_as_the_whole(problem):
    """Mean gradients and losses over a mapped axis, and a key for every part."""
    params, _, stream = problem
    parts = {name: jnp.moveaxis(array, 1, 0)[:, :, None] for name, array in stream.items()}  # [B, T, 1, ...]
    optimizer = optax.adam(0.1)

    def train(part, **options):
        return rnnjax.tbptt(
            options.pop("loss_fn", loss_fn), optimizer, params, optimizer.init(params), CELL.initial_state((1,)), part,
            chunk_len=5, axis_name="rows", **options,
        )  # fmt: skip

    got = jax.jit(jax.vmap(train, axis_name="rows"))(parts)
    want = run(problem, optimizer, 5)
    for row in range(B):
        close((got.params, got.info), jax.tree.map(lambda a: np.stack([a] * B), (want.params, want.info)))
        close(got.state.h[row, 0], want.state.h[row])

    def noisy(params, state, chunk, *, key):
        return 0.0 * params.b.sum(), state._replace(h=jax.random.uniform(key, state.h.shape))

    draw = jax.vmap(lambda part: train(part, loss_fn=noisy, key=jax.random.key(0)), axis_name="rows")
    drawn = jax.jit(draw)(parts).state.h
    assert len(np.unique(drawn)) == drawn.size


def test_devices_that_share_a_batch_train_as_one():
    """Under `jax.shard_map` as it is by default, which tells apart what differs between devices."""
    script("""
        import jax, jax.numpy as jnp, numpy as np, optax, rnnjax
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from rnnjax.online import Lookback

        jax.config.update("jax_num_cpu_devices", 2)
        cell, optimizer = rnnjax.GRU(4), optax.adam(0.1)
        params, state = cell.init(jax.random.key(0), 3), cell.initial_state((4,))
        xs = jax.random.normal(jax.random.key(1), (11, 4, 3))

        def loss_fn(params, state, xs):
            state, ys = rnnjax.unroll(cell, params, state, xs, implementation="scan")
            return jnp.mean((ys - xs[..., :1]) ** 2), state, {"height": jnp.mean(xs)}

        def train(params, state, xs, **options):
            options |= {"chunk_len": 4, "border": Lookback(8)}
            found = rnnjax.tbptt(loss_fn, optimizer, params, optimizer.init(params), state, xs, **options)
            return found.params, found.opt_state, found.info, found.state

        want = train(params, state, xs)
        for kind in (AxisType.Auto, AxisType.Explicit):
            mesh = jax.make_mesh((2,), ("rows",), axis_types=(kind,))
            specs = P(), P("rows"), P(None, "rows")
            arrays = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip((params, state, xs), specs)]
            split = jax.shard_map(
                lambda *arrays: train(*arrays, axis_name="rows"),
                mesh=mesh, in_specs=specs, out_specs=(P(), P(), P(), P("rows")),
            )
            got = jax.device_get(jax.jit(split)(*arrays))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
    """)


@pytest.mark.quick
def test_an_epoch_is_one_jit_and_the_next_compiles_nothing(problem):
    params, state, stream = problem
    optimizer = optax.adam(1e-2)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def epoch(params, opt_state, state):
        return rnnjax.tbptt(loss_fn, optimizer, params, opt_state, state, stream, chunk_len=4)

    first = epoch(params, optimizer.init(params), state)
    second = epoch(first.params, first.opt_state, state)
    assert float(second.info.loss.mean()) < float(first.info.loss.mean())
    plain = run(problem, optimizer, 4)
    close(first.params, plain.params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_len": 0}, "chunk_len must be at least 1, got 0"),
        ({"chunk_len": 4, "border": Lookback(6)}, "multiple of chunk_len = 4 as k, got 6; take 8"),
        ({"chunk_len": 4, "border": Lookback(2)}, "multiple of chunk_len = 4 as k, got 2; take 4"),
    ],
)
def test_bad_options_are_refused(problem, options, message):
    with pytest.raises(ValueError, match=message):
        run(problem, optax.sgd(0.1), **options)


@pytest.mark.parametrize("stream", [{"x": jnp.zeros((0, 2))}, {"x": jnp.zeros((3, 2)), "y": jnp.zeros((4, 2))}])
def test_streams_without_one_length_are_refused(problem, stream):
    with pytest.raises(ValueError, match="same leading time axis"):
        run((*problem[:2], stream), optax.sgd(0.1), 2)


def test_a_bare_call_compiles_once_and_its_program_goes_with_the_loss(problem):
    params, state, stream = problem
    optimizer, traces = optax.sgd(0.1), []

    def counted(params, state, chunk):
        traces.append(0)
        return loss_fn(params, state, chunk)

    def call(loss_fn):
        opt_state = optimizer.init(params)
        return rnnjax.tbptt(loss_fn, optimizer, params, opt_state, state, stream, chunk_len=7).params

    first, seen = call(counted), len(traces)
    close(call(counted), first, 0)
    assert 0 < seen == len(traces)
    gone = weakref.ref(counted)
    del counted
    gc.collect()
    assert gone() is None  # and with it everything that was compiled for it


def test_programs_are_told_apart():
    """Bound methods and optimizers by the objects they belong to, options by value."""

    class Model:
        def __init__(self, factor):
            self.factor = factor

        def loss(self, params, state, chunk):
            return self.factor * params.sum() * chunk.mean(), state

    def slope(model, optimizer, chunk_len):
        found = rnnjax.tbptt(
            model.loss, optimizer, jnp.ones(2), optimizer.init(jnp.ones(2)), None, jnp.ones(4), chunk_len=chunk_len
        )
        return float(found.params[0])

    models, fast, slow = (Model(1.0), Model(3.0)), optax.sgd(1.0), optax.sgd(0.5)
    for _ in range(2):
        assert [slope(model, fast, 4) for model in models] == [0.0, -2.0]
        assert slope(models[0], slow, 4) == 0.5 and slope(models[0], fast, 2) == -1.0
    before = len(programs._PROGRAMS)
    del models
    gc.collect()
    assert len(programs._PROGRAMS) <= before - 4


def test_the_program_of_a_long_lookback_is_no_larger(problem):
    """What is compiled for 11 chunks back is what is compiled for 2."""
    params, state, stream = problem
    optimizer = optax.sgd(0.1)

    def size(lookback):
        def call(params):
            border = Lookback(lookback)
            return rnnjax.tbptt(
                loss_fn, optimizer, params, optimizer.init(params), state, stream, chunk_len=1, border=border
            )

        return len(str(jax.make_jaxpr(call)(params)).splitlines())

    assert size(12) <= size(3) + 3


def test_metrics_of_the_loss_are_told_for_every_update(problem):
    params, state, stream = problem

    def measured(params, state, chunk):
        loss, state = loss_fn(params, state, chunk)
        return loss, state, {"level": jnp.mean(chunk["y"])}

    optimizer = optax.sgd(0.1)
    found = rnnjax.tbptt(measured, optimizer, params, optimizer.init(params), state, stream, chunk_len=5)
    close(found.info.metrics["level"], np.array([stream["y"][i : i + 5].mean() for i in (0, 5, 10)]))


@pytest.mark.parametrize("chunk_len", [3, 5])
def test_an_optimizer_may_ask_for_the_loss(problem, chunk_len):
    """The line search of L-BFGS calls it again; gradient descent without one is another trajectory."""
    params, state, stream = problem
    optimizer = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=10))
    found = run(problem, optimizer, chunk_len)
    for n, start in enumerate(range(0, T, chunk_len)):
        chunk = cut(stream, start, start + chunk_len)
        if n == 0:
            opt_state = optimizer.init(params)
        (loss, new), grads = slopes(params, state, chunk)
        updates, opt_state = optimizer.update(
            grads, opt_state, params, value=loss, grad=grads, value_fn=lambda p, s=state, c=chunk: loss_fn(p, s, c)[0]
        )
        params, state = optax.apply_updates(params, updates), new
        close(found.info.loss[n], loss)
    close(found.params, params)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"optimizer": optax.adam}, TypeError, "an optax optimizer such as .* got the function adam; call it"),
        ({"optimizer": optax.GradientTransformation}, TypeError, "an optax optimizer such as"),
        ({"optimizer": 0.1}, TypeError, "an optax optimizer such as .* got 0.1"),
        ({"opt_state": optax.adam(0.1).init({"w": jnp.ones(2)})}, ValueError, r"opt_state must be that of .* got"),
        ({"opt_state": None}, ValueError, "got None; pass optimizer.init"),
        ({"loss_fn": 3}, TypeError, "loss_fn must be a function"),
        ({"loss_fn": lambda p, s, c: jnp.sum(p.b)}, ValueError, r"must return \(loss, state\).* got f32\[\] alone"),
        ({"loss_fn": lambda p, s, c: (s, jnp.sum(p.b))}, ValueError, "return the loss before the state"),
        ({"loss_fn": lambda p, s, c: (p.b, s)}, ValueError, r"one number as its loss, got f32\[15\]; take"),
        ({"loss_fn": lambda p, s, c: (1, s)}, ValueError, "one number as its loss, got"),
        ({"loss_fn": lambda p, s, c: (jnp.sum(p.b), None)}, ValueError, "a state with the shapes and dtypes"),
        ({"loss_fn": lambda p, s, c: (jnp.sum(p.b), s, 3)}, TypeError, "with a dict of metrics"),
        ({"loss_fn": lambda p, s, c: (jnp.sum(p.b), s, {"a": p.b})}, ValueError, "metric 'a' of loss_fn must be one"),
        ({"params": {"w": jnp.ones(2), "n": jnp.arange(3)}}, TypeError, r"floating-point .* got i32\[3\] at \['n'\]"),
        ({"stream": {"x": np.array(["a", "b"])}}, TypeError, r"stream must hold arrays of numbers, got .*\['x'\]"),
        ({"state": "zero"}, TypeError, "state must hold arrays of numbers, got 'zero'"),
        ({"params": {"w": 2**40}}, ValueError, "params must hold integers of at most 31 bits, .* got 1099511627776"),
        ({"key": 0}, TypeError, r"key must be a key of jax.random, got 0; make it"),
        ({"key": jax.random.split(jax.random.key(0))}, ValueError, "key must be one key"),
        ({"chunk_len": 2.0}, TypeError, "chunk_len must be an int, got 2.0"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(problem, changes, kind, message):
    params, state, stream = problem
    optimizer = optax.sgd(0.1)
    arguments = {"loss_fn": loss_fn, "optimizer": optimizer, "params": params, "opt_state": optimizer.init(params)}
    arguments |= {"state": state, "stream": stream, "chunk_len": 4} | changes
    if "params" in changes:
        arguments["opt_state"] = optimizer.init(changes["params"])
    with pytest.raises(kind, match=message) as caught:
        rnnjax.tbptt(**arguments)
    assert str(caught.value).startswith("tbptt: ") and len(str(caught.value)) < 600
