"""Grouped convolution in JAX near the speed of hand-written kernels."""

from jaxgroupconv import mxnet, nn, weights
from jaxgroupconv.accelerate import accelerate, disable, enable
from jaxgroupconv.explain import Entry, Explanation, explain
from jaxgroupconv.functional import Shapes, conv_general_dilated, group_conv, group_conv_transpose, infer_shapes
from jaxgroupconv.lowerings import LOWERINGS, Lowering
from jaxgroupconv.planner import Plan, plan
from jaxgroupconv.spec import ConvSpec

__version__ = "0.1.0"

__all__ = [
    "LOWERINGS",
    "ConvSpec",
    "Entry",
    "Explanation",
    "Lowering",
    "Plan",
    "Shapes",
    "accelerate",
    "conv_general_dilated",
    "disable",
    "enable",
    "explain",
    "group_conv",
    "group_conv_transpose",
    "infer_shapes",
    "mxnet",
    "nn",
    "plan",
    "weights",
]
