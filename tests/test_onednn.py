"""oneDNN's kernels are called where they are known to work and to be faster, and nowhere else."""

import functools
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import oracle
import pytest
from cases import AVAILABLE, CASES, NDHWC, NHWC, WEIGHT_GRADIENT, WEIGHT_GRADIENT_NHWC, Case
from jax import export, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxgroupconv as jgc
from jaxgroupconv import LOWERINGS, kernel_plan, plan
from jaxgroupconv.lowerings import onednn
from jaxgroupconv.planner import choose

CALL = "__onednn$convolution"
SAME = ((1, 1), (1, 1))
GROUPED = Case("", (2, 20, 20, 32), (3, 3, 8, 32), groups=4, padding=SAME, layouts=NHWC)

called = pytest.mark.skipif("onednn" not in AVAILABLE, reason="not with this jaxlib or on this machine, as the first test says")


def conv(x, w):
    return lax.conv_general_dilated(x, w, **GROUPED.params)


def scrambled(spec, config=onednn._config):
    """A call of an XLA that counts the padding from the other end."""
    return config(spec).replace('"pad_left": [1, 2], "pad_right": [0, 1]', '"pad_left": [0, 1], "pad_right": [1, 2]')


@pytest.fixture
def another_machine():
    """The trial is made anew, and again for the next test."""
    onednn._lacking.cache_clear()
    yield
    onednn._lacking.cache_clear()


def text(function, *arrays):
    return jax.jit(lambda *arrays: function(*arrays)).lower(*arrays).as_text()


def test_it_is_there_with_a_jaxlib_that_was_tried():
    tried = any(jaxlib.version.__version__.startswith(f"{version}.") for version in onednn.TRIED)
    machine = platform.system() == "Linux" and platform.machine() == "x86_64" and " avx2 " in Path("/proc/cpuinfo").read_text()
    assert (LOWERINGS["onednn"].unavailable() is None) == (tried and machine)


@called
@pytest.mark.parametrize("dilation", [1, 2])
def test_its_calls_one_for_each_phase_of_a_dilated_input_are_kept_apart_from_what_uses_them(dilation):
    case = Case("", (1, 9, 9, 96), (3, 3, 32, 96), groups=3, lhs_dilation=(dilation, dilation), layouts=NHWC)
    with jgc.accelerate("onednn"):
        program = text(lambda x, w: jax.nn.relu(lax.conv_general_dilated(x, w, **case.params)), *case.arrays())
    assert program.count(CALL) == dilation**2
    assert 'inlineable = "false"' in program


@called
def test_it_is_called_forward_and_in_the_input_s_gradient():
    x, w = GROUPED.arrays()

    def all_three(x, w):
        out, pull = jax.vjp(conv, x, w)
        return out, *pull(x)

    program = jgc.accelerate(all_three)
    explained = {entry.role: entry.plan.name for entry in jgc.explain(program, x, w).entries}
    assert explained == {"forward": "onednn", "dx": "onednn", "dw": "taps"}
    assert text(program, x, w).count(CALL) == 2
    for actual, expected in zip(jax.jit(program)(x, w), all_three(x, w), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3)


@called
@pytest.mark.parametrize(
    ("items", "size", "kernel", "target"),
    [(8, 10, 3, CALL), (8, 3, 5, CALL), (4, 10, 3, "__onednn$matmul"), (8, 10, 1, "__onednn$matmul")],
    ids=["items as channels", "a map smaller than the kernel", "few items", "1x1"],
)
def test_a_weight_gradient_is_a_convolution_of_the_items_or_a_product(items, size, kernel, target):
    x, w = jnp.ones((items, size, size, 64)), jnp.ones((kernel, kernel, 32, 64))
    settings = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC, feature_group_count=2)
    out, pull = jax.vjp(jgc.accelerate(lambda w: lax.conv_general_dilated(x, w, **settings)), w)
    program = text(lambda ct: pull(ct), out)
    assert target in program and program.count("__onednn$") == program.count(target)


@called
@pytest.mark.parametrize("transform", [jax.vmap, lambda f: lambda *stacks: lax.map(lambda pair: f(*pair), stacks)])
def test_it_is_called_under_transformations(transform):
    x, w = GROUPED.arrays()
    stacks = jnp.stack([x, 2 * x]), jnp.stack([w, w])
    program = transform(jgc.accelerate(conv))
    assert CALL in text(program, *stacks)
    np.testing.assert_allclose(jax.jit(program)(*stacks)[1], 2 * conv(x, w), rtol=1e-4, atol=1e-4)


