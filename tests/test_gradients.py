"""Gradients of both orders in both modes: exact differences, because a convolution is linear in each operand."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxgroupconv as jgc
from jaxgroupconv.planner import IMPLEMENTATIONS

CALLS = {
    "conv": (jgc.group_conv, (2, 4, 7), (4, 2, 3), dict(stride=2, padding=((1, 0),), layout="NCW")),
    "transposed": (jgc.group_conv_transpose, (1, 4, 4), (4, 1, 3), dict(groups=2, stride=2, padding=1, layout="NCW")),
}
PLANNED_CALLS = {
    "strided": (jgc.group_conv, (2, 4, 5, 4), (4, 2, 3, 2), dict(stride=(2, 1), padding=((1, 0), (0, 1)))),
    "depthwise": (jgc.group_conv, (2, 5, 4, 3), (3, 2, 1, 3), dict(dilation=(1, 2), padding="SAME", layout="NHWC")),
}


@pytest.mark.parametrize(
    ("call", "implementation"),
    [pytest.param(CALLS[call], name, id=f"{call}-{name}") for call in CALLS for name in IMPLEMENTATIONS]
    + [pytest.param(PLANNED_CALLS[call], "auto", id=call) for call in PLANNED_CALLS],
)
def test_gradients(call, implementation):
    function, x_shape, w_shape, options = call
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in (x_shape, w_shape))

    @jgc.accelerate(implementation)
    def conv(x, w):
        return function(x, w, **options)

    check_grads(lambda x: conv(x, w), (x,), order=2, eps=1.0)
    check_grads(lambda w: conv(x, w), (w,), order=2, eps=1.0)
