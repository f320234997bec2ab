"""MXNet's networks with MXNet's numbers, without MXNet: `nd`, `sym`, files and checkpoints."""

from jaxgroupconv.mxnet import nd, sym
from jaxgroupconv.mxnet.checkpoint import load_checkpoint, save_checkpoint
from jaxgroupconv.mxnet.errors import MXNetError
from jaxgroupconv.mxnet.network import to_jax
from jaxgroupconv.mxnet.params_file import load, save

__all__ = ["MXNetError", "load", "load_checkpoint", "nd", "save", "save_checkpoint", "sym", "to_jax"]
