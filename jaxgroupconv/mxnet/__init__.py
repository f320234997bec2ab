"""MXNet's networks with MXNet's numbers, without MXNet: `nd`, `sym`, files and checkpoints."""

from jaxgroupconv.mxnet import nd, sym
from jaxgroupconv.mxnet.errors import MXNetError

__all__ = ["MXNetError", "nd", "sym"]
