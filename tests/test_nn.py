"""Layers are pytrees of arrays with static geometry, and compute what the functions compute."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgroupconv as jgc
from jaxgroupconv import nn

KEY = jax.random.key(0, impl="rbg")  # compiles sooner
OPTIONS = dict(groups=3, stride=(2, 1), padding=((1, 0), (2, 1)), dilation=(1, 2))


def layers():
    yield "conv", nn.GroupConv.init(KEY, 6, 12, (3, 2), **OPTIONS), (2, 6, 8, 7), jgc.group_conv, OPTIONS
    same = dict(groups=2, padding="SAME", layout="NWC")
    yield "conv, channel-last", nn.GroupConv.init(KEY, 6, 4, 3, **same), (2, 7, 6), jgc.group_conv, same
    depthwise = nn.depthwise_conv(KEY, 4, 3, multiplier=2, padding=1, bias=False)
    yield "depthwise", depthwise, (1, 4, 5, 5), jgc.group_conv, dict(groups=4, padding=1)
    transposed = OPTIONS | dict(output_padding=(1, 1))
    yield (
        "transposed",
        nn.GroupConvTranspose.init(KEY, 6, 3, 3, **transposed),
        (2, 6, 4, 4),
        jgc.group_conv_transpose,
        transposed,
    )
    last = dict(groups=2, stride=2, layout="NHWC")
    yield (
        "transposed, channel-last",
        nn.GroupConvTranspose.init(KEY, 6, 4, 2, **last),
        (1, 4, 4, 6),
        jgc.group_conv_transpose,
        last,
    )


LAYERS = {name: row for name, *row in layers()}


@pytest.mark.parametrize(("layer", "shape", "function", "options"), LAYERS.values(), ids=LAYERS)
def test_a_layer_is_its_function(layer, shape, function, options):
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    if layer.b is not None:
        layer = dataclasses.replace(layer, b=jnp.arange(layer.b.size, dtype=jnp.float32))
    np.testing.assert_array_equal(layer(x), function(x, layer.w, layer.b, **options))


def test_shapes_of_weights():
    shapes = {name: (row[0].w.shape, row[0].b is not None and row[0].b.shape) for name, row in LAYERS.items()}
    assert shapes == {
        "conv": ((12, 2, 3, 2), (12,)),
        "conv, channel-last": ((3, 3, 4), (4,)),
        "depthwise": ((8, 1, 3, 3), False),
        "transposed": ((6, 1, 3, 3), (3,)),
        "transposed, channel-last": ((2, 2, 2, 6), (4,)),
    }


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_initial_variance_is_one_over_the_inputs_of_an_output(layout):
    """C/G * prod(k) = 16 * 9 inputs; some 37000 samples give the deviation within a percent or two."""
    conv = nn.GroupConv.init(KEY, 64, 256, 3, groups=4, layout=layout)
    transposed = nn.GroupConvTranspose.init(KEY, 64, 256, 3, groups=4, layout=layout)
    for layer in (conv, transposed):
        assert layer.w.size == 36864
        np.testing.assert_allclose(layer.w.std(), (16 * 9) ** -0.5, rtol=0.03)
        np.testing.assert_allclose(layer.w.mean(), 0, atol=0.002)
        assert abs(layer.w).max() < 2.3 * (16 * 9) ** -0.5  # truncated at two deviations of the normal before it
        assert not layer.b.any()


def test_keys_and_dtypes():
    a, b, c = (nn.GroupConv.init(jax.random.key(seed, impl="rbg"), 2, 2, 3, dtype=jnp.bfloat16) for seed in (0, 0, 1))
    assert a.w.dtype == a.b.dtype == jnp.bfloat16
    assert (a.w == b.w).all() and not (a.w == c.w).all()
    assert a(jnp.ones((1, 2, 4, 4), jnp.bfloat16)).dtype == jnp.bfloat16


def test_layers_are_pytrees_with_static_geometry():
    layer, shape, _, _ = LAYERS["conv"]
    leaves, structure = jax.tree.flatten(layer)
    assert [leaf.shape for leaf in leaves] == [(12, 2, 3, 2), (12,)]
    assert hash(structure) == hash(
        jax.tree.structure(nn.GroupConv.init(jax.random.key(5, impl="rbg"), 6, 12, [3, 2], **OPTIONS))
    )
    assert structure != jax.tree.structure(dataclasses.replace(layer, stride=(1, 1)))
    assert [str(path[0]) for path, _ in jax.tree_util.tree_leaves_with_path(layer)] == [".w", ".b"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        layer.w = None


def test_training_with_jit_grad_and_tree_map():
    """Gradient descent finds the weights of another layer."""
    options = dict(groups=2, padding="SAME", layout="NCW")
    layer, goal = (nn.GroupConv.init(jax.random.key(seed, impl="rbg"), 4, 4, 3, **options) for seed in (0, 1))
    x = jax.random.normal(KEY, (8, 4, 16))

    @jax.jit
    def step(layer):
        loss, gradient = jax.value_and_grad(lambda layer: ((layer(x) - goal(x)) ** 2).mean())(layer)
        return loss, jax.tree.map(lambda weight, slope: weight - 0.5 * slope, layer, gradient)

    losses = []
    for _ in range(60):
        loss, layer = step(layer)
        losses.append(loss)
    assert losses[-1] < 1e-3 * losses[0]


def test_vmap_over_data_and_over_layers():
    layer, shape, _, _ = LAYERS["conv"]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, *shape)), jnp.float32)
    np.testing.assert_allclose(jax.vmap(layer)(x)[1], layer(x[1]), rtol=1e-5, atol=1e-5)
    ensemble = jax.vmap(lambda key: nn.GroupConv.init(key, 6, 12, (3, 2), **OPTIONS))(jax.random.split(KEY, 3))
    assert ensemble.w.shape == (3, 12, 2, 3, 2)
    second = jax.tree.map(lambda leaf: leaf[1], ensemble)
    np.testing.assert_allclose(jax.vmap(lambda layer, x: layer(x))(ensemble, x)[1], second(x[1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("init", [nn.GroupConv.init, nn.GroupConvTranspose.init])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            dict(groups=4),
            ValueError,
            "`groups` must divide both channel counts, but got groups=4 for 6 input channels (channels 6,",
        ),
        (dict(groups=0), ValueError, "`groups` must be at least 1, but got groups=0 (channels 6, features 12, layout NCHW)."),
        (dict(features=0), ValueError, "`features` must be at least 1, but got features=0"),
        (dict(channels=6.0), TypeError, "`channels` must be an integer, but got 6.0."),
        (dict(kernel_size=(3, 3, 3)), ValueError, "`kernel_size` must have one number for each of the 2 spatial axes"),
        (dict(stride=-1), ValueError, "`stride` must be at least 1, but got -1."),
        (dict(dilation=(1, 0)), ValueError, "`dilation` must be at least 1, but got (1, 0)."),
        (dict(padding=(1, 1, 1)), ValueError, "`padding` must have one number or pair for each of the 2 spatial axes"),
        (dict(padding="SAMER"), ValueError, "`padding` must be "),
        (dict(padding="CAUSAL"), ValueError, "`padding` must be "),
        (dict(layout="NCX"), ValueError, "`layout` must be one of NCW, NCHW,"),
    ],
)
def test_errors_when_a_layer_is_made(init, changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        init(KEY, **{"channels": 6, "features": 12, "kernel_size": 3} | changes)


def test_more_errors():
    with pytest.raises(ValueError, match="`multiplier` must be at least 1, but got multiplier=0"):
        nn.depthwise_conv(KEY, 4, 3, multiplier=0)
    with pytest.raises(
        ValueError, match="`padding` must be an int, ints or pairs for a transposed convolution, but got 'SAME'"
    ):
        nn.GroupConvTranspose.init(KEY, 4, 4, 3, padding="SAME")
    with pytest.raises(ValueError, match="`output_padding` must be at least 0, but got -1"):
        nn.GroupConvTranspose.init(KEY, 4, 4, 3, output_padding=-1)
    with pytest.raises(ValueError, match=re.escape("`w` must have C/G = 2 input channels, but got 1")):
        nn.GroupConv.init(KEY, 4, 4, 3, groups=4)(jnp.ones((1, 8, 5, 5)))
