"""MXNet's operators, by kind; importing this package fills `registry.OPERATORS`."""

from jaxgroupconv.mxnet.operators import convolution, elementwise, normalization, reduction, reshape, slicing  # noqa: F401
