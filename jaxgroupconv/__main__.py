"""`python -m jaxgroupconv`: MXNet checkpoints from the command line."""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np

from jaxgroupconv import mxnet
from jaxgroupconv.mxnet.convert import channel_last, chunks, save_npz, save_safetensors
from jaxgroupconv.mxnet.summary import print_summary

LARGE = 64e6  # bytes; what is larger takes long enough to wonder


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0, or 1 with a message for what cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m jaxgroupconv", description="MXNet checkpoints without MXNet.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    shapes = commands.add_parser("shapes", help="print the shapes of a network's parameters and feature maps")
    shapes.add_argument("symbol", type=Path, help="the -symbol.json file")
    shapes.add_argument("--summary", action="store_true", help="print layers and parameter counts instead")
    shapes.set_defaults(run=_shapes)

    run = commands.add_parser("run", help="compute a checkpoint's outputs for an input array")
    run.add_argument("prefix", help="the path up to -symbol.json and -0000.params")
    run.add_argument("epoch", type=int)
    run.add_argument("--data", type=Path, required=True, metavar="X.npy", help="the input")
    run.add_argument("--input", default="data", metavar="NAME", help="the input's name (default: data)")
    run.add_argument("--output", metavar="NAME", help="an inner output to compute instead, such as fc1_output")
    run.add_argument("--save", type=Path, metavar="Y.npy", help="write the (first) output there instead of describing all")
    run.set_defaults(run=_run)

    convert = commands.add_parser("convert", help="write a checkpoint's parameters as .npz or .safetensors")
    convert.add_argument("prefix", help="the path up to -symbol.json and -0000.params")
    convert.add_argument("epoch", type=int)
    convert.add_argument("target", type=Path, help="a file that ends in .npz or .safetensors")
    convert.add_argument(
        "--layout",
        choices=("channel-first", "channel-last"),
        default="channel-first",
        help="of convolutions' weights: (O, I/G, *k) as stored, or (*k, I/G, O) as in Flax and Keras; Deconvolution's likewise "
        "(C, O/G, *k) or (*k, O/G, C)",
    )
    convert.set_defaults(run=_convert)

    known, rest = parser.parse_known_args(arguments)
    try:
        if known.run is _shapes:
            known.given = _named_shapes(rest)
        elif rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        return known.run(known)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1


def _named_shapes(rest: list[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of inputs, `--data 1,3,224,224`: any option that the parser does not know is the name of an input."""
    words = [word for argument in rest for word in argument.split("=", 1)]
    given = {}
    for option, text in zip(words[::2], words[1::2], strict=False):
        if not option.startswith("--") or not all(size.strip().lstrip("-").isdecimal() for size in text.split(",")):
            raise ValueError(f"`{option}` must name an input before its shape, such as --data 1,3,224,224, but got {text!r}.")
        given[option.removeprefix("--")] = tuple(int(size) for size in text.split(","))
    if len(words) % 2 or not given:
        raise ValueError("the shape of an input must be given, such as --data 1,3,224,224.")
    return given


def _shapes(options: argparse.Namespace) -> int:
    symbol = mxnet.sym.load(options.symbol)
    if options.summary:
        print_summary(symbol, options.given)
        return 0
    internals = symbol.get_internals()
    partial = internals.infer_shape_partial(**options.given)
    parameters = set(symbol.list_inputs())
    found = list(zip(internals.list_outputs(), partial[1], strict=True))
    for title, wanted in (("Shape of parameters:", True), ("Shape of feature maps:", False)):
        print(title)
        for name, shape in found:
            if (name in parameters) == wanted:
                print(f"{name}\t{shape}")
        print()
    unknown = [name for name, shape in found if not shape or 0 in shape]
    if unknown:
        print(f"unknown (0 or ()): {', '.join(unknown)}", file=sys.stderr)
    return 1 if unknown else 0


def _run(options: argparse.Namespace) -> int:
    symbol, arg_params, aux_params = mxnet.load_checkpoint(options.prefix, options.epoch)
    if options.output:
        symbol = symbol.get_internals()[options.output]
    data = np.load(options.data, allow_pickle=False)
    _read_ahead([x for x in (*arg_params.values(), *aux_params.values()) if isinstance(x, np.ndarray)])
    variables, apply = mxnet.to_jax(symbol, arg_params, aux_params)
    outputs, _ = jax.jit(apply)(variables, {options.input: data})
    if options.save:
        np.save(options.save, outputs[0])
        return 0
    for name, output in zip(symbol.list_outputs(), outputs, strict=True):
        print(f"{name}\t{output.shape}\t{output.dtype}")
        print(np.asarray(output))
    return 0


def _convert(options: argparse.Namespace) -> int:
    symbol, arg_params, aux_params = mxnet.load_checkpoint(options.prefix, options.epoch)
    if options.target.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"`target` must end in .npz or .safetensors, but got {options.target}.")
    arrays = {**arg_params, **aux_params}
    if strangers := [name for name, x in arrays.items() if not isinstance(x, np.ndarray)]:
        raise ValueError(f"parameters must be dense to be converted, but {', '.join(strangers)} are sparse or empty.")
    if options.layout == "channel-last":
        arrays = channel_last(symbol, arrays)
    save = save_npz if options.target.suffix == ".npz" else save_safetensors
    with _Progress(sum(x.nbytes for x in arrays.values())) as progress:
        save(options.target, arrays, progress)
    return 0


def _read_ahead(arrays: list[np.ndarray]) -> None:
    """Reads mapped arrays with progress, if they are large: one byte of each page, for that is when a file is read."""
    with _Progress(sum(x.nbytes for x in arrays)) as progress:
        for chunk in (chunk for x in arrays for chunk in chunks(x)) if progress.shown else ():
            chunk[::1024].max()
            progress(chunk.size)


class _Progress:
    """Bytes read or written, on one line of a terminal, for large files."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.shown = total, 0, total > LARGE and sys.stderr.isatty()

    def __enter__(self) -> "_Progress":
        return self

    def __call__(self, count: int) -> None:
        self.done += count
        if self.shown:
            print(f"\r{self.done / 1e6:.0f} of {self.total / 1e6:.0f} MB", end="", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self.shown:
            print(file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
