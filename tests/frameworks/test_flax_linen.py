"""Flax linen: BatchNorm's and Dropout's state, remat, scan, an injected convolution, a training loop of Optax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from agreement import agree, close, explained
from inspecting import ran

import jaxgroupconv as jgc

X = jnp.sin(jnp.arange(4 * 6 * 6 * 8, dtype=jnp.float32)).reshape(4, 6, 6, 8)


class Block(nn.Module):
    train: bool = True

    @nn.compact
    def __call__(self, x, _=None):
        y = nn.Conv(8, (3, 3), feature_group_count=4)(x)
        y = nn.BatchNorm(use_running_average=not self.train)(y)
        y = nn.Dropout(0.1, deterministic=not self.train)(nn.relu(y))
        return x + nn.Conv(8, (3, 3), feature_group_count=8, kernel_dilation=2)(y), None


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x, _ = nn.remat(Block)()(x)
        every = dict(variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True, "dropout": True})
        x, _ = nn.scan(Block, length=2, **every)()(x, None)
        x = nn.Conv(16, (3, 3), strides=2, feature_group_count=4)(x)
        return nn.Dense(3)(x.mean((1, 2)))


def test_training():
    net, optimizer = Net(), optax.sgd(0.1, momentum=0.9)

    def loss(params, state, key):
        out, new = net.apply({"params": params, **state}, X, rngs={"dropout": key}, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(out, jnp.arange(4) % 3).mean(), new

    @jax.jit
    def step(params, state, moments, key):
        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params, state, key)
        updates, moments = optimizer.update(grads, moments)
        return optax.apply_updates(params, updates), state, moments, value

    def train():
        state = dict(jax.jit(net.init)({"params": jax.random.key(0), "dropout": jax.random.key(1)}, X))
        params = state.pop("params")
        moments, values = optimizer.init(params), []
        for key in jax.random.split(jax.random.key(2), 3):
            params, state, moments, value = step(params, state, moments, key)
            values.append(value)
        return values, state, params

    agree(train, grouped=9, rtol=1e-3)


def test_explain():
    """The convolutions inside of remat and scan too."""
    net = Net()
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = jax.eval_shape(net.init, keys, X)

    def loss(params, state):
        return net.apply({"params": params, **state}, X, rngs={"dropout": keys["dropout"]}, mutable=["batch_stats"])[0].sum()

    state = dict(variables)
    found = explained(jax.grad(loss), state.pop("params"), state)
    assert {role for role, _ in found} == {"forward", "recomputed", "dx", "dw"}
    assert "native" not in {name for _, name in found}


def test_an_injected_convolution():
    """`conv_general_dilated=` is the way for one layer, without a scope around the program."""
    layer = nn.Conv(8, (3, 3), feature_group_count=4, conv_general_dilated=jgc.conv_general_dilated)
    params = layer.init(jax.random.key(0), X)
    plain = nn.Conv(8, (3, 3), feature_group_count=4)
    lowered, expected = (
        jax.jit(jax.value_and_grad(lambda p, net=net: (net.apply(p, X) ** 2).sum())).lower(params) for net in (layer, plain)
    )
    names = ran(lowered.as_text())
    assert len(names) == 2 and "native" not in names
    assert set(ran(expected.as_text())) == {"native"}
    close(lowered.compile()(params), expected.compile()(params))
