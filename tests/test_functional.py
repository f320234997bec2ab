"""The functions people call: lax's own, the friendly one with groups, the transposed one, and shapes without computing."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from inspecting import ran
from jax import lax

import jaxgroupconv as jgc


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


# group_conv


LAYOUTS = {
    "NCW": ((2, 6, 9), (4, 3, 3), "OIW"),
    "NCHW": ((2, 6, 7, 8), (4, 3, 3, 2), "OIHW"),
    "NCDHW": ((1, 4, 4, 5, 4), (6, 2, 2, 3, 2), "OIDHW"),
    "NWC": ((2, 9, 6), (3, 3, 4), "WIO"),
    "NHWC": ((2, 7, 8, 6), (3, 2, 3, 4), "HWIO"),
    "NDHWC": ((1, 4, 5, 4, 4), (2, 3, 2, 2, 6), "DHWIO"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_group_conv_is_lax_s_convolution_in_every_layout(layout):
    x_shape, w_shape, kernel = LAYOUTS[layout]
    x, w, b, ndim = random(*x_shape), random(*w_shape), random(w_shape[kernel.index("O")]), len(layout) - 2
    dilation = (2,) + (1,) * (ndim - 1)
    expected = oracle.conv(
        x,
        w,
        window_strides=(1,) * (ndim - 1) + (2,),
        padding=[(2, 2)] + [(1, 1)] * (ndim - 1),
        lhs_dilation=(1,) * ndim,
        rhs_dilation=dilation,
        dimension_numbers=lax.conv_dimension_numbers(x_shape, w_shape, (layout, kernel, layout)),
        feature_group_count=2,
    )
    bias = np.asarray(b).reshape(tuple(-1 if axis == "C" else 1 for axis in layout))
    options = dict(stride=(1,) * (ndim - 1) + (2,), padding=(2,) + (1,) * (ndim - 1), dilation=dilation, layout=layout)
    close(jgc.group_conv(x, w, b, **options), expected + bias)
    close(jgc.group_conv(x, w, groups=2, **options), expected)


PADDINGS = {
    "one number": (1, ((1, 1), (1, 1))),
    "a numpy integer": (np.int64(1), ((1, 1), (1, 1))),
    "a number for each axis": ((2, 0), ((2, 2), (0, 0))),
    "pairs": (((1, 2), (0, 3)), ((1, 2), (0, 3))),
    "lists": ([[1, 2], [0, 3]], ((1, 2), (0, 3))),
    "negative pairs": (((-1, 2), (3, -2)), ((-1, 2), (3, -2))),
    "VALID": ("VALID", ((0, 0), (0, 0))),
    "SAME": ("SAME", ((1, 1), (2, 2))),
}


@pytest.mark.parametrize(("padding", "pairs"), PADDINGS.values(), ids=PADDINGS)
def test_every_form_of_padding(padding, pairs):
    x, w = random(1, 4, 8, 7), random(4, 2, 3, 3)
    numbers = lax.conv_dimension_numbers(x.shape, w.shape, ("NCHW", "OIHW", "NCHW"))
    ones = dict(window_strides=(1, 1), lhs_dilation=(1, 1), rhs_dilation=(1, 2))
    expected = oracle.conv(x, w, padding=pairs, dimension_numbers=numbers, feature_group_count=2, **ones)
    close(jgc.group_conv(x, w, padding=padding, dilation=(1, 2)), expected)


@pytest.mark.parametrize(("size", "stride"), [(9, 2), (8, 2), (8, 3), (5, 5)])
def test_same_padding_keeps_the_size_divided_by_the_stride(size, stride):
    x, w = random(1, 2, size), random(2, 1, 4)
    out = jgc.group_conv(x, w, padding="SAME", stride=stride, layout="NCW")
    assert out.shape == (1, 2, -(-size // stride))
    close(out, lax.conv_general_dilated(x, w, (stride,), "SAME", feature_group_count=2))


def test_causal_padding_never_looks_ahead():
    x, w = random(1, 2, 9), random(2, 1, 3)
    later = x.at[:, :, 5:].set(jnp.nan)
    out, early = (jgc.group_conv(a, w, padding="CAUSAL", dilation=2, layout="NCW") for a in (x, later))
    assert out.shape == x.shape
    np.testing.assert_array_equal(out[:, :, :5], early[:, :, :5])
    assert np.isnan(early[:, :, 5:]).all()


def test_the_result_s_dtype_may_be_asked_for():
    x, w = (jnp.ones(shape, jnp.bfloat16) for shape in ((1, 4, 5, 5), (4, 2, 3, 3)))
    assert jgc.group_conv(x, w).dtype == jnp.bfloat16
    out = jgc.group_conv(x, w, jnp.ones(4, jnp.bfloat16), preferred_element_type=jnp.float32)
    assert out.dtype == jnp.float32 and (out == 19).all()


def test_zero_items_and_zero_channels():
    assert jgc.group_conv(jnp.ones((0, 4, 5, 5)), jnp.ones((6, 2, 3, 3))).shape == (0, 6, 3, 3)
    assert jgc.group_conv(jnp.ones((2, 0, 5, 5)), jnp.ones((4, 0, 3, 3)), groups=1).shape == (2, 4, 3, 3)


# group_conv_transpose


TRANSPOSED = {
    "plain": ((2, 4, 4, 3), (4, 3, 3, 2), dict(groups=2)),
    "dense": ((1, 3, 4, 4), (3, 2, 2, 2), dict(groups=1, stride=2)),
    "depthwise": ((1, 3, 4, 5), (3, 1, 3, 3), dict(groups=3, stride=2, padding=1)),
    "everything": (
        (1, 4, 4, 3),
        (4, 2, 3, 2),
        dict(groups=2, stride=(2, 3), dilation=(2, 1), output_padding=(1, 2), padding=(1, 0)),
    ),
    "asymmetric": ((1, 4, 4, 3), (4, 1, 3, 4), dict(groups=4, stride=2, padding=((0, 2), (3, 1)))),
    "output padding, nothing cut": ((1, 4, 3, 3), (4, 2, 2, 2), dict(groups=2, stride=3, output_padding=2)),
    "cut beyond the kernel": ((1, 4, 5, 5), (4, 2, 2, 2), dict(groups=2, padding=2, stride=2)),
    "grown": ((1, 4, 3, 3), (4, 2, 2, 2), dict(groups=2, padding=((-1, 0), (-2, 1)))),
    "one dimension": ((2, 6, 5), (6, 1, 4), dict(groups=2, stride=3, padding=2)),
    "three dimensions": (
        (1, 4, 2, 3, 2),
        (4, 1, 2, 2, 3),
        dict(groups=2, stride=(1, 2, 2), output_padding=(0, 1, 0), dilation=(2, 1, 1)),
    ),
}


@pytest.mark.parametrize("channel_last", [False, True], ids=["channel-first", "channel-last"])
@pytest.mark.parametrize(("x_shape", "w_shape", "options"), TRANSPOSED.values(), ids=TRANSPOSED)
def test_group_conv_transpose_scatters(x_shape, w_shape, options, channel_last):
    x, w, ndim, groups = random(*x_shape), random(*w_shape), len(x_shape) - 2, options["groups"]
    b = random(w_shape[1] * groups)
    full = {"stride": 1, "dilation": 1, "output_padding": 0, "padding": 0} | options
    full = {name: (value,) * ndim if isinstance(value, int) and name != "groups" else value for name, value in full.items()}
    full["padding"] = [(p, p) if isinstance(p, int) else p for p in full["padding"]]
    expected = oracle.conv_transpose(x, w, **full) + np.asarray(b).reshape(-1, *(1,) * ndim)
    if channel_last:
        x, w, expected = jnp.moveaxis(x, 1, -1), jnp.moveaxis(w, (0, 1), (-1, -2)), np.moveaxis(expected, 1, -1)
    spatial = "DHW"[-ndim:]
    out = jgc.group_conv_transpose(x, w, b, layout=f"N{spatial}C" if channel_last else f"NC{spatial}", **options)
    assert out.shape == expected.shape
    close(out, expected)


def test_it_is_the_gradient_of_group_conv():
    x, w = random(2, 4, 9, 8), random(6, 2, 3, 3)
    out, transpose = jax.vjp(lambda x: jgc.group_conv(x, w, stride=2, padding=1), x)
    cotangent = random(*out.shape, seed=1)
    close(jgc.group_conv_transpose(cotangent, w, groups=2, stride=2, padding=1, output_padding=(0, 1)), transpose(cotangent)[0])


# infer_shapes


def test_infer_shapes():
    assert jgc.infer_shapes((1, 6, 256, 256), 24, 3, groups=2) == ((24, 3, 3, 3), (24,), (1, 24, 254, 254))
    options = dict(groups=4, stride=(2, 1), padding="SAME", dilation=2, layout="NHWC")
    assert jgc.infer_shapes((2, 9, 8, 12), 8, (3, 2), **options) == ((3, 2, 3, 8), (8,), (2, 5, 8, 8))
    assert jgc.infer_shapes((2, 6, 9), 6, 3, groups=6, padding="CAUSAL", layout="NCW").output == (2, 6, 9)


def test_infer_shapes_computes_nothing():
    shapes = jgc.infer_shapes((1 << 20, 1 << 20, 1 << 20, 1 << 20), 1 << 20, 3)  # 2**80 numbers
    assert shapes.output == (1 << 20, 1 << 20, (1 << 20) - 2, (1 << 20) - 2)


# conv_general_dilated


def test_conv_general_dilated_is_lax_s():
    assert inspect.signature(jgc.conv_general_dilated) == inspect.signature(lax.conv_general_dilated)
    assert jgc.conv_general_dilated.__doc__ == lax.conv_general_dilated.__doc__
    x, w = random(2, 9, 8, 4), random(3, 3, 2, 6)
    args = (x, w, (1, 2), "SAME", (1, 1), (2, 1), ("NHWC", "HWIO", "NHWC"), 2)
    close(jgc.conv_general_dilated(*args), lax.conv_general_dilated(*args))
    with pytest.raises(TypeError):
        jgc.conv_general_dilated(x, w, no_such_parameter=1)


# transformations


@pytest.mark.parametrize("function", [jgc.group_conv, jgc.group_conv_transpose])
def test_jit_grad_and_vmap(function):
    x, w, b = random(3, 2, 4, 5, 5), random(4, 2, 3, 3), random(4)  # four channels in and out, in both meanings of w

    def conv(x, w, b):
        return function(x, w, b, groups=2, stride=2)

    def planned(f, *args, convolutions):
        lowered = jax.jit(f).lower(*args)
        assert len(names := ran(lowered.as_text())) == convolutions and "native" not in names
        return lowered

    each = jnp.stack([conv(item, w, b) for item in x])
    close(jax.vmap(conv, (0, None, None))(x, w, b), each)
    close(planned(jax.vmap(conv, (0, None, None)), x, w, b, convolutions=1).compile()(x, w, b), each)
    gradient = jax.grad(lambda w, x: (conv(x, w, b) ** 2).sum(), (0, 1))
    planned(gradient, w, x[0], convolutions=3)
    per_item, _ = planned(jax.vmap(gradient, (None, 0)), w, x, convolutions=3).compile()(w, x)
    total = jax.jit(jax.grad(lambda w: sum((conv(item, w, b) ** 2).sum() for item in x)))(w)
    assert per_item.shape == (3, *w.shape)
    np.testing.assert_allclose(per_item.sum(0), total, rtol=1e-3, atol=1e-3)


def test_an_empty_spatial_axis_stays_empty():
    assert jgc.group_conv(jnp.ones((1, 6, 0, 8)), jnp.ones((12, 2, 3, 3)), padding="SAME").shape == (1, 12, 0, 8)
