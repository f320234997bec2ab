"""What the mark does: a program's convolutions are lowered as planned, forward and backward; no other program changes."""

import re
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import AVAILABLE, CASES
from inspecting import ran
from jax import lax

import jaxgroupconv as jgc
from jaxgroupconv import LOWERINGS

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 8, 8)), jnp.float32)
W = jnp.asarray(np.random.default_rng(1).standard_normal((6, 2, 3, 3)), jnp.float32)


def conv(x, w, padding="SAME"):
    return lax.conv_general_dilated(x, w, (1, 1), padding, feature_group_count=x.shape[1] // w.shape[1])


def gradients(x, w):
    return jax.grad(lambda x, w: (conv(x, w) ** 2).sum(), (0, 1))(x, w)


def text(function, *args):
    return jax.jit(function).lower(*args).as_text()


def names(function, *args, platform="cpu"):
    return [entry.plan.name for entry in jgc.explain(function, *args, platform=platform).entries]


def test_each_lowering_runs_when_it_is_asked_for():
    for name in AVAILABLE:
        case = next(
            case for case in CASES if LOWERINGS[name].why_not(case.spec) is None and not case.spec.lhs_dtype.itemsize > 4
        )
        with jgc.accelerate(name):
            lowered = text(lambda x, w, case=case: lax.conv_general_dilated(x, w, **case.params), *case.arrays())
        assert ran(lowered) == [name]


@pytest.mark.parametrize("name", [name for name in LOWERINGS if name not in ("feature_groups", "onednn")])
def test_a_forced_lowering_runs_forward_and_backward(name):
    assert ran(text(jgc.accelerate(name)(conv), X, W)) == [name]
    assert ran(text(jgc.accelerate(name)(gradients), X, W)) == [name] * 3


def test_an_array_is_reshaped_only_where_something_uses_it_in_that_shape():
    """A product of 1x1 kernels: both operands become matrices, and the result becomes maps."""
    x, w = jnp.ones((2, 6, 6, 8)), jnp.ones((1, 1, 8, 4))

    @jgc.accelerate("matmul")
    def pointwise(x, w):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert text(pointwise, x, w).count("stablehlo.reshape") == 3
    np.testing.assert_array_equal(jax.jit(pointwise)(x, w), np.full((2, 6, 6, 4), 8))


def test_the_planned_lowerings_run_forward_and_backward():
    planned = jgc.accelerate(gradients)
    expected = names(planned, X, W)
    assert ran(text(planned, X, W)) == expected
    assert len(expected) == 3 and "native" not in expected
    for actual, lax_s in zip(jax.jit(planned)(X, W), gradients(X, W), strict=True):
        np.testing.assert_allclose(actual, lax_s, rtol=1e-4, atol=1e-3)


def test_the_functions_of_this_package_are_marked():
    assert ran(text(jgc.group_conv, X, W)) == names(jgc.group_conv, X, W) == ["taps"]
    transposed = text(lambda x, w: jgc.group_conv_transpose(x, w, groups=3), X, W)
    assert ran(transposed) == ["taps"]
    drop_in = text(lambda x, w: jgc.conv_general_dilated(x, w, (1, 1), "SAME", feature_group_count=3), X, W)
    assert ran(drop_in) == ["taps"]


@pytest.mark.parametrize("name", ["native", "matmul"])
def test_a_scope_also_holds_for_the_functions_of_this_package(name):
    assert ran(text(jgc.accelerate(name)(jgc.group_conv), X, W)) == [name]


def test_wide_dense_convolutions_stay_lax_s_where_no_kernel_is_called():
    x, w = jnp.ones((2, 16, 8, 8)), jnp.ones((32, 16, 3, 3))
    marked, unmarked = text(jgc.accelerate("portable")(conv), x, w), text(conv, x, w)
    assert ran(marked) == ["native"]
    assert without_mark(marked) == unmarked


def without_mark(program):
    return re.sub(r'mhlo\.frontend_attributes = \{jaxgroupconv = "\w+"\}, ', "", program)


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_other_platforms_keep_lax_s_lowering(platform):
    for marked in (jgc.accelerate(conv), jgc.accelerate(gradients)):
        program = jax.jit(marked).trace(X, W).lower(lowering_platforms=(platform,)).as_text()
        assert set(ran(program)) == set(names(marked, X, W, platform=platform)) == {"native"}


UNMARKED = """
import sys
import warnings
import jax, jax.numpy as jnp
from jax import lax
if sys.argv[1] == "with":
    import jaxgroupconv
    jaxgroupconv.group_conv(jnp.ones((1, 2, 4, 4)), jnp.ones((2, 1, 3, 3)))
def loss(x, w):
    y = lax.conv_general_dilated(x, w, (2, 1), "SAME", feature_group_count=3)
    return (lax.conv_general_dilated(y, w[:, :1], (1, 1), [(-1, 2), (4, 0)], feature_group_count=6) ** 2).sum()
lowered = jax.jit(jax.grad(loss, (0, 1))).lower(jnp.ones((2, 6, 8, 8)), jnp.ones((6, 2, 3, 3)))
print(lowered.as_text())
print(lowered.compile().as_text())
"""


def test_unmarked_programs_compile_to_exactly_lax_s_code():
    """With the package imported and used, and without it: the same StableHLO and the same compiled program."""
    run = [
        subprocess.run([sys.executable, "-c", UNMARKED, word], capture_output=True, text=True, check=True).stdout
        for word in ("with", "without")
    ]
    assert "stablehlo.convolution" in run[0] and "ENTRY" in run[0]
    assert run[0] == run[1]


def test_negative_padding_is_right_under_native():
    """JAX 0.10.2 reads memory that is not the input's here."""
    x, w, padding = X[:, :, :4, :4], W, ((-1, 1), (-2, 3))
    numbers = lax.conv_dimension_numbers(x.shape, w.shape, ("NCHW", "OIHW", "NCHW"))
    ones = dict(window_strides=(1, 1), lhs_dilation=(1, 1), rhs_dilation=(1, 1))
    expected = oracle.conv(x, w, padding=padding, dimension_numbers=numbers, feature_group_count=3, **ones)
    marked = jgc.accelerate("native")(lambda x, w: conv(x, w, padding))
    np.testing.assert_allclose(jax.jit(marked)(x, w), expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_a_forward_that_pads_beyond_its_kernel():
    """Their padding is negative. Every kernel element meets every input element, so the gradients of the sum are sums."""
    x, w = X, W[:, :, :2, :2]
    marked = jgc.accelerate("native")(lambda x, w: conv(x, w, ((3, 3), (2, 4))).sum())
    dx, dw = jax.jit(jax.grad(marked, (0, 1)))(x, w)
    sums = np.asarray(x).sum((0, 2, 3)).reshape(3, 1, 2, 1, 1)
    np.testing.assert_allclose(dw.reshape(3, 2, 2, 2, 2), np.broadcast_to(sums, (3, 2, 2, 2, 2)), rtol=1e-4, atol=1e-4)
    sums = np.asarray(w).reshape(3, 2, 2, 4).sum((1, 3)).reshape(1, 6, 1, 1)
    np.testing.assert_allclose(dx, np.broadcast_to(sums, x.shape), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_without_spatial_axes_is_lax_s_own(groups):
    x, w = jnp.arange(12.0).reshape(2, 6), jnp.arange(24.0 / groups).reshape(4, -1)

    def conv(x, w):
        return lax.conv_general_dilated(x, w, (), [], feature_group_count=groups)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(jax.jit(jgc.accelerate(conv))(x, w), conv(x, w))
    (entry,) = jgc.explain(jgc.accelerate(conv), x, w).entries
    assert (entry.plan.name, entry.plan.reason.endswith("no spatial axis")) == ("native", True)


def test_what_two_convolutions_share_is_written_once():
    x, w = jnp.ones((1, 8, 6, 6)), jnp.ones((8, 1, 3, 3))

    @jgc.accelerate
    def forward_and_input_gradient(x, w):
        out, pull = jax.vjp(lambda x: lax.conv_general_dilated(x, w, (1, 1), "SAME", feature_group_count=8), x)
        return out, pull(out)

    text = jax.jit(forward_and_input_gradient).lower(x, w).as_text()
    assert ran(text) == ["taps", "taps"]
    assert text.count("func.func private @_row_of_taps") == 1 and text.count("call @_row_of_taps") == 6


def test_enable_and_disable():
    program = jax.jit(conv)
    assert ran(program.lower(X, W).as_text()) == ["native"]
    try:
        jgc.enable()
        assert ran(program.lower(X, W).as_text()) == ["taps"]
        jgc.enable("matmul")
        assert ran(program.lower(X, W).as_text()) == ["matmul"]
    finally:
        jgc.disable()
    assert ran(program.lower(X, W).as_text()) == ["native"]


@pytest.mark.parametrize("channels", [8, 32])
def test_what_makes_a_cotangent_is_computed_once(channels):
    """XLA:CPU would fuse it into the sums for every row of the kernel, and compute it again for each of their terms."""
    names, groups = ("NHWC", "HWIO", "NHWC"), 8

    def kernel_gradient(x, w, y):
        options = dict(feature_group_count=groups, dimension_numbers=names)
        _, pull = jax.vjp(lambda w: lax.conv_general_dilated(x, w, (1, 1), "SAME", **options), w)
        with jax.named_scope("around"):
            y = y * 3.0
        return pull(y)

    x, w = jnp.ones((2, 16, 16, channels)), jnp.ones((3, 3, channels // groups, channels))
    lowered = jax.jit(jgc.accelerate(kernel_gradient)).lower(x, w, x)
    assert ran(lowered.as_text()) == ["taps"]
    assert len(re.findall(r" = \S+ multiply\([^\n]*around", lowered.compile().as_text())) == 1


@pytest.mark.parametrize("name", ["taps", "matmul"])
def test_what_makes_an_input_is_computed_once_and_so_is_the_result(name):
    """Nothing is fused into a lowering, nor a lowering into what uses it: it stays a call (but for a sum of few terms)."""

    def program(x, w):
        with jax.named_scope("around"):
            x = x * 3.0
        y = conv(x, w)
        return y - y.mean((2, 3), keepdims=True), y.max((2, 3))

    compiled = jax.jit(jgc.accelerate(name)(program)).lower(X, W).compile().as_text()
    assert len(re.findall(r" = \S+ multiply\([^\n]*around", compiled)) == 1
    assert len(re.findall(rf" call\([^\n]*to_apply=%jaxgroupconv_{name}", compiled)) == 1


def test_a_short_depthwise_sum_and_its_weight_gradient_share_the_padded_input():
    """Channel-last; it is computed and stored once."""
    x, w = jnp.ones((2, 16, 16, 24)), jnp.ones((3, 3, 1, 24))

    def loss(w, x):
        y = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=24)
        return (y**3).sum()

    compiled = jax.jit(jax.grad(jgc.accelerate(loss))).lower(w, x).compile().as_text()
    assert len(re.findall(r" = \S+ pad\(", compiled)) == 1


def test_sums_over_channels_one_after_the_other_stay_calls():
    """Open, each would compute the one before again for each of its terms."""
    x, w = jnp.ones((2, 12, 8, 8)), jnp.ones((12, 4, 1, 1))

    def program(x, w):
        return lax.fori_loop(0, 3, lambda _, x: jax.nn.relu(conv(x, w)), x, unroll=True)

    lowered = jax.jit(jgc.accelerate(program)).lower(x, w)
    assert set(ran(lowered.as_text())) == {"taps"}
    assert len(re.findall(r" call\([^\n]*to_apply=%jaxgroupconv_taps", lowered.compile().as_text())) == 3
