"""MXNet's networks with MXNet's numbers, without MXNet: `nd`, `sym`, files and checkpoints."""

from jaxgroupconv.mxnet import nd, sym
from jaxgroupconv.mxnet.checkpoint import load_checkpoint, save_checkpoint
from jaxgroupconv.mxnet.errors import MXNetError
from jaxgroupconv.mxnet.network import to_jax
from jaxgroupconv.mxnet.params_file import load, save
from jaxgroupconv.mxnet.summary import plot_network, print_summary

__all__ = [
    "MXNetError",
    "load",
    "load_checkpoint",
    "nd",
    "plot_network",
    "print_summary",
    "save",
    "save_checkpoint",
    "sym",
    "to_jax",
]
