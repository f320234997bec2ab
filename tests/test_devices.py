"""Many devices, by JAX's own engine: what is sharded by batch or by groups stays where it is.

The checks run in one process with eight virtual devices: this file, as a program.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import math
import os
import re
import runpy
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from inspecting import ran
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxgroupconv as jgc


@dataclasses.dataclass(frozen=True)
class Shape:
    """A convolution, and the lowerings of it (and of its gradient to the input) and of its gradient to the kernel."""

    layout: str
    groups: int
    channels: int
    plan: str
    dw: str = "matmul"
    size: tuple[int, ...] = (8, 6)
    kernel: tuple[int, ...] = (3, 3)
    stride: int = 1
    padding: Any = "SAME"


SHAPES = {
    "thin": Shape("NCHW", 16, 32, "taps"),
    "thin, channels last": Shape("NHWC", 16, 32, "taps"),
    "wide": Shape("NCHW", 8, 128, "matmul"),
    "wide, channels last": Shape("NHWC", 8, 128, "matmul"),
    "depthwise": Shape("NCHW", 16, 16, "taps"),
    "depthwise, channels last": Shape("NHWC", 16, 16, "taps"),
    "stride 2": Shape("NCHW", 16, 32, "taps", size=(16, 6), stride=2),
    "stride 2, channels last": Shape("NHWC", 16, 32, "taps", size=(16, 6), stride=2),
    "causal": Shape("NCW", 16, 16, "taps", size=(12,), kernel=(4,), padding=[(3, 0)]),
    "causal, channels last": Shape("NWC", 16, 16, "taps", size=(12,), kernel=(4,), padding=[(3, 0)]),
    "3-D depthwise": Shape("NCDHW", 16, 16, "taps", size=(4, 6, 5), kernel=(3, 3, 3)),
    "3-D depthwise, channels last": Shape("NDHWC", 16, 16, "taps", size=(4, 6, 5), kernel=(3, 3, 3)),
    "9x9 depthwise": Shape("NCHW", 16, 16, "taps", "native", size=(12, 12), kernel=(9, 9)),
    "31x31 depthwise": Shape("NCHW", 16, 16, "taps", "native", size=(14, 14), kernel=(31, 31)),
    "small map": Shape("NCHW", 16, 32, "taps", "native", size=(2, 2)),
    "VALID": Shape("NCHW", 16, 32, "taps", padding="VALID"),
    "VALID, channels last": Shape("NHWC", 16, 32, "taps", padding="VALID"),
}


def problem(name):
    """A convolution, its operands and a cotangent, and the names of their axes."""
    shape = SHAPES[name]
    spatial = shape.layout.strip("NC")
    kernel = f"{spatial}IO" if shape.layout.endswith("C") else f"OI{spatial}"
    names = (shape.layout, kernel, shape.layout)

    def conv(x, w, **kwargs):
        groups = x.shape[names[0].index("C")] // w.shape[kernel.index("I")]  # inside of shard_map there are fewer
        options = dict(feature_group_count=groups, dimension_numbers=names, **kwargs)
        return lax.conv_general_dilated(x, w, [shape.stride] * len(spatial), shape.padding, **options)

    def array(names, function, sizes):
        dims = [sizes[axis] for axis in names]
        return function(np.arange(np.prod(dims), dtype=np.float32)).reshape(dims)

    x = array(names[0], np.sin, dict(zip(spatial, shape.size, strict=True), N=16, C=shape.channels))
    w_sizes = dict(zip(spatial, shape.kernel, strict=True), O=shape.channels, I=shape.channels // shape.groups)
    w = array(kernel, np.cos, w_sizes)
    out = jax.eval_shape(conv, x, w).shape
    y = np.sin(2 * np.arange(np.prod(out), dtype=np.float32)).reshape(out)
    return conv, x, w, y, names


def specs(names, batch=None, groups=None, height=None, width=None):
    """The partition specs of input (and result) and kernel."""
    x = dict(N=batch, C=groups, H=height, W=width)
    return P(*(x.get(a) for a in names[0])), P(*(dict(O=groups).get(a) for a in names[1]))


def gradients(conv):
    return lambda x, w, y: jax.vjp(conv, x, w)[1](y)


def collectives(compiled):
    """How many of each collective the compiled program has."""
    return dict(collections.Counter(kind for _, kind in communicated(compiled)))


def communicated(compiled):
    """Each collective of the compiled program: the number of elements that a device receives, and its kind."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    found = re.findall(rf"= (\([^)]*\)|\S+) ({kinds})(?:-start)?\(", compiled.as_text())
    return [(sum(elements(dims) for dims in re.findall(r"\[([\d,]*)\]", shape)), kind) for shape, kind in found]


def elements(dims):
    return math.prod(int(size) for size in dims.split(",") if size)


def check_values(got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        b = np.asarray(b)
        np.testing.assert_allclose(np.asarray(a), b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def explained(count, function, *args):
    """What `explain` says of the last convolutions of the marked function; before them may stand one that is not used."""
    return [entry.plan.name for entry in jgc.explain(jgc.accelerate(function), *args).entries][-count:]


def check_planned(function, *args, by=None):
    """The program is planned as the names in `by`, or, without them, in any way but as lax's own; returns it compiled."""
    lowered = jax.jit(jgc.accelerate(function)).lower(*args)
    assert (names := ran(lowered.as_text())) and (by or "native" not in names), names
    assert explained(len(names), function, *args) == names
    assert by is None or set(names) == set(by), names
    return lowered.compile()


def check_jit(shape, mesh, **axes):
    """No more communication than the mathematics needs.

    Shared rows need one row of each neighbour: of the input, and backward of the cotangent too. A shared batch and shared rows
    need a sum of the kernel's gradient. Shared groups need nothing.
    """
    conv, x, w, y, names = problem(shape)
    mesh = jax.make_mesh(tuple(mesh.values()), tuple(mesh), axis_types=(AxisType.Auto,) * len(mesh))
    of_x, of_w = (NamedSharding(mesh, spec) for spec in specs(names, **axes))
    args = [jax.device_put(a, s) for a, s in ((x, of_x), (w, of_w), (y, of_x))]
    plan, dw = SHAPES[shape].plan, SHAPES[shape].dw
    forward = check_planned(conv, *args[:2], by=[plan])
    backward = check_planned(gradients(conv), *args, by=[plan, dw])
    part, height = args[0].addressable_shards[0].data, names[0].find("H")
    rows = [(part.size // part.shape[height], "collective-permute")] * 2 if "height" in axes else []
    reduced = {axes.get("batch"), axes.get("height")} - {None}  # one sum over each axis of the mesh: so does XLA
    sums = [(args[1].addressable_shards[0].data.size, "all-reduce")] * len(reduced)
    assert sorted(communicated(forward)) == rows, communicated(forward)
    assert sorted(communicated(backward)) == sorted(rows + rows + sums), communicated(backward)
    check_values(forward(*args[:2]), conv(x, w))
    check_values(backward(*args), gradients(conv)(x, w, y))


def check_uneven(shape, **axes):
    """Widths, and rows of which the result has others than the input: the values are right, whatever travels."""
    conv, x, w, y, names = problem(shape)
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    of_x, of_w = (NamedSharding(mesh, spec) for spec in specs(names, **axes))
    args = [jax.device_put(a, s) for a, s in ((x, of_x), (w, of_w), (y, of_x))]
    program = check_planned(lambda x, w, y: (conv(x, w), *gradients(conv)(x, w, y)), *args)
    check_values(program(*args), (conv(x, w), *gradients(conv)(x, w, y)))


def check_shard_map(check_vma, **axes):
    """Inside of shard_map each device plans its own shard; differentiated from outside and from inside."""
    conv, x, w, y, names = problem("thin")
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    of_x, of_w = specs(names, **axes)
    mapped = functools.partial(jax.shard_map, mesh=mesh, check_vma=check_vma)
    sharded = mapped(conv, in_specs=(of_x, of_w), out_specs=of_x)
    args = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in ((x, of_x), (w, of_w), (y, of_x))]
    forward = check_planned(sharded, *args[:2])
    assert collectives(forward) == {}
    check_values(forward(*args[:2]), conv(x, w))
    reduces = {"all-reduce": 1} if of_w == P(None, None, None, None) else {}
    expected = gradients(conv)(x, w, y)

    def inside(x, w, y):
        dx, dw = gradients(conv)(x, w, y)
        return dx, lax.psum(dw, "d") if reduces and not check_vma else dw  # with check_vma, JAX sums by itself

    for f in (gradients(sharded), mapped(inside, in_specs=(of_x, of_w, of_x), out_specs=(of_x, of_w))):
        backward = check_planned(f, *args)
        assert collectives(backward) == reduces, collectives(backward)
        check_values(backward(*args), expected)


def check_partly_manual(**axes):
    """A shard_map over the batch, in which XLA shares out another axis."""
    conv, x, w, y, names = problem("thin")
    mesh = jax.make_mesh(tuple(GRID.values()), tuple(GRID), axis_types=(AxisType.Auto,) * 2)
    of_x, of_w = specs(names, batch="a", **axes)
    args = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in ((x, of_x), (w, of_w), (y, of_x))]
    sharded = jax.shard_map(conv, mesh=mesh, axis_names={"a"}, in_specs=(P("a"), P()), out_specs=P("a"))
    forward, backward = check_planned(sharded, *args[:2]), check_planned(gradients(sharded), *args)
    rows, sums = (2, 2) if "height" in axes else (0, 1)
    assert collectives(forward) == ({"collective-permute": rows} if rows else {})
    assert collectives(backward) == ({"collective-permute": 2 * rows} if rows else {}) | {"all-reduce": sums}
    check_values((forward(*args[:2]), *backward(*args)), (conv(x, w), *gradients(conv)(x, w, y)))


def check_explicit():
    """Shardings in types: the result and the gradients have those that JAX's rules give them."""
    conv, x, w, y, names = problem("thin")
    of_x, of_w = specs(names, batch="d")
    with jax.set_mesh(jax.make_mesh((8,), ("d",), axis_types=(AxisType.Explicit,))):
        args = [jax.device_put(a, s) for a, s in ((x, of_x), (w, of_w), (y, of_x))]
        forward, backward = check_planned(conv, *args[:2]), check_planned(gradients(conv), *args)
        assert collectives(forward) == {} and collectives(backward) == {"all-reduce": 1}, collectives(backward)
        out, (dx, dw) = forward(*args[:2]), backward(*args)
        plain = jax.jit(gradients(conv))(*args)
        assert [out.sharding.spec, dx.sharding, dw.sharding] == [of_x, plain[0].sharding, plain[1].sharding]
        by_group = [jax.device_put(a, s) for a, s in zip((x, w), specs(names, groups="d"), strict=True)]
        grouped = check_planned(functools.partial(conv, out_sharding=specs(names, groups="d")[0]), *by_group)
        assert collectives(grouped) == {}, collectives(grouped)
        grouped = grouped(*by_group)
        of_x, of_w = specs(names, height="d")
        args = [jax.device_put(a, s) for a, s in ((x, of_x), (w, of_w), (y, of_x))]
        by_height = check_planned(gradients(conv), *args)
        assert collectives(by_height) == {"collective-permute": 4, "all-reduce": 1}, collectives(by_height)
        by_height = by_height(*args)
    check_values(
        (out, grouped, dx, dw, by_height), (conv(x, w), conv(x, w), *gradients(conv)(x, w, y), gradients(conv)(x, w, y))
    )


def check_pmap():
    """Each device plans its part of the batch; the only communication is the program's own sum."""
    conv, x, w, y, _ = problem("thin")

    def local(x, w, y):
        dx, dw = gradients(conv)(x, w, y)
        return dx, lax.psum(dw, "d")

    parts = [a.reshape(8, 2, *a.shape[1:]) for a in (x, y)]
    lowered = jax.pmap(jgc.accelerate(local), "d", in_axes=(0, None, 0)).lower(parts[0], w, parts[1])
    assert (names := ran(lowered.as_text())) and "native" not in names, names
    assert explained(2, jax.pmap(local, "d", in_axes=(0, None, 0)), parts[0], w, parts[1]) == names
    compiled = lowered.compile()
    assert collectives(compiled) == {"all-reduce": 1}, collectives(compiled)
    dx, dw = compiled(parts[0], w, parts[1])
    check_values((dx.reshape(x.shape), dw[0]), gradients(conv)(x, w, y))


def check_explain():
    """`explain` sees that arguments lie on several devices, and that each plans for itself inside of shard_map."""
    conv, x, w, _, names = problem("wide")
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    of_x, of_w = specs(names, groups="d")
    args = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in ((x, of_x), (w, of_w))]
    sharded = jax.shard_map(conv, mesh=mesh, in_specs=(of_x, of_w), out_specs=of_x)
    for f, plan, groups in ((conv, "matmul", 8), (sharded, "native", 1)):
        f = jgc.accelerate("portable")(f)
        (entry,) = jgc.explain(f, *args).entries
        assert ran(jax.jit(f).lower(*args).as_text()) == [entry.plan.name] == [plan]
        assert entry.spec.groups == groups and entry.source.startswith("test_devices.py")


def check_dense():
    """XLA's partitioner shares out lax's own dense convolution, with nothing but a sum of the kernel's gradient."""
    names, x, w = ("NCDHW", "OIDHW", "NCDHW"), jnp.ones((8, 16, 12, 4, 4)), jnp.ones((32, 16, 3, 3, 3))
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    args = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in ((x, P("d")), (w, P()))]
    loss = jax.grad(lambda x, w: (lax.conv_general_dilated(x, w, (2,) * 3, "SAME", dimension_numbers=names) ** 2).sum(), (0, 1))
    assert "native" not in ran(jax.jit(jgc.accelerate(loss)).lower(x, w).as_text())
    lowered = jax.jit(jgc.accelerate(loss)).lower(*args)
    assert set(ran(lowered.as_text())) == {"native"}
    assert communicated(lowered.compile()) == [(w.size, "all-reduce")]
    check_values(lowered.compile()(*args), jax.jit(loss)(x, w))


ALL = {"d": 8}
GRID = {"a": 4, "b": 2}
CHECKS = {
    "jit thin by batch": (check_jit, "thin", ALL, dict(batch="d")),
    "jit thin by groups": (check_jit, "thin", ALL, dict(groups="d")),
    "jit thin by height": (check_jit, "thin", ALL, dict(height="d")),
    "jit thin, channels last, by both": (check_jit, "thin, channels last", GRID, dict(batch="a", groups="b")),
    "jit wide by both": (check_jit, "wide", GRID, dict(batch="a", groups="b")),
    "jit wide, channels last, by batch": (check_jit, "wide, channels last", ALL, dict(batch="d")),
    "jit wide, channels last, by groups": (check_jit, "wide, channels last", ALL, dict(groups="d")),
    "jit wide, channels last, by batch and height": (check_jit, "wide, channels last", GRID, dict(batch="a", height="b")),
    "jit depthwise by both": (check_jit, "depthwise", GRID, dict(batch="a", groups="b")),
    "jit depthwise by groups and height": (check_jit, "depthwise", GRID, dict(groups="a", height="b")),
    "jit depthwise, channels last, by both": (check_jit, "depthwise, channels last", GRID, dict(batch="a", groups="b")),
    **{f"jit {shape} by both": (check_jit, shape, GRID, dict(batch="a", groups="b")) for shape in list(SHAPES)[6:-2]},
    "jit by width": (check_uneven, "thin", dict(width="a")),
    "jit, channels last, by width and batch": (check_uneven, "thin, channels last", dict(width="a", batch="b")),
    "jit VALID by height": (check_uneven, "VALID", dict(height="a")),
    "jit VALID, channels last, by batch and height": (check_uneven, "VALID, channels last", dict(batch="b", height="a")),
    "shard_map by batch": (check_shard_map, True, dict(batch="d")),
    "shard_map by batch unchecked": (check_shard_map, False, dict(batch="d")),
    "shard_map by groups": (check_shard_map, True, dict(groups="d")),
    "shard_map by groups unchecked": (check_shard_map, False, dict(groups="d")),
    "shard_map by batch, by groups without it": (check_partly_manual, dict(groups="b")),
    "shard_map by batch, by height without it": (check_partly_manual, dict(height="b")),
    "explicit": (check_explicit, {}),
    "pmap": (check_pmap, {}),
    "explain": (check_explain, {}),
    "one group": (check_dense, {}),
}


def test_eight_devices():
    """One test, so that one process makes all the checks; it tells which of them failed, and how."""
    with python(__file__, "checks", env=virtual(8)) as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    found = json.loads(out.splitlines()[-1])
    assert list(found) == list(CHECKS)
    assert not (failed := {name: error for name, error in found.items() if error}), "\n".join(map("\n".join, failed.items()))


def test_two_processes_agree_with_one():
    """Two processes, joined by `jax.distributed`, train one step, each on its half of the batch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with contextlib.ExitStack() as stack:
        two = [stack.enter_context(python(__file__, "process", address, str(i), env=virtual(1))) for i in range(2)]
        outputs = [process.communicate(timeout=300) for process in two]
    assert [process.returncode for process in two] == [0, 0], outputs
    for out, _ in outputs:
        found = json.loads(out.splitlines()[-1])
        np.testing.assert_allclose(found["loss"], float(loss(*problem("thin")[:3])), rtol=1e-5)
        np.testing.assert_allclose(found["w"], step(*problem("thin")[:3])[1].ravel(), rtol=1e-4, atol=1e-5)
        assert "native" not in found["ran"] and len(found["ran"]) == 2


def test_the_example(monkeypatch, capsys):
    """On eight devices, and its training on one device of this process without the library."""
    example = str(Path(__file__).parents[1] / "examples" / "distributed.py")
    with python(example, "--steps", "2", env=dict(os.environ)) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("forward no communication") == 4
    assert re.findall(r"gradients (.*)", out) == ["no communication", "all-reduce", "no communication", "all-reduce"]
    assert out.count("computed by taps, ") == 4 and "native" not in out
    monkeypatch.setattr(sys, "argv", [example, "--real", "--steps", "2"])
    runpy.run_path(example)["train"](1, 1)
    unmarked = capsys.readouterr().out
    assert "computed by native, native, native" in unmarked
    losses = [re.findall(r"loss: (.*)", text) for text in (out, unmarked)]
    np.testing.assert_allclose(*([list(map(float, line.split())) for line in lines[:1]] for lines in losses), atol=1.1e-4)
    assert out.endswith("4 ways to share the work, the same losses\n")


def virtual(devices):
    """The environment of a process with so many virtual devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


@contextlib.contextmanager
def python(*args, env):
    """A Python process that finds the library, and does not outlive the test."""
    root = Path(__file__).parents[1]
    env = env | {"PYTHONPATH": os.pathsep.join([str(root), env.get("PYTHONPATH", "")])}
    with subprocess.Popen(
        [sys.executable, *args], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def loss(conv, x, w):
    return jnp.mean(jnp.sin(conv(x, w)))


def step(conv, x, w):
    """One step of gradient descent: the loss before it, and the new kernel."""
    value, grad = jax.value_and_grad(functools.partial(loss, conv), 1)(x, w)
    return value, w - grad


def run_checks():
    found = {}
    for name, (check, *args, axes) in CHECKS.items():
        try:
            check(*args, **axes)
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()
    print(json.dumps(found))


def run_process(address, index):
    jax.distributed.initialize(address, 2, int(index))
    conv, x, w, _, names = problem("thin")
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    of_x, of_w = (NamedSharding(mesh, spec) for spec in specs(names, batch="d"))
    x = jax.make_array_from_process_local_data(of_x, x[8 * int(index) :][:8])
    w = jax.make_array_from_process_local_data(of_w, w)
    lowered = jax.jit(jgc.accelerate(functools.partial(step, conv)), out_shardings=(None, of_w)).lower(x, w)
    value, new = lowered.compile()(x, w)
    print(json.dumps({"loss": float(value), "w": np.asarray(new).ravel().tolist(), "ran": ran(lowered.as_text())}))


if __name__ == "__main__":
    {"checks": run_checks, "process": run_process}[sys.argv[1]](*sys.argv[2:])
