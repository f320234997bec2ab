"""How long a network takes to trace and to lower, under `jgc.enable()` and without: python -m benchmarks.tracing

The networks have 50 layers and more: ResNeXt-50 32x4d and a MobileNet of 25 depthwise-separable blocks, forward and gradient,
as they are written in Flax, and bare, of hardly anything but convolutions. All caches are cleared before each run. Times are
the processor's, and the garbage collector does not search what was there before a run. A shared machine runs the same program
at speeds that differ by 1.4, for seconds at a time; so the two ways run in pairs, each first in every second pair, and what
counts is the median of the pairs' ratios. Nothing is compiled.
"""

import argparse
import functools
import gc
import json
import pathlib
import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxgroupconv as jgc
from benchmarks import machine
from jaxgroupconv import planner

RESULTS = pathlib.Path(__file__).parent / "results" / "tracing.json"
INPUT = (1, 3, 224, 224)
STAGES = (3, 4, 6, 3)  # blocks of ResNeXt-50
BLOCKS = 25  # of the MobileNet


class FlaxResNeXt(nn.Module):
    """ResNeXt-50 32x4d."""

    @nn.compact
    def __call__(self, x, train):
        def layer(x, channels, size=1, stride=1, groups=1, activate=True):
            x = nn.Conv(channels, (size, size), stride, feature_group_count=groups, use_bias=False)(x)
            x = nn.BatchNorm(use_running_average=not train)(x)
            return nn.relu(x) if activate else x

        x = nn.max_pool(layer(x, 64, 7, 2), (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate(STAGES):
            width = 128 << stage
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                y = layer(layer(layer(x, width), width, 3, stride, 32), 2 * width, activate=False)
                x = nn.relu(y + (x if block else layer(x, 2 * width, 1, stride, activate=False)))
        return nn.Dense(1000)(x.mean((1, 2)))


class FlaxMobileNet(nn.Module):
    """Depthwise-separable blocks."""

    @nn.compact
    def __call__(self, x, train):
        def layer(x, channels, size=1, stride=1, groups=1):
            x = nn.Conv(channels, (size, size), stride, feature_group_count=groups, use_bias=False)(x)
            return nn.relu6(nn.BatchNorm(use_running_average=not train)(x))

        x = layer(x, 32, 3, 2)
        for block in range(BLOCKS):
            channels = x.shape[-1]
            x = layer(x, channels, 3, 2 if block % 6 == 5 else 1, channels)
            x = layer(x, channels * (2 if block % 6 == 0 else 1))
        return nn.Dense(1000)(x.mean((1, 2)))


def in_flax(net):
    """The forward pass in inference, the gradient in training, and their arguments."""
    n, c, h, w = INPUT
    x = jax.ShapeDtypeStruct((n, h, w, c), np.float32)
    variables = jax.eval_shape(functools.partial(net.init, train=False), jax.random.key(0), x)

    def loss(params, stats, x):
        out, updates = net.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
        return out.sum(), updates

    gradient = jax.value_and_grad(loss, has_aux=True), (variables["params"], variables["batch_stats"], x)
    return (functools.partial(net.apply, train=False), (variables, x)), gradient


def conv(x, w, stride=1):
    """A convolution, its normalization and activation."""
    x = lax.conv_general_dilated(x, w, (stride, stride), "SAME", feature_group_count=x.shape[1] // w.shape[1])
    return jax.nn.relu((x - x.mean((0, 2, 3), keepdims=True)) * lax.rsqrt(x.var((0, 2, 3), keepdims=True) + 1e-5))


def resnext50():
    """The kernels' shapes, and the network."""
    shapes, strides, channels = [(64, 3, 7, 7)], [], 64
    for stage, blocks in enumerate(STAGES):
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

    return shapes, net


def mobilenet():
    """The kernels' shapes, and the network."""
    shapes, channels = [(32, 3, 3, 3)], 32
    for block in range(BLOCKS):
        wider = channels * (2 if block % 6 == 0 else 1)
        shapes += [(channels, 1, 3, 3), (wider, channels, 1, 1)]
        channels = wider

    def net(weights, x):
        weights = iter(weights)
        x = conv(x, next(weights), 2)
        for block, (depthwise, pointwise) in enumerate(zip(weights, weights, strict=True)):
            x = conv(conv(x, depthwise, 2 if block % 6 == 5 else 1), pointwise)
        return jnp.mean(x)

    return shapes, net


def bare(make):
    """The forward pass, the gradient, and their arguments."""
    shapes, net = make()
    args = [jax.ShapeDtypeStruct(s, np.float32) for s in shapes], jax.ShapeDtypeStruct(INPUT, np.float32)
    return (net, args), (jax.grad(net), args)


def seconds(function, args, planned):
    """The processor's time to trace and to lower, with cold caches."""
    (jgc.enable if planned else jgc.disable)()
    jax.clear_caches()
    planner.plan.cache_clear()
    gc.collect()
    gc.freeze()
    start = time.process_time()
    jax.jit(lambda *args: function(*args)).lower(*args)
    return time.process_time() - start


NETWORKS = {
    "ResNeXt-50 in Flax": lambda: in_flax(FlaxResNeXt()),
    "MobileNet in Flax": lambda: in_flax(FlaxMobileNet()),
    "ResNeXt-50, bare": lambda: bare(resnext50),
    "MobileNet, bare": lambda: bare(mobilenet),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="measuring time for each row")
    arguments = parser.parse_args()
    rows = []
    for network, make in NETWORKS.items():
        for mode, (function, args) in zip(("forward", "gradient"), make(), strict=True):
            measure = functools.partial(seconds, function, args)
            measure(True), measure(False)  # imports, and the backend
            pairs, end = [], time.monotonic() + arguments.seconds
            while time.monotonic() < end:
                order = (False, True) if len(pairs) % 2 else (True, False)
                pairs.append({planned: measure(planned) for planned in order})
            lax_s, planned_s = (statistics.median(pair[planned] for pair in pairs) for planned in (False, True))
            ratio = statistics.median(pair[True] / pair[False] for pair in pairs)
            found = dict(pairs=len(pairs), lax_s=lax_s, jaxgroupconv_s=planned_s, ratio=ratio)
            rows.append(dict(network=network, mode=mode) | found)
            print(f"{network:20} {mode:8}  lax {lax_s:.3f} s  planned {planned_s:.3f} s  {ratio:.2f}", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine.describe(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
