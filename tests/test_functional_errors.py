"""Wrong arguments: every error names the parameter, what must hold, and the numbers."""

import re

import jax.numpy as jnp
import pytest

import jaxgroupconv as jgc

X, W = jnp.ones((1, 6, 8, 8)), jnp.ones((12, 2, 3, 3))
XL, WL = jnp.ones((1, 8, 8, 6)), jnp.ones((3, 3, 2, 12))
WT = jnp.ones((6, 2, 3, 3))
AT = "(x: (1, 6, 8, 8), layout NCHW)."
WHERE = "(x: (1, 6, 8, 8), w: (12, 2, 3, 3), layout NCHW)"

CONV_ERRORS = [
    (X, W, dict(layout="NCHX"), ValueError, "`layout` must be one of NCW, NCHW, NCDHW, NWC, NHWC, NDHWC, but got 'NCHX'."),
    (X, W, dict(layout=None), ValueError, "`layout` must be one of NCW, NCHW, NCDHW, NWC, NHWC, NDHWC, but got None."),
    (
        X,
        W,
        dict(layout="NCW"),
        ValueError,
        "`x` must have the axes of layout NCW, but got shape (1, 6, 8, 8). Give the `layout` of your data.",
    ),
    (X, W[0], {}, ValueError, "`w` must have as many axes as `x`, but got shapes (2, 3, 3) and (1, 6, 8, 8) (layout NCHW)."),
    (X, W.astype("bfloat16"), {}, TypeError, "`w` must have the dtype of `x`, but got bfloat16 and float32. Cast one of them."),
    (X, W, dict(groups=0), ValueError, f"`groups` must be at least 1, but got groups=0 {AT}"),
    (X, W, dict(groups=-3), ValueError, f"`groups` must be at least 1, but got groups=-3 {AT}"),
    (X, W, dict(groups=1.5), TypeError, "`groups` must be an integer, but got 1.5."),
    (X, W, dict(groups=True), TypeError, "`groups` must be an integer, but got True."),
    (X, W, dict(groups=4), ValueError, f"`groups` must divide both channel counts, but got groups=4 for 6 input channels {AT}"),
    (
        X,
        W[:10],
        dict(groups=3),
        ValueError,
        f"`groups` must divide both channel counts, but got groups=3 for 10 output channels {AT}",
    ),
    (
        X,
        W,
        dict(groups=2),
        ValueError,
        f"`w` must have C/G = 3 input channels, but got 2 {WHERE} with groups=2. Its layout is (O, C/G, *k).",
    ),
    (XL, WL, dict(groups=2, layout="NHWC"), ValueError, "with groups=2. Its layout is (*k, C/G, O)."),
    (
        X,
        jnp.ones((12, 4, 3, 3)),
        {},
        ValueError,
        "`w` must have a number of input channels that divides the input's, but got 4 for 6 (x: (1, 6, 8, 8), w: (12,",
    ),
    (
        XL,
        W,
        dict(layout="NHWC"),
        ValueError,
        "`groups` must divide both channel counts, but got groups=2 for 3 output channels (x: (1, 8, 8, 6), layout NHWC).",
    ),
    (
        X,
        jnp.ones((12, 0, 3, 3)),
        {},
        ValueError,
        "`w` must have a number of input channels that divides the input's, but got 0 for 6",
    ),
    (X, W, dict(b=jnp.ones(6)), ValueError, "`b` must have shape (12,), one number for each output channel, but got (6,)."),
    (
        X,
        W,
        dict(b=jnp.ones((12, 1, 1))),
        ValueError,
        "`b` must have shape (12,), one number for each output channel, but got (12, 1, 1).",
    ),
    (X, W, dict(b=jnp.ones(12, "int32")), TypeError, "`b` must have the dtype of `x`, but got int32 and float32. Cast it."),
    (X, W, dict(stride=0), ValueError, "`stride` must be at least 1, but got 0."),
    (X, W, dict(stride=(1, -2)), ValueError, "`stride` must be at least 1, but got (1, -2)."),
    (
        X,
        W,
        dict(stride=(1, 1, 1)),
        ValueError,
        "`stride` must have one number for each of the 2 spatial axes, but got (1, 1, 1).",
    ),
    (X, W, dict(stride=1.5), TypeError, "`stride` must be an integer or a sequence of integers, but got 1.5."),
    (X, W, dict(stride="2"), TypeError, "`stride` must be an integer or a sequence of integers, but got '2'."),
    (X, W, dict(dilation=0), ValueError, "`dilation` must be at least 1, but got 0."),
    (X, W, dict(dilation=(2,)), ValueError, "`dilation` must have one number for each of the 2 spatial axes, but got (2,)."),
    (
        X,
        W,
        dict(padding="SAMER"),
        ValueError,
        "`padding` must be 'SAME', 'VALID', 'CAUSAL', integers or pairs, but got 'SAMER'.",
    ),
    (
        X,
        W,
        dict(padding="CAUSAL"),
        ValueError,
        "`padding` must be pairs in 2 dimensions, but got 'CAUSAL', which has a meaning in one only.",
    ),
    (
        X,
        W,
        dict(padding=(1, 1, 1)),
        ValueError,
        "`padding` must have one number or pair for each of the 2 spatial axes, but got (1, 1, 1).",
    ),
    (
        X,
        W,
        dict(padding=((1, 1, 1), 0)),
        ValueError,
        "`padding` must have one number or pair for each of the 2 spatial axes, but got ((1, 1, 1), 0).",
    ),
    (X, W, dict(padding=1.0), TypeError, "`padding` must be an integer, integers, pairs or a word, but got 1.0."),
    (X, W, dict(padding=(1, 0.5)), TypeError, "`padding` must be an integer, integers, pairs or a word, but got (1, 0.5)."),
    (X, W, dict(padding=None), TypeError, "`padding` must be an integer, integers, pairs or a word, but got None."),
    (
        X,
        W,
        dict(dilation=4),
        ValueError,
        f"`w` must not be larger than the padded input, but got a kernel of 9 (dilation included) for a size of 8 {WHERE}.",
    ),
]

