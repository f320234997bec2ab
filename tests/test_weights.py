"""Converted weights compute the same convolution; each layout is checked by the convolution its framework does with it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxgroupconv as jgc
from jaxgroupconv import weights


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conv(x, w, layouts, **options):
    return np.asarray(lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=layouts, **options))


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_channel_first_and_last():
    x, w = random(2, 6, 7, 8), random(4, 3, 3, 2)
    converted = weights.convert(w, "torch", "flax")
    assert isinstance(converted, np.ndarray)
    assert isinstance(weights.convert(jnp.asarray(w), "torch", "flax"), jax.Array)
    expected = conv(x, w, ("NCHW", "OIHW", "NCHW"), feature_group_count=2)
    close(conv(x, converted, ("NCHW", "HWIO", "NCHW"), feature_group_count=2), expected)
    close(jgc.group_conv(x.transpose(0, 2, 3, 1), converted, layout="NHWC"), expected.transpose(0, 2, 3, 1))


def test_keras_depthwise_kernels():
    """Output channel c * M + m is kernel [..., c, m] on input channel c."""
    x, w = random(1, 5, 6, 3), random(2, 3, 3, 4)
    expected = np.stack(
        [
            conv(x[..., c : c + 1], w[:, :, c : c + 1, m : m + 1], ("NHWC", "HWIO", "NHWC"))[..., 0]
            for c in range(3)
            for m in range(4)
        ],
        -1,
    )
    converted = weights.convert(w, "keras_depthwise", "channel_last", groups=3)
    close(jgc.group_conv(x, converted, layout="NHWC"), expected)
    assert weights.convert(w, "keras_depthwise", "torch", groups=3).shape == (12, 1, 2, 3)


@pytest.mark.parametrize("shape", [(6, 1, 3), (6, 1, 3, 2), (6, 1, 2, 3, 2)])
def test_every_conversion_has_its_way_back(shape):
    w = random(*shape)
    for layouts, change, groups in (
        (weights._LAYOUTS, weights.convert, 3),
        (weights._TRANSPOSED_LAYOUTS, weights.convert_transposed, 1),
    ):
        for source in layouts:
            there = change(w, "channel_first", source, groups=groups)
            for target in layouts:
                back = change(change(there, source, target, groups=groups), target, "channel_first", groups=groups)
                np.testing.assert_array_equal(back, w)


GROUPS, X, W = 2, random(1, 6, 4, 5), random(6, 2, 3, 2, seed=1)  # (C, O/G, *k)
OPTIONS = dict(stride=2, padding=1)


def transposed(x, w, **options):
    return np.asarray(jgc.group_conv_transpose(x, w, **OPTIONS, **options))


def test_transposed_channel_last():
    w = weights.convert_transposed(W, "torch", "channel_last", groups=GROUPS)
    assert w.shape == (3, 2, 2, 6)
    close(
        transposed(X.transpose(0, 2, 3, 1), w, groups=GROUPS, layout="NHWC").transpose(0, 3, 1, 2),
        transposed(X, W, groups=GROUPS),
    )


def test_transposed_equinox_weights_are_those_of_the_convolution_of_a_dilated_input():
    w = weights.convert_transposed(W, "torch", "equinox", groups=GROUPS)
    assert w.shape == (4, 3, 3, 2)  # (O, C/G, *k)
    numbers, pads = ("NCHW", "OIHW", "NCHW"), ((1, 1), (0, 0))  # k - 1 - padding
    out = lax.conv_general_dilated(X, w, (1, 1), pads, (2, 2), dimension_numbers=numbers, feature_group_count=GROUPS)
    close(out, transposed(X, W, groups=GROUPS))


@pytest.mark.parametrize(("layout", "transpose_kernel"), [("flax", False), ("flax_transpose_kernel", True), ("keras", True)])
def test_transposed_kernels_of_lax_conv_transpose(layout, transpose_kernel):
    """Flax and Keras call it on (N, *s, C); their kernels are (*k, C, O), or (*k, O, C) with transpose_kernel."""
    w = weights.convert_transposed(W, "torch", layout)
    assert w.shape == ((3, 2, 2, 6) if transpose_kernel else (3, 2, 6, 2))
    numbers = ("NHWC", "HWIO", "NHWC")
    x, pads = X.transpose(0, 2, 3, 1), ((1, 1), (0, 0))
    out = lax.conv_transpose(x, w, (2, 2), pads, dimension_numbers=numbers, transpose_kernel=transpose_kernel)
    close(np.asarray(out).transpose(0, 3, 1, 2), transposed(X, W))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_dense_and_grouped_weights_compute_the_same(layout):
    kernel = {"NCHW": "OIHW", "NHWC": "HWIO"}[layout]
    x = X if layout == "NCHW" else X.transpose(0, 2, 3, 1)
    w = random(4, 2, 3, 2) if layout == "NCHW" else random(3, 2, 2, 6)
    groups = 3
    w = w[:3] if layout == "NCHW" else w
    dense = weights.to_dense(w, groups, layout)
    close(conv(x, dense, (layout, kernel, layout)), jgc.group_conv(x, w, layout=layout))
    np.testing.assert_array_equal(weights.from_dense(dense, groups, layout), w)
    assert isinstance(dense, np.ndarray) and dense.dtype == np.float32
    on_device = weights.to_dense(jnp.asarray(w), groups, layout)
    assert isinstance(on_device, jax.Array)
    np.testing.assert_array_equal(on_device, dense)
    np.testing.assert_array_equal(weights.from_dense(on_device, groups, layout), w)


def test_to_dense_keeps_zeros_beside_a_nan():
    dense = weights.to_dense(np.full((2, 1, 1), np.nan, np.float32), 2, "NCW")
    np.testing.assert_array_equal(dense[:, :, 0], [[np.nan, 0], [0, np.nan]])


ERRORS = [
    (lambda: weights.convert(W, "pytorch", "flax"), "`source` must be one of 'channel_first', 'torch', 'mxnet', 'equinox',"),
    (lambda: weights.convert(W, "torch", "tf"), "'keras_depthwise', but got 'tf'."),
    (
        lambda: weights.convert(W, "torch", "flax", groups=0),
        "`groups` must be at least 1, but got groups=0 (w: (6, 2, 3, 2), torch).",
    ),
    (
        lambda: weights.convert(W, "torch", "keras_depthwise"),
        "`w` must be depthwise, (O, 1, *k) with O a multiple of `groups`, but got (6, 2, 3, 2)",
    ),
    (
        lambda: weights.convert_transposed(W, "torch", "flax", groups=2),
        "`groups` must be 1 for this layout, which has none, but got groups=2",
    ),
    (
        lambda: weights.convert_transposed(W, "torch", "equinox", groups=4),
        "`groups` must divide the weight's first axis, but got groups=4 for 6 (w: (6,",
    ),
    (lambda: weights.to_dense(W, 4), "`groups` must divide the weight's output channels, but got groups=4 for 6."),
    (lambda: weights.to_dense(W, 0), "`groups` must be at least 1, but got groups=0 (w: (6, 2, 3, 2), layout NCHW)."),
    (lambda: weights.to_dense(W, 2, "NCW"), "`w` must have the axes of layout NCW, but got shape (6, 2, 3, 2)."),
    (lambda: weights.to_dense(W, 2, "CHW"), "`layout` must be one of NCW, NCHW,"),
    (lambda: weights.from_dense(W, 3), "`groups` must divide the weight's input channels, but got groups=3 for 2."),
    (
        lambda: weights.from_dense(W, 2),
        "`w` must be zero outside of its 2 diagonal blocks, but got 36 other numbers there (shape (6,",
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[message[:50].replace("`", "") for _, message in ERRORS])
def test_errors(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
