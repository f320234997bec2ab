"""How long a network takes to trace and to lower, under `jgc.enable()` and without: python -m benchmarks.tracing

The networks have 50 layers and more: ResNeXt-50 32x4d and a MobileNet of 25 depthwise-separable blocks, forward and gradient.
All caches are cleared before each run, the two ways alternate, and the least of the runs counts. Nothing is compiled.
"""

import argparse
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxgroupconv as jgc
from benchmarks import machine
from jaxgroupconv import planner
from jaxgroupconv.accelerate import _function

RESULTS = pathlib.Path(__file__).parent / "results" / "tracing.json"


def conv(x, w, stride=1):
    """A convolution, its normalization and activation."""
    x = lax.conv_general_dilated(x, w, (stride, stride), "SAME", feature_group_count=x.shape[1] // w.shape[1])
    return jax.nn.relu((x - x.mean((0, 2, 3), keepdims=True)) * lax.rsqrt(x.var((0, 2, 3), keepdims=True) + 1e-5))


def resnext50(size=224):
    """The kernels' shapes, the network, and its input's shape."""
    shapes, strides, channels = [(64, 3, 7, 7)], [], 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 128 << stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            strides.append((stride, not block))
            shapes += [(width, channels, 1, 1), (width, width // 32, 3, 3), (2 * width, width, 1, 1)]
            shapes += [(2 * width, channels, 1, 1)] if not block else []
            channels = 2 * width

    def net(weights, x):
        weights = iter(weights)
        x = conv(x, next(weights), 4)
        for stride, project in strides:
            y = conv(conv(conv(x, next(weights)), next(weights), stride), next(weights))
            x = y + (conv(x, next(weights), stride) if project else x)
        return jnp.mean(x)

    return shapes, net, (1, 3, size, size)


def mobilenet(size=224, blocks=25):
    """The kernels' shapes, the network, and its input's shape."""
    shapes, channels = [(32, 3, 3, 3)], 32
    for block in range(blocks):
        wider = channels * (2 if block % 6 == 0 else 1)
        shapes += [(channels, 1, 3, 3), (wider, channels, 1, 1)]
        channels = wider

    def net(weights, x):
        weights = iter(weights)
        x = conv(x, next(weights), 2)
        for block, (depthwise, pointwise) in enumerate(zip(weights, weights, strict=True)):
            x = conv(conv(x, depthwise, 2 if block % 6 == 5 else 1), pointwise)
        return jnp.mean(x)

    return shapes, net, (1, 3, size, size)


def seconds(function, args, planned):
    """The time to trace and to lower, with cold caches."""
    (jgc.enable if planned else jgc.disable)()
    jax.clear_caches()
    _function.cache_clear()
    planner.plan.cache_clear()
    start = time.perf_counter()
    jax.jit(function).lower(*args)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    rows = []
    for make in (resnext50, mobilenet):
        shapes, net, x_shape = make()
        args = [jax.ShapeDtypeStruct(s, np.float32) for s in shapes], jax.ShapeDtypeStruct(x_shape, np.float32)
        for mode, function in (("forward", net), ("gradient", jax.grad(net))):
            measure = functools.partial(seconds, function, args)
            measure(True), measure(False)  # imports, and the backend
            pairs = [(measure(False), measure(True)) for _ in range(arguments.repeats)]
            lax_s, planned_s = (min(times) for times in zip(*pairs, strict=True))
            found = dict(lax_s=lax_s, jaxgroupconv_s=planned_s, ratio=planned_s / lax_s)
            rows.append(dict(network=make.__name__, convolutions=len(shapes), mode=mode) | found)
            row = f"{make.__name__:10} {len(shapes)} convolutions  {mode:8}"
            print(f"{row}  lax {lax_s:.3f} s  planned {planned_s:.3f} s  {planned_s / lax_s:.2f}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine.describe(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