# Where XLA has to look into what it gets, or cannot keep it.


def test_a_portable_program_holds_no_call():
    assert CALL not in text(jgc.accelerate("portable")(conv), *GROUPED.arrays())


@called
@pytest.mark.parametrize("implementation", ["auto", "onednn"])
def test_an_exported_program_holds_no_call(implementation):
    x, w = GROUPED.arrays()
    program = jax.jit(jgc.accelerate(implementation)(conv))
    assert CALL in program.lower(x, w).as_text()
    exported = export.export(program)(x, w)
    assert CALL not in exported.mlir_module()
    np.testing.assert_allclose(export.deserialize(exported.serialize()).call(x, w), conv(x, w), rtol=1e-4, atol=1e-4)


@called
@pytest.mark.parametrize("implementation", ["auto", "onednn"])
def test_no_call_is_made_where_compiled_programs_are_stored(implementation, tmp_path):
    x, w = GROUPED.arrays()
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        assert CALL not in text(jgc.accelerate(implementation)(conv), x, w)
        with pytest.raises(NotImplementedError, match="compilation cache is on, and XLA cannot store a program that calls"):
            LOWERINGS["onednn"].lower(GROUPED.spec, x, w)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert CALL in text(jgc.accelerate(implementation)(conv), x, w)


@called
@pytest.mark.parametrize("implementation", ["auto", "onednn"])
def test_no_call_is_planned_on_several_devices_or_another_platform(implementation):
    assert choose(GROUPED.spec, implementation, "cpu").name == "onednn"
    assert choose(GROUPED.spec, implementation, "cpu", partitioned=True).name != "onednn"
    assert choose(GROUPED.spec, implementation, "cuda").name == "native"


@called
def test_a_mesh_of_one_device_changes_nothing():
    x, w = GROUPED.arrays()
    mesh = Mesh(np.array(jax.devices()[:1]), "d")
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("d")))
    specs = dict(in_specs=(PartitionSpec("d"), PartitionSpec()), out_specs=PartitionSpec("d"))
    by_shard = jax.shard_map(jgc.accelerate(conv), mesh=mesh, **specs)
    for program in (jgc.accelerate(conv), by_shard):
        assert CALL in text(program, sharded, w)
        np.testing.assert_allclose(jax.jit(program)(sharded, w), conv(x, w), rtol=1e-4, atol=1e-4)


# Where it may not exist.


@pytest.mark.parametrize(
    ("owner", "attribute", "value", "reason"),
    [
        (jaxlib.version, "__version__", "0.9.2", "oneDNN's calls are known of jaxlib 0.12, and this is 0.9"),
        (jaxlib.version, "__version__", "0.120.1", "oneDNN's calls are known of jaxlib 0.12, and this is 0.120"),
        (onednn.platform, "machine", lambda: "aarch64", "only jaxlib for Linux on x86-64 holds oneDNN"),
        (onednn.platform, "system", lambda: "Darwin", "only jaxlib for Linux on x86-64 holds oneDNN"),
        (onednn.pathlib.Path, "read_text", lambda self: "flags : sse4_1 avx", "a processor without AVX2"),
        (onednn, "_TARGET", "__another$convolution", "its trial failed: "),
        (onednn, "_config", scrambled, "its trial's numbers are wrong"),
    ],
)
def test_without_it_the_other_lowerings_are_used(owner, attribute, value, reason, another_machine, monkeypatch):
    if owner is not jaxlib.version:
        monkeypatch.setattr(jaxlib.version, "__version__", f"{onednn.TRIED[-1]}.0")
    monkeypatch.setattr(owner, attribute, value)
    x, w = GROUPED.arrays()
    assert reason in LOWERINGS["onednn"].unavailable()
    chosen = choose(GROUPED.spec, "onednn", "cpu")
    assert chosen.name == plan(GROUPED.spec, "cpu").name != "onednn" and f"onednn refuses: {reason}" in chosen.reason
    with pytest.raises(NotImplementedError, match=reason):
        LOWERINGS["onednn"].lower(GROUPED.spec, x, w)
    program = jgc.accelerate(conv)
    assert CALL not in text(program, x, w)
    np.testing.assert_allclose(jax.jit(program)(x, w), conv(x, w), rtol=1e-4, atol=1e-4)


