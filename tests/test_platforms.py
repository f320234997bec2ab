"""What is lowered for platforms that this machine may not have, over the benchmark's layers and all three passes."""

import contextlib
import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from inspecting import ran
from jax import lax

import jaxgroupconv as jgc
from jaxgroupconv import LOWERINGS

with pytest.MonkeyPatch.context() as patch:  # the benchmark's layers are data beside the tests
    patch.syspath_prepend(pathlib.Path(__file__).parent.parent)
    candidates = importlib.import_module("benchmarks.candidates")
    shapes = importlib.import_module("benchmarks.shapes")

ROWS = [row for rows in shapes.SELECTIONS.values() for row in rows]
# Of each class the first row that is channel-first and the last that is channel-last; and every dtype of the GPU's rows.
SOME = {(row.kind, row.layout): row for row in shapes.ROWS if row.channel_last} | {
    (row.kind, row.layout): row for row in reversed(shapes.ROWS) if not row.channel_last
}
SOME = list((SOME | {row.dtype: row for row in shapes.SELECTIONS["gpu"]}).values())
MARK = r'mhlo\.frontend_attributes = \{jaxgroupconv = "\w+"\}'


def passes(row):
    """The row's forward pass and gradients as one program, and its arguments."""
    modes = [candidates.program(row, mode, candidates.lax_conv) for mode in row.modes]
    arguments = [jax.ShapeDtypeStruct(shape, row.operand_dtype) for shape in (row.x_shape, row.w_shape, row.out_shape)]
    return lambda *args: [mode(*args) for mode in modes], arguments


def lowered(fn, arguments, *platforms):
    """The StableHLO text for platforms."""
    return jax.jit(fn).trace(*arguments).lower(lowering_platforms=platforms).as_text()


def without_mark(text):
    return re.sub(rf" \{{{MARK}\}}|{MARK}, ", "", text)


def wide(dtype):
    """The context in which a dtype exists."""
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


def specs():
    """Every convolution in the passes of SOME, once."""
    found = {}
    for row in SOME:
        fn, arguments = passes(row)
        with wide(row.dtype):
            found |= dict.fromkeys(entry.spec for entry in jgc.explain(fn, *arguments).entries)
    return list(found)


def convolve(spec):
    """The spec as a call of lax, and its arguments."""
    arguments = [jax.ShapeDtypeStruct(spec.lhs_shape, spec.lhs_dtype), jax.ShapeDtypeStruct(spec.rhs_shape, spec.rhs_dtype)]
    return lambda x, w: lax.conv_general_dilated(x, w, **spec.lax_params()), arguments


def test_the_layers_are_there():
    assert len(ROWS) > 180 and len(SOME) > 20
    assert {row.dtype for row in ROWS} >= {"float32", "tf32", "bfloat16", "float16", "float64", "int8"}


@pytest.mark.parametrize(("platform", "rows"), [("cuda", ROWS), ("rocm", SOME), ("tpu", SOME)], ids=["cuda", "rocm", "tpu"])
def test_a_native_plan_is_the_text_of_lax(platform, rows):
    """Where nothing is measured the program is lax's own, but for the mark; as the planner says, it is native."""
    for row in rows:
        fn, arguments = passes(row)
        with wide(row.dtype):
            explained = jgc.explain(jgc.accelerate(fn), *arguments, platform=platform)
            assert {(entry.marked, entry.plan) for entry in explained.entries} == {
                (True, jgc.plan(entry.spec, platform)) for entry in explained.entries
            }
            names = {entry.plan.name for entry in explained.entries}
            text = lowered(jgc.accelerate(fn), arguments, platform)
            assert set(ran(text)) == names == {"native"}, row.key
            assert without_mark(text) == lowered(fn, arguments, platform), row.key


@pytest.mark.parametrize("name", [name for name in LOWERINGS if name not in ("native", "onednn")])
def test_forced_lowerings_are_plain_operations_on_a_gpu(name):
    """Each is used wherever it accepts, and makes no custom call; only `feature_groups` leaves a grouped convolution."""
    used = 0
    for spec in specs():
        if LOWERINGS[name].why_not(spec) is not None:
            continue
        fn, arguments = convolve(spec)
        with wide(spec.lhs_dtype):
            text = lowered(jgc.accelerate(name)(fn), arguments, "cuda")
        groups = re.findall(r"batch_group_count = (\d+) : i64, feature_group_count = (\d+)", text)
        expected = {"per_group": {("1", "1")}, "feature_groups": {("1", str(spec.groups))}}.get(name, set())
        assert f"call @jaxgroupconv_{name}(" in text and "custom_call" not in text, spec
        assert set(groups) == expected and len(groups) == text.count("stablehlo.convolution"), spec
        used += 1
    assert used >= 10


@pytest.mark.parametrize("name", ["taps", "matmul", "per_group", "feature_groups"])
def test_a_precision_reaches_every_product(name):
    """Float32 that is asked for is multiplied as such everywhere, not in TF32 or bfloat16."""

    def conv(x, w):
        return jgc.group_conv(x, w, padding=1, precision=lax.Precision.HIGHEST)

    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 8, 16, 16), (8, 2, 3, 3)))
    text = lowered(jgc.accelerate(name)(lambda x, w, ct: jax.vjp(conv, x, w)[1](ct)), (x, w, x), "cuda")
    precisions = re.findall(r"precision(?:_config)? = \[(.*?)\]", text)
    assert f"call @jaxgroupconv_{name}(" in text and precisions
    assert {precision for pair in precisions for precision in re.findall("[A-Z]+", pair)} == {"HIGHEST"}


def test_each_platform_of_a_program_for_several_has_its_own_plan():
    """Of one program for CPU and GPU, the branch for the CPU is planned and the other one is lax's."""
    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 32, 56, 56), (32, 4, 3, 3)))
    conv = jgc.accelerate(lambda x, w: jgc.group_conv(x, w, padding=1))
    alone = {platform: ran(lowered(conv, (x, w), platform)) for platform in ("cpu", "cuda")}
    assert alone["cuda"] == ["native"] and alone["cpu"] not in ([], ["native"])
    for platforms in (("cpu", "cuda"), ("cuda", "cpu")):
        main = lowered(conv, (x, w), *platforms).split("func.func private")[0]
        _, branch_of_platform, choice = main.split('"stablehlo.case"')
        branches = [ran(branch) for branch in choice.split("}, {")]
        order = [int(index) for index in re.findall(r"dense<(\d)>", branch_of_platform)]
        assert [branches[index] for index in order] == [alone[platform] for platform in platforms]
