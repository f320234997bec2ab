"""Checkpoints: `prefix-symbol.json` with the network and `prefix-0007.params` with its parameters after epoch 7."""

import os
from collections.abc import Mapping
from typing import Any

from jaxgroupconv.mxnet import params_file, sym
from jaxgroupconv.mxnet.symbol import Symbol


def load_checkpoint(prefix: str | os.PathLike, epoch: int) -> tuple[Symbol, dict[str, Any], dict[str, Any]]:
    """Reads a checkpoint.

    Args:
      prefix: the path up to `-symbol.json` and `-0000.params`.
      epoch: the number in the parameters' file name.

    Returns:
      The symbol, the parameters and the auxiliary states, as NumPy arrays over the mapped file; see `load`. Files may hold
      more than the symbol uses, and less: labels and data are never in them.

    Raises:
      ValueError: for damaged files, and for parameters without the `arg:` and `aux:` that checkpoints put before names.
    """
    symbol = sym.load(f"{os.fspath(prefix)}-symbol.json")
    return symbol, *load_params(f"{os.fspath(prefix)}-{epoch:04d}.params")


def load_params(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters and auxiliary states in a checkpoint's `.params` file, by the names in the symbol."""
    stored = params_file.load(path)
    if isinstance(stored, list):
        raise ValueError(
            f"{path} must hold named arrays to be a checkpoint, but holds a list of {len(stored)}. Read it with load()."
        )
    if strangers := [name for name in stored if not name.startswith(("arg:", "aux:"))]:
        raise ValueError(
            f"{path} must name its arrays arg:NAME or aux:NAME to be a checkpoint, but has {strangers[0]!r} "
            f"and {len(strangers) - 1} more of another form, as Gluon's save_parameters writes them. Read it with load()."
        )
    args, aux = ({name[4:]: x for name, x in stored.items() if name.startswith(kind)} for kind in ("arg:", "aux:"))
    return args, aux


def save_checkpoint(
    prefix: str | os.PathLike, epoch: int, symbol: Symbol, arg_params: Mapping[str, Any], aux_params: Mapping[str, Any]
) -> None:
    """Writes a checkpoint, byte for byte as MXNet 1.9.1 writes it.

    Args:
      prefix: the path up to `-symbol.json` and `-0000.params`.
      epoch: the number in the parameters' file name.
      symbol: the network.
      arg_params: its parameters by name.
      aux_params: its auxiliary states by name.
    """
    symbol.save(f"{os.fspath(prefix)}-symbol.json")
    named = {f"arg:{name}": x for name, x in arg_params.items()} | {f"aux:{name}": x for name, x in aux_params.items()}
    params_file.save(f"{os.fspath(prefix)}-{epoch:04d}.params", named)