@called
def test_the_trial_is_made_once_also_while_a_program_is_lowered(another_machine, monkeypatch):
    trials = []
    monkeypatch.setattr(onednn, "_right", lambda right=onednn._right: trials.append(None) or right())
    x, w = GROUPED.arrays()
    jgc.enable()
    try:
        assert CALL in text(lambda x, w: conv(conv(x, w), w[::-1, ::-1]), x, w)
    finally:
        jgc.disable()
    assert len(trials) == 1


# The plan.

DEPTHWISE = dict(groups=24, padding=SAME)


@pytest.mark.parametrize(
    ("case", "planned"),
    [
        (Case("", (1, 9, 9, 24), (3, 3, 1, 24), layouts=NHWC, **DEPTHWISE), True),
        (Case("", (1, 24, 9, 9), (24, 1, 3, 3), **DEPTHWISE), False),  # two copies cost more than the kernel gains,
        (Case("", (1, 24, 9, 9), (24, 1, 3, 3), strides=(2, 2), **DEPTHWISE), True),  # but not if sums are no vector loops,
        (Case("", (1, 24, 20, 20), (24, 1, 15, 15), groups=24, padding=((7, 7), (7, 7))), True),  # or long
        (Case("", (1, 9, 9, 24), (3, 3, 1, 24), rhs_dilation=(2, 2), layouts=NHWC, **DEPTHWISE), True),
        (Case("", (1, 29, 29, 24), (3, 3, 1, 24), rhs_dilation=(12, 12), layouts=NHWC, **DEPTHWISE), False),
        (Case("", (1, 9, 9, 24), (3, 3, 1, 48), layouts=NHWC, **DEPTHWISE), False),  # a multiplier: vectors half empty
        (Case("", (1, 9, 9, 24), (3, 3, 1, 24), layouts=NHWC, dtype="bfloat16", **DEPTHWISE), False),
        (Case("", (1, 9, 9, 24), (7, 7, 1, 24), groups=24, padding=((3, 3), (3, 3)), layouts=NHWC, dtype="bfloat16"), True),
        (Case("", (1, 9, 9, 24), (3, 3, 1, 24), layouts=NHWC, dtype="float64", **DEPTHWISE), False),
        (GROUPED, True),
        (Case("", (1, 9, 9, 6), (3, 3, 2, 6), groups=3, layouts=NHWC), False),
        (Case("", (1, 12, 9, 9), (12, 4, 3, 3), groups=3), False),
        (Case("", (1, 24, 9, 9), (24, 8, 3, 3), groups=3), True),
        (Case("", (1, 24, 9, 9), (24, 8, 1, 1), groups=3), False),
        (Case("", (1, 9, 9, 24), (1, 1, 8, 24), groups=3, layouts=NHWC), True),
        (Case("", (1, 9, 9, 24), (3, 3, 8, 24), groups=3, lhs_dilation=(2, 2), layouts=NHWC), False),
        (Case("", (1, 9, 9, 36), (3, 3, 12, 36), groups=3, lhs_dilation=(2, 2), layouts=NHWC), False),  # sums are faster
        (Case("", (1, 9, 9, 36), (5, 5, 12, 36), groups=3, lhs_dilation=(2, 2), layouts=NHWC), True),  # of fewer terms
        (Case("", (1, 9, 9, 48), (3, 3, 16, 48), groups=3, lhs_dilation=(2, 2), layouts=NHWC), True),
        (Case("", (1, 9, 9, 48), (2, 2, 16, 48), groups=3, lhs_dilation=(2, 2), layouts=NHWC), False),
        (Case("", (16, 56, 56, 48), (3, 3, 16, 48), groups=3, lhs_dilation=(2, 2), layouts=NHWC), False),  # new pages
        (Case("", (1, 9, 9, 24), (7, 7, 8, 24), groups=3, lhs_dilation=(3, 3), layouts=NHWC), True),  # too many terms for sums
        (Case("", (1, 6, 6, 6, 36), (3, 3, 3, 12, 36), groups=3, lhs_dilation=(2, 2, 2), layouts=NDHWC), True),
        (Case("", (1, 72, 9, 9), (72, 24, 3, 3), groups=3, lhs_dilation=(2, 2)), False),
        (Case("", (1, 96, 9, 9), (96, 32, 3, 3), groups=3, lhs_dilation=(2, 2)), True),
        (Case("", (1, 36, 9, 9), (36, 12, 5, 5), groups=3, lhs_dilation=(2, 2)), True),
        (Case("", (1, 9, 9, 24), (3, 3, 24, 24), layouts=NHWC), True),
        (Case("", (8, 9, 9, 24), (3, 3, 24, 24), lhs_dilation=(2, 2), layouts=NHWC), False),  # few operations
        (Case("", (8, 40, 40, 24), (3, 3, 24, 24), lhs_dilation=(2, 2), layouts=NHWC), True),
        (Case("", (8, 24, 40, 40), (24, 24, 3, 3), lhs_dilation=(2, 2)), True),
        (Case("", (8, 40, 40, 24), (3, 3, 24, 24), lhs_dilation=(3, 3), layouts=NHWC), False),  # one product
        (Case("", (8, 40, 40, 24), (5, 5, 24, 24), lhs_dilation=(3, 3), layouts=NHWC), True),
        (Case("", (8, 40, 40, 48), (5, 5, 48, 24), lhs_dilation=(3, 3), layouts=NHWC), False),  # lax's product is large
        (Case("", (1, 6, 6, 6, 24), (3, 3, 3, 24, 24), lhs_dilation=(2, 2, 2), layouts=NDHWC), True),
        (Case("", (1, 6, 6, 6, 16), (3, 3, 3, 16, 24), lhs_dilation=(2, 2, 2), layouts=NDHWC), False),
        (Case("", (8, 40, 40, 24), (2, 2, 24, 24), lhs_dilation=(2, 2), layouts=NHWC), False),  # one product
        (Case("", (8, 40, 40, 48), (1, 1, 48, 48), lhs_dilation=(2, 2), layouts=NHWC), False),  # one product too
        (Case("", (8, 40, 40, 72), (3, 3, 72, 24), lhs_dilation=(2, 2), layouts=NHWC), False),  # its product too
        (Case("", (1, 24, 9, 9), (5, 24, 3, 3)), False),
        (Case("", (1, 9, 9, 24), (1, 1, 24, 24), layouts=NHWC), False),  # which is a matrix product
        (Case("", (8, 23, 23, 64), (1, 1, 64, 64), strides=(2, 2), layouts=NHWC), True),  # which would be that of a copy
        (Case("", (1, 23, 23, 64), (1, 1, 64, 64), strides=(2, 2), layouts=NHWC), False),  # few operations
        (Case("", (1, 23, 23, 128), (1, 1, 128, 512), strides=(2, 2), layouts=NHWC), False),  # few positions
        (Case("", (8, 9, 9, 96), (8, 7, 7, 96), batch_groups=3, layouts=WEIGHT_GRADIENT_NHWC), True),
        (Case("", (8, 9, 9, 24), (8, 7, 7, 24), batch_groups=3, layouts=WEIGHT_GRADIENT_NHWC), False),
        (Case("", (4, 12, 16, 16), (4, 24, 14, 14), layouts=WEIGHT_GRADIENT), True),
        (Case("", (2, 12, 16, 16), (2, 24, 14, 14), layouts=WEIGHT_GRADIENT), False),  # few positions
        (Case("", (4, 11, 16, 16), (4, 24, 14, 14), layouts=WEIGHT_GRADIENT), False),  # few input channels
        (Case("", (4, 24, 28, 28), (4, 24, 24, 24), layouts=WEIGHT_GRADIENT), True),
        (Case("", (1, 24, 66, 66), (1, 24, 64, 64), layouts=WEIGHT_GRADIENT), False),  # one item,
        (Case("", (1, 24, 67, 67), (1, 24, 33, 33), rhs_dilation=(2, 2), layouts=WEIGHT_GRADIENT), True),  # but strided
        (Case("", (4, 24, 18, 18), (4, 24, 14, 14), layouts=WEIGHT_GRADIENT), False),  # few positions for 5x5
        (Case("", (8, 24, 16, 16), (8, 8, 14, 14), layouts=WEIGHT_GRADIENT), True),  # the items are the channels
        (Case("", (8, 24, 66, 66), (8, 8, 64, 64), layouts=WEIGHT_GRADIENT), False),  # too many columns for them
        (Case("", (8, 24, 66, 66), (8, 24, 64, 64), layouts=WEIGHT_GRADIENT), True),
        (Case("", (8, 96, 66, 66), (8, 96, 64, 64), layouts=WEIGHT_GRADIENT), False),  # large
        (Case("", (8, 48, 9, 9), (8, 48, 7, 7), batch_groups=3, layouts=WEIGHT_GRADIENT), False),
    ],
    ids=lambda value: str(getattr(value, "spec", value)),
)
def test_it_is_planned_for_vectors_of_channels(case, planned, monkeypatch):
    monkeypatch.setattr(kernel_plan, "LEAST", 0)  # so that the maps may be small
    assert (plan.__wrapped__(case.spec, "cpu", kernels=True).name == "onednn") == planned
    assert plan(case.spec, "cpu").name != "onednn"


