"""Flax nnx: modules with state, remat, an ensemble, an injected convolution, its optimizer."""

import jax
import jax.numpy as jnp
import optax
from agreement import agree, close, explained
from flax import nnx
from inspecting import ran

import jaxgroupconv as jgc

X = jnp.sin(jnp.arange(4 * 6 * 6 * 8, dtype=jnp.float32)).reshape(4, 6, 6, 8)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.grouped = nnx.Conv(8, 16, (3, 3), feature_group_count=4, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.depthwise = nnx.Conv(16, 16, (5, 5), strides=2, feature_group_count=16, rngs=rngs)
        self.out = nnx.Linear(16, 3, rngs=rngs)

    def features(self, x):
        return self.depthwise(self.dropout(nnx.relu(self.norm(self.grouped(x)))))

    def __call__(self, x):
        return self.out(nnx.remat(Net.features)(self, x).mean((1, 2)))


def loss(net):
    return optax.softmax_cross_entropy_with_integer_labels(net(X), jnp.arange(4) % 3).mean()


def test_training():
    def train():
        net = Net(nnx.Rngs(0))
        optimizer = nnx.Optimizer(net, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)

        @nnx.jit
        def step(net, optimizer):
            value, grads = nnx.value_and_grad(loss)(net)
            optimizer.update(net, grads)
            return value

        values = [step(net, optimizer) for _ in range(3)]
        return values, jax.tree.leaves(nnx.state((net, optimizer), nnx.Not(nnx.RngState)))

    agree(train, grouped=5, rtol=1e-3)


def test_explain():
    graph, state = nnx.split(Net(nnx.Rngs(0)))
    found = explained(jax.grad(lambda state: loss(nnx.merge(graph, state)), allow_int=True), state)
    assert {role for role, _ in found} >= {"forward", "dx", "dw"}
    assert "native" not in {name for _, name in found}


def test_an_ensemble_and_a_scan():
    """Three layers, side by side and one after the other."""

    def run():
        @nnx.vmap
        def make(key):
            return nnx.Conv(8, 8, (3, 3), feature_group_count=4, rngs=nnx.Rngs(key))

        net = make(jax.random.split(jax.random.key(0), 3))
        scan = nnx.scan(lambda x, net: nnx.relu(net(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return nnx.vmap(lambda net, x: net(x), in_axes=(0, None))(net, X), scan(X, net)

    agree(run, grouped=2)


def test_an_injected_convolution():
    layer = nnx.Conv(8, 8, (3, 3), feature_group_count=4, conv_general_dilated=jgc.conv_general_dilated, rngs=nnx.Rngs(0))
    plain = nnx.Conv(8, 8, (3, 3), feature_group_count=4, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    assert jax.tree.map(jnp.array_equal, state, nnx.state(plain))

    def step(graph):
        return jax.jit(jax.value_and_grad(lambda state: (nnx.merge(graph, state)(X) ** 2).sum())).lower(state)

    lowered, expected = step(graph), step(nnx.graphdef(plain))
    names = ran(lowered.as_text())
    assert len(names) == 2 and "native" not in names
    assert set(ran(expected.as_text())) == {"native"}
    close(lowered.compile()(state), expected.compile()(state))
