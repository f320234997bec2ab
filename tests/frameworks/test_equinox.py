"""Equinox: filter_jit, an ensemble by filter_vmap, grouped transposed convolution, state, training by Optax."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from agreement import agree, explained

X = jnp.sin(jnp.arange(4 * 8 * 6 * 6, dtype=jnp.float32)).reshape(4, 8, 6, 6)


class Net(eqx.Module):
    down: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    up: eqx.nn.ConvTranspose2d

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.down = eqx.nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4, key=first)
        self.norm = eqx.nn.BatchNorm(16, axis_name="batch", mode="batch")
        self.up = eqx.nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1, groups=8, key=second)

    def __call__(self, x, state):
        y, state = self.norm(self.down(x), state)
        return self.up(jax.nn.relu(y)), state


def test_training():
    optimizer = optax.sgd(0.1, momentum=0.9)

    def loss(net, state):
        out, state = jax.vmap(net, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(X, state)
        return jnp.mean((out - X) ** 2), state

    def train():
        @eqx.filter_jit
        def step(net, state, moments):
            (value, state), grads = eqx.filter_value_and_grad(loss, has_aux=True)(net, state)
            updates, moments = optimizer.update(grads, moments)
            return eqx.apply_updates(net, updates), state, moments, value

        net, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
        moments, values = optimizer.init(eqx.filter(net, eqx.is_array)), []
        for _ in range(3):
            net, state, moments, value = step(net, state, moments)
            values.append(value)
        return values, jax.tree.leaves(eqx.filter((net, moments), eqx.is_array)), jax.tree.leaves(state)

    agree(train, grouped=5, rtol=1e-3)


def test_explain():
    net, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    arrays, rest = eqx.partition(net, eqx.is_inexact_array)

    def loss(arrays, x):
        out, _ = jax.vmap(eqx.combine(arrays, rest), axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)
        return jnp.mean(out**2)

    found = explained(jax.grad(loss, (0, 1)), arrays, X)
    assert (
        sorted(role for role, _ in found) == ["batched dw", "batched dw", "batched dx", "batched dx"] + ["batched forward"] * 2
    )
    assert "native" not in {name for _, name in found}


def test_an_ensemble():
    def run():
        nets = eqx.filter_vmap(lambda key: eqx.nn.Conv2d(8, 8, 3, groups=4, key=key))(jax.random.split(jax.random.key(0), 3))
        gradient = eqx.filter_grad(lambda net, x: jnp.sum(jax.vmap(net)(x) ** 2))
        return eqx.filter_jit(eqx.filter_vmap(gradient, in_axes=(eqx.if_array(0), None)))(nets, X).weight

    agree(run, grouped=2)