@pytest.mark.parametrize(("size", "planned"), [(7, False), (9, True)])
def test_a_call_is_not_worth_a_small_convolution(size, planned):
    case = Case("", (2, size, size, 32), (3, 3, 8, 32), groups=4, padding=SAME, layouts=NHWC)
    assert (plan(case.spec, "cpu", kernels=True).name == "onednn") == planned


@pytest.mark.parametrize(("size", "planned"), [(9, False), (14, True)])
def test_four_are_not_worth_a_small_dilated_input(size, planned):
    case = Case("", (2, size, size, 64), (3, 3, 16, 64), groups=4, padding=SAME, lhs_dilation=(2, 2), layouts=NHWC)
    assert (plan(case.spec, "cpu", kernels=True).name == "onednn") == planned


WEIGHT_GRADIENTS = [
    Case("", (8, 9, 9, 48), (8, 5, 5, 48), 1, 3, (1, 1), ((1, 0), (1, -1)), rhs_dilation=(2, 2), layouts=WEIGHT_GRADIENT_NHWC),
    Case("", (2, 30, 48), (2, 18, 48), 1, 3, layouts=("CWN", "IWO", "WNC")),
    Case("", (2, 5, 6, 7, 32), (2, 3, 4, 4, 48), 1, 2, (1, 2, 1), layouts=("CDHWN", "IDHWO", "DHWNC")),
]


