"""Haiku: transformed functions with state, and its depthwise layers."""

import haiku as hk
import jax
import jax.numpy as jnp
from agreement import agree, explained

X = jnp.sin(jnp.arange(4 * 6 * 6 * 8, dtype=jnp.float32)).reshape(4, 6, 6, 8)


def net(x, train=True):
    x = hk.Conv2D(8, 3, feature_group_count=4)(x)
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, train))
    x = hk.DepthwiseConv2D(2, 3)(x)
    return x


def test_training_with_state():
    transformed = hk.transform_with_state(net)

    def loss(params, state):
        out, state = transformed.apply(params, state, jax.random.key(1), X)
        return jnp.mean(out**2), state

    def train():
        params, state = jax.jit(transformed.init)(jax.random.key(0), X)
        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        for _ in range(2):
            (value, state), grads = step(params, state)
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        return value, params, state

    agree(train, grouped=5)


def test_explain():
    transformed = hk.transform_with_state(net)
    params, state = jax.eval_shape(transformed.init, jax.random.key(0), X)
    found = explained(jax.grad(lambda params, state: transformed.apply(params, state, None, X)[0].sum()), params, state)
    assert sorted(role for role, _ in found) == ["dw", "dw", "dx", "forward", "forward"]  # no gradient to the input
    assert "native" not in {name for _, name in found}