TRANSPOSE_ERRORS = [
    (
        X,
        WT[:4],
        {},
        ValueError,
        "`w` must have the input's channels C = 6, but got 4 (x: (1, 6, 8, 8), w: (4, 2, 3, 3), layout",
    ),
    (XL, WL, dict(layout="NHWC"), ValueError, "w: (3, 3, 2, 12), layout NHWC). Its layout is (*k, O/G, C)."),
    (X, WT, dict(groups=0), ValueError, "`groups` must be at least 1, but got groups=0"),
    (X, WT, dict(groups="2"), TypeError, "`groups` must be an integer, but got '2'."),
    (
        X,
        WT,
        dict(groups=4),
        ValueError,
        f"`groups` must divide both channel counts, but got groups=4 for 6 input channels {AT}",
    ),
    (
        X,
        WT,
        dict(groups=3, b=jnp.ones(2)),
        ValueError,
        "`b` must have shape (6,), one number for each output channel, but got (2,).",
    ),
    (X, WT, dict(stride=-1), ValueError, "`stride` must be at least 1, but got -1."),
    (X, WT, dict(output_padding=-1), ValueError, "`output_padding` must be at least 0, but got -1."),
    (
        X,
        WT,
        dict(output_padding=2, stride=2),
        ValueError,
        "`output_padding` must be smaller than the stride or the dilation, but got (2, 2) for stride (2, 2) and",
    ),
    (
        X,
        WT,
        dict(padding="SAME"),
        ValueError,
        "`padding` must be an int, ints or pairs for a transposed convolution, but got 'SAME'.",
    ),
    (
        X,
        WT,
        dict(padding=5),
        ValueError,
        "`padding` must leave a result, but got [(5, 5), (5, 5)] for a full size of [10, 10] (x: (1, 6,",
    ),
    (X, WT.astype("float16"), {}, TypeError, "`w` must have the dtype of `x`, but got float16 and float32. Cast one of them."),
]


@pytest.mark.parametrize(
    ("function", "x", "w", "options", "error", "message"),
    [(jgc.group_conv, *row) for row in CONV_ERRORS] + [(jgc.group_conv_transpose, *row) for row in TRANSPOSE_ERRORS],
    ids=[row[-1].replace("`", "")[:60] for row in CONV_ERRORS + TRANSPOSE_ERRORS],
)
def test_errors_name_the_parameter_and_the_numbers(function, x, w, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        function(x, w, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(groups=4), ValueError, "`groups` must divide both channel counts, but got groups=4 for 6 input channels"),
        (dict(groups=0), ValueError, "`groups` must be at least 1, but got groups=0"),
        (
            dict(kernel_size=(3,)),
            ValueError,
            "`kernel_size` must have one number for each of the 2 spatial axes, but got (3,).",
        ),
        (dict(kernel_size=0), ValueError, "`kernel_size` must be at least 1, but got 0."),
        (dict(features=0), ValueError, f"`features` must be at least 1, but got features=0 {AT}"),
        (dict(features=2.0), TypeError, "`features` must be an integer, but got 2.0."),
        (dict(kernel_size=9), ValueError, "`w` must not be larger than the padded input, but got a kernel of 9"),
        (dict(layout="NCW"), ValueError, "`x` must have the axes of layout NCW, but got shape (1, 6, 8, 8)."),
        (dict(x_shape=(1, -6, 8, 8)), ValueError, "`x_shape` must have no negative size, but got (1, -6, 8, 8)."),
        (dict(x_shape=(None, 6, 8, 8)), TypeError, "`x_shape` must be a sequence of integers, but got (None, 6, 8, 8)."),
        (dict(x_shape=5), TypeError, "`x_shape` must be a sequence of integers, but got 5."),
    ],
)
def test_infer_shapes_has_the_same_errors(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        jgc.infer_shapes(**{"x_shape": (1, 6, 8, 8), "features": 12, "kernel_size": 3} | options)