@called
@pytest.mark.parametrize("case", WEIGHT_GRADIENTS, ids=lambda case: str(case.spec))
def test_products_of_some_columns_are_the_weight_gradient(case):
    out = jax.jit(functools.partial(LOWERINGS["onednn"].lower, case.spec))(*case.arrays())
    np.testing.assert_allclose(out, oracle.conv(*case.arrays(), **case.params), rtol=1e-4, atol=1e-4)


@called
@pytest.mark.parametrize("kernel", [3, 9])
def test_products_take_at_most_three_times_operands_and_result(kernel):
    shape = 4, 20, 20, 64
    padding = ((kernel // 2, kernel // 2),) * 2
    case = Case("", shape, shape, batch_groups=2, padding=padding, layouts=WEIGHT_GRADIENT_NHWC)
    operands = [jax.ShapeDtypeStruct(shape, "float32")] * 2
    compiled = jax.jit(functools.partial(LOWERINGS["onednn"].lower, case.spec)).lower(*operands).compile()
    assert compiled.as_text().count("__onednn$matmul") >= kernel
    assert compiled.memory_analysis().temp_size_in_bytes <= 3 * case.spec.bytes


# A processor without AVX-512 has other kernels.


@called
def test_right_with_avx2():
    """The cases, in a process in which oneDNN and XLA use nothing newer than AVX2."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_max_isa=AVX2"
    env = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "XLA_FLAGS": flags, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 70


def check_cases():
    """Computes each case that oneDNN accepts, and once more with a NaN in one group and item; returns how many."""
    accepted = [case for case in CASES if LOWERINGS["onednn"].why_not(case.spec) is None]
    for case in accepted:
        spec, (lhs, rhs) = case.spec, case.arrays()
        lower = jax.jit(functools.partial(LOWERINGS["onednn"].lower, spec))
        expected, narrow = oracle.conv(lhs, rhs, **case.params), case.out_dtype.itemsize == 2
        clean = lower(lhs, rhs)
        bound = 1e-2 if narrow else 1e-4
        np.testing.assert_allclose(oracle.wide(np.asarray(clean)), expected, rtol=bound, atol=bound, err_msg=case.name)
        faulty = np.array(lhs.reshape(spec.shape(spec.lhs_layout, spec.in_size)))
        where = tuple({"n": 0, "g": 0}.get(axis, slice(None)) for axis in spec.lhs_layout)
        faulty[where] = np.nan
        out = np.asarray(lower(faulty.reshape(lhs.shape), rhs)).reshape(spec.shape(spec.out_layout, spec.out_size))
        where = tuple({"n": 0, "g": 0}.get(axis, slice(None)) for axis in spec.out_layout)
        rest = np.ones(out.shape, bool)
        rest[where] = False
        same = np.asarray(clean).reshape(out.shape)[rest] == out[rest]
        assert same.all(), case.name
    return len(accepted)


if __name__ == "__main__":
    print(check_cases())
