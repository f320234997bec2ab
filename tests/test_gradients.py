"""Gradients of both orders in both modes: exact differences, because a convolution is linear in each operand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import AVAILABLE
from inspecting import ran, recorded
from jax.test_util import check_grads

import jaxgroupconv as jgc
from jaxgroupconv import LOWERINGS
from jaxgroupconv.planner import IMPLEMENTATIONS

CALLS = {
    "conv": (jgc.group_conv, (2, 4, 7), (4, 2, 3), dict(stride=2, padding=((1, 0),), layout="NCW")),
    "transposed": (jgc.group_conv_transpose, (1, 4, 4), (4, 1, 3), dict(groups=2, stride=2, padding=1, layout="NCW")),
    "strided": (jgc.group_conv, (2, 4, 5, 4), (4, 2, 3, 2), dict(stride=(2, 1), padding=((1, 0), (0, 1)))),
    "depthwise": (jgc.group_conv, (2, 5, 4, 3), (3, 2, 1, 3), dict(dilation=(1, 2), padding="SAME", layout="NHWC")),
    "volume": (jgc.group_conv, (1, 4, 4, 3, 3), (4, 2, 2, 2, 1), dict(padding=((1, 0), (0, 0), (1, 1)), layout="NCDHW")),
}


def operands(x_shape, w_shape):
    rng = np.random.default_rng(0)
    return (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in (x_shape, w_shape))


@pytest.mark.parametrize(
    ("call", "implementation"),
    [("conv", name) for name in IMPLEMENTATIONS] + [(call, "auto") for call in CALLS if call != "conv"],
)
def test_gradients(call, implementation):
    function, x_shape, w_shape, options = CALLS[call]
    x, w = operands(x_shape, w_shape)

    @jgc.accelerate(implementation)
    def conv(x, w):
        return function(x, w, **options)

    check_grads(lambda x: conv(x, w), (x,), order=2, eps=1.0)
    check_grads(lambda w: conv(x, w), (w,), order=2, eps=1.0)


def passes(call, implementation):
    """The forward pass and both gradients of a call, as one marked function."""
    function, _, _, options = CALLS[call]

    @jgc.accelerate(implementation)
    def conv_and_gradients(x, w):
        y, pull = jax.vjp(lambda x, w: function(x, w, **options), x, w)
        return y, *pull(jnp.sin(y))

    return jax.jit(conv_and_gradients)


@pytest.mark.parametrize("call", CALLS)
def test_each_lowering_computes_what_it_accepts(call):
    """Forward, to the input, to the kernel: the forced lowering runs wherever it accepts, and the values are lax's."""
    args, used = tuple(operands(*CALLS[call][1:3])), []
    expected = passes(call, "native")(*args)
    for name in AVAILABLE:
        with recorded() as plans:
            lowered = passes(call, name).lower(*args)
        assert len(plans) == 3
        assert [plan == name for _, plan in plans] == [LOWERINGS[name].why_not(spec) is None for spec, _ in plans]
        assert ran(lowered.as_text()) == [plan for _, plan in plans]
        used += [plan for _, plan in plans]
        for got, wanted in zip(lowered.compile()(*args), expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    assert min(used.count(name) for name in ("taps", "matmul", "per_group")) >= 3
    assert "native" not in ran(passes(call, "auto").lower(*args).as_text())
