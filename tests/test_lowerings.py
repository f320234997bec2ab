"""Every lowering computes the same convolution as its definition, or refuses with a reason."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import AVAILABLE, CASES, EMPTY_CASES, WEIGHT_GRADIENT, WEIGHT_GRADIENT_NHWC, Case, random_cases
from jax import lax

from jaxgroupconv import LOWERINGS, plan
from jaxgroupconv.lowerings import block_sums, matmul, onednn, position_sums, tap_sums, taps, weight_sums
from jaxgroupconv.lowerings.block_sums import depthwise

LEAST_ACCEPTED = {"feature_groups": 15}  # cases; a lowering that accepts fewer than 70 must say so here
RANDOM_CASES = random_cases(60, seed=0)
NHWC = ("NHWC", "HWIO", "NHWC")


def accepted(name, cases=CASES):
    return [case for case in cases if LOWERINGS[name].why_not(case.spec) is None]


def pairs(cases):
    return [pytest.param(name, case, id=f"{name}-{case}") for name in AVAILABLE for case in accepted(name, cases)]


def one_channel_a_group(spec):
    return spec.in_channels == spec.out_channels == 1 and not spec.short_output


@functools.cache
def compiled(name, case):
    """The lowering of a case, compiled once for all tests."""
    spec = case.spec
    return jax.jit(lambda lhs, rhs: LOWERINGS[name].lower(spec, lhs, rhs))


def run(name, case, *operands, compiled=compiled):
    """The result; with `compiled.__wrapped__` as it is computed now, where a test changed how."""
    with jax.enable_x64(case.x64):
        return np.asarray(compiled(name, case)(*(operands or case.arrays())))


@functools.cache
def definition(case):
    return oracle.conv(*case.arrays(), **case.params)


def assert_right(case, out):
    expected = definition(case)
    assert out.shape == expected.shape and out.dtype == case.out_dtype
    if jnp.issubdtype(case.out_dtype, jnp.integer):
        np.testing.assert_array_equal(out, expected.astype(out.dtype))  # exact, modulo 2**bits
    elif case.out_dtype.itemsize == 2:  # summed in float32 and rounded once: within one unit in the last place
        np.testing.assert_allclose(oracle.wide(out), expected, rtol=float(jnp.finfo(out.dtype).eps), atol=1e-5)
    else:
        eps, terms = float(jnp.finfo(out.dtype).eps), case.spec.in_channels * np.prod(case.spec.window)
        np.testing.assert_allclose(out, expected, rtol=100 * eps, atol=(50 + terms) * eps)


def test_each_lowering_accepts_most_of_the_cases():
    assert len({case.name for case in CASES}) == len(CASES) == len(accepted("native"))
    for name in LOWERINGS:
        assert len(accepted(name)) >= LEAST_ACCEPTED.get(name, 70), name


@pytest.mark.parametrize(("name", "case"), pairs(CASES))
def test_agrees_with_the_definition(name, case):
    assert_right(case, run(name, case))


@pytest.mark.parametrize("case", RANDOM_CASES, ids=str)
def test_agrees_with_the_definition_on_random_cases(case):
    spec, names = case.spec, [name for name in AVAILABLE if case in accepted(name, [case])]
    all_of_them = jax.jit(lambda lhs, rhs: [LOWERINGS[name].lower(spec, lhs, rhs) for name in names])
    outs = all_of_them(*case.arrays())
    assert len(outs) >= 2
    for out in map(np.asarray, outs):
        assert_right(case, out)


@pytest.mark.parametrize("case", [case for case in accepted("taps") if one_channel_a_group(case.spec)], ids=str)
def test_depthwise_sums_of_one_tap_after_the_other(case, monkeypatch):
    """As channel-last with kernels that are too large for the first cache."""
    monkeypatch.setattr(tap_sums, "KERNEL_BYTES", 1)
    monkeypatch.setattr(tap_sums, "LEAST_TAPS", 0)
    monkeypatch.setattr(taps, "OPEN_TERMS", 0)
    assert_right(case, run("taps", case, compiled=compiled.__wrapped__))


@pytest.mark.parametrize(
    "case", [case for case in accepted("taps") if case.spec.short_output and case.spec.groups > 1], ids=str
)
def test_weight_sums_of_one_group_and_item_after_the_other(case, monkeypatch):
    """As of large convolutions, whose sums would take too much memory together."""
    monkeypatch.setattr(weight_sums, "_at_a_time", lambda spec: (1, 1))
    assert_right(case, run("taps", case, compiled=compiled.__wrapped__))


def channels_are_minor(spec):
    return not depthwise(spec) and not weight_sums._plain(spec).lhs_layout.endswith(spec.spatial)


@pytest.mark.parametrize(
    "case", [case for case in accepted("taps") if case.spec.short_output and channels_are_minor(case.spec)], ids=str
)
def test_weight_sums_that_one_item_is_added_to_after_the_other(case, monkeypatch):
    """As of three items and more of whole vectors of output channels."""
    monkeypatch.setattr(weight_sums, "_added_at_a_time", lambda spec: 1)
    assert_right(case, run("taps", case, compiled=compiled.__wrapped__))


@pytest.mark.parametrize(
    "items, channels, size, at_a_time",
    [(8, 512, 14, 1), (32, 512, 3, 2), (2, 512, 14, 0), (8, 128, 14, 0), (8, 512, 28, 0), (8, 32, 14, 0)],
    ids=["one", "two of a small map", "few", "no whole vectors", "too large sums", "depthwise"],
)
def test_items_are_added_to_weight_sums_that_stay_in_a_cache(items, channels, size, at_a_time):
    shape = items, size, size, channels
    padding = ((1, 1), (1, 1))
    spec = Case("", shape, shape, batch_groups=32, padding=padding, layouts=WEIGHT_GRADIENT_NHWC).spec
    assert weight_sums._added_at_a_time(spec) == at_a_time


@pytest.mark.parametrize(
    "n, o, terms", [(16, 16, 7), (8, 8, 7), (4, 8, 14), (12, 12, 14), (12, 4, 14), (4, 4, 7), (16, 4, 7), (8, 4, 7), (4, 6, 14)]
)
def test_weight_sums_have_enough_terms_to_be_vectors(n, o, terms):
    shapes = (1, 30, 30, 4 * n), (1, 28, 28, 4 * o)
    spec = weight_sums._plain(Case("", *shapes, batch_groups=4, layouts=WEIGHT_GRADIENT_NHWC).spec)
    assert block_sums.terms(spec) == terms and spec.out_channels == (8 if o == 6 else o)
    assert block_sums.sums_layout(spec).endswith("on" if (n, o) in [(12, 4), (16, 4), (4, 8), (4, 6)] else "no")


@pytest.mark.parametrize(
    "case", [case for case in accepted("taps") if case.spec.short_output and depthwise(case.spec)], ids=str
)
def test_depthwise_weight_sums_of_some_positions_after_the_others(case, monkeypatch):
    """As of large kernels; two at a time do not divide an odd number."""
    monkeypatch.setattr(position_sums, "positions_at_a_time", lambda spec: 2)
    assert_right(case, run("taps", case, compiled=compiled.__wrapped__))


@pytest.mark.parametrize(
    "case", [case for case in accepted("taps") if case.spec.short_output and depthwise(case.spec)], ids=str
)
def test_depthwise_weight_sums_in_two_parts_where_rows_come_out_uneven(case, monkeypatch):
    """As of large maps of 19 or 37 rows, where blocks of as many rows need a copy of the cotangent, with some rows more."""
    monkeypatch.setattr(block_sums, "MORE_ROW_TERMS", 3)
    monkeypatch.setattr(weight_sums, "COPIED_BYTES", 0)
    assert_right(case, run("taps", case, compiled=compiled.__wrapped__))


@pytest.mark.parametrize("rows, parts", [(7, [7]), (28, [28]), (19, [10, 9]), (37, [26, 11]), (147, [140, 7])])
def test_the_rows_of_a_depthwise_weight_gradient_are_in_even_blocks(rows, parts):
    shape = 2, 8, rows, 14
    spec = Case("", shape, shape, batch_groups=8, padding=((1, 1), (1, 1)), layouts=WEIGHT_GRADIENT).spec
    found = block_sums.row_parts(spec)
    assert [part.window[0] for _, part in found] == parts and [row for row, _ in found] == [0, parts[0]][: len(parts)]
    assert all(part.window[0] % block_sums.block(part)[1] == 0 for _, part in found)


@pytest.mark.parametrize("case", [case for case in accepted("matmul") if case.spec.short_output], ids=str)
def test_weight_products_of_one_row_after_the_other(case, monkeypatch):
    """As of large maps; a row has fewer positions than the kernel, and is the part of a weight gradient nevertheless."""
    monkeypatch.setattr(matmul, "BLOCK_BYTES", 1)
    assert_right(case, run("matmul", case, compiled=compiled.__wrapped__))


@pytest.mark.parametrize("items, at_a_time", [(8, 8), (32, 2), (256, 2)])
def test_depthwise_weight_sums_are_a_loop_over_items_where_their_copies_would_take_new_pages(items, at_a_time):
    """Copies of 8 items are kept from call to call. Groups are minor in these copies: they stay together."""
    shape = items, 512, 14, 14
    spec = Case("", shape, shape, batch_groups=512, padding=((1, 1), (1, 1)), layouts=WEIGHT_GRADIENT).spec
    assert weight_sums._at_a_time(spec) == (512, at_a_time)


@pytest.mark.skipif("onednn" not in AVAILABLE, reason="not with this jaxlib or on this machine, as test_onednn.py says")
@pytest.mark.parametrize(
    "case", [case for case in accepted("onednn") if onednn.is_of_items(case.spec) and case.spec.in_channels > 10], ids=str
)
def test_a_weight_gradient_is_a_loop_over_items_where_their_copies_would_take_new_pages(case, monkeypatch):
    monkeypatch.setattr(onednn, "PAGED_BYTES", 1)
    assert "while" in compiled.__wrapped__("onednn", case).lower(*case.arrays()).as_text()
    assert_right(case, run("onednn", case, compiled=compiled.__wrapped__))


@pytest.mark.parametrize(
    "case", [case for case in accepted("taps") if case.spec.short_output and case.spec.groups > 1], ids=str
)
@pytest.mark.parametrize("column", [False, True], ids=["groups", "a column"])
def test_weight_sums_of_operands_with_groups_or_a_column_added(case, column, monkeypatch):
    """As of 512 channels, or of 64 columns, lest the rows that a sum reads share a set of the cache."""

    def more_groups(spec, size):
        return 3 * (spec.lhs_layout.endswith("gn") and (size == spec.in_size or not column))

    monkeypatch.setattr(weight_sums, "_more_groups", more_groups)
    assert_right(case, run("taps", case, compiled=compiled.__wrapped__))


def test_xla_keeps_nothing_of_the_windows_of_a_depthwise_weight_gradient():
    shape = 1, 28, 28, 64
    case = Case("", shape, shape, batch_groups=64, padding=((1, 1), (1, 1)), layouts=WEIGHT_GRADIENT_NHWC)
    lower = jax.jit(lambda *x: LOWERINGS["taps"].lower(case.spec, *x)).lower(*[jax.ShapeDtypeStruct(shape, "float32")] * 2)
    fusions = lower.compile().as_text().split("\n\n")
    assert ["multiply(" in fusion for fusion in fusions if "gather(" in fusion] == [True]


@pytest.mark.parametrize(
    ("name", "channels", "size", "groups", "dtype"),
    [
        ("taps", 512, 14, 32, "float32"),
        ("taps", 256, 28, 32, "bfloat16"),
        ("taps", 128, 56, 128, "bfloat16"),
        ("matmul", 64, 56, 1, "float32"),
        ("matmul", 432, 14, 9, "float32"),
    ],
)
@pytest.mark.parametrize("layouts", [WEIGHT_GRADIENT, WEIGHT_GRADIENT_NHWC], ids=["channel-first", "channel-last"])
def test_a_weight_gradient_takes_at_most_three_times_its_operands_and_result(name, channels, size, groups, dtype, layouts):
    shape = (1, channels, size, size) if layouts == WEIGHT_GRADIENT else (1, size, size, channels)
    case = Case("", shape, shape, batch_groups=groups, padding=((1, 1), (1, 1)), layouts=layouts, dtype=dtype)
    operands = [jax.ShapeDtypeStruct(shape, dtype)] * 2
    memory = jax.jit(lambda *x: LOWERINGS[name].lower(case.spec, *x)).lower(*operands).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= 3 * case.spec.bytes


def test_the_sum_of_many_16_bit_products_is_rounded_once():
    """In float16, 2048 + 1 is 2048: a sum of 4096 ones tells where it was rounded."""
    case = Case("ones", (1, 16, 32, 16), (2, 8, 32, 16), groups=2, dtype="float16")
    for name in AVAILABLE:
        if accepted(name, [case]):
            out = run(name, case, np.ones(case.lhs, np.float16), np.ones(case.rhs, np.float16))
            np.testing.assert_array_equal(out, np.full((1, 2, 1, 1), 4096, np.float16), err_msg=name)


@pytest.mark.parametrize("name", [name for name in LOWERINGS if name != "native"])
def test_a_refusal_is_an_error_that_gives_the_reason(name):
    case = Case("complex", (1, 2, 5, 5), (2, 1, 3, 3), groups=2, dtype="complex64")
    reason = LOWERINGS[name].why_not(case.spec)
    assert reason == "dtypes complex64, complex64 -> complex64"
    with pytest.raises(NotImplementedError, match=f"The lowering '{name}' refuses .*: {reason}"):
        run(name, case)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"precision": "BF16_BF16_F32"}, "precision BF16_BF16_F32"),
        ({"in_size": (0, 5)}, "an empty array"),
        ({"lhs_dtype": np.dtype(bool), "rhs_dtype": np.dtype(bool)}, "dtypes bool, bool -> float32"),
    ],
)
def test_what_only_lax_understands_is_refused(changes, reason):
    spec = dataclasses.replace(Case("", (1, 2, 5, 5), (2, 1, 3, 3), groups=2, padding=((3, 0), (0, 0))).spec, **changes)
    reasons = {name: lowering.why_not(spec) for name, lowering in LOWERINGS.items()}
    assert reasons.pop("native") is None
    assert set(reasons.values()) == {reason}


@pytest.mark.parametrize(
    ("name", "case", "number"),
    [
        ("taps", Case("long rows", (1, 2, 8, 300), (2, 1, 3, 130), groups=2), "130"),
        ("matmul", Case("many elements", (1, 2, 200, 9), (2, 1, 80, 3), groups=2), "240"),
        ("per_group", Case("dense", (1, 3, 5, 5), (2, 3, 3, 3)), "one group"),
        ("feature_groups", Case("grouped", (1, 4, 5, 5), (4, 2, 3, 3), groups=2), "no batch groups"),
    ],
    ids=str,
)
def test_each_lowering_has_its_own_reasons(name, case, number):
    assert number in (LOWERINGS[name].why_not(case.spec) or "")
    assert plan(case.spec, "cpu").name != name


@pytest.mark.parametrize("case", EMPTY_CASES, ids=str)
def test_empty_arrays_are_lax_s(case):
    assert plan(case.spec, "cpu").name == "native"
    assert [name for name in LOWERINGS if accepted(name, [case])] == ["native"]
    np.testing.assert_array_equal(run("native", case), definition(case))


SEPARABLE = [c for c in CASES if c.dtype == "float32" and not c.preferred and min(c.spec.batch, c.groups * c.batch_groups) > 1]


def test_batch_groups_are_never_planned_as_lax_s():
    """XLA:CPU multiplies all pairs of lax's batch groups, and then by zeros: there a fault of one group reaches the others."""
    for case in SEPARABLE:
        assert case.batch_groups == 1 or plan(case.spec, "cpu").name != "native", case


@pytest.mark.parametrize(("name", "case"), pairs(SEPARABLE))
def test_inf_and_nan_stay_in_their_group_and_item(name, case):
    """Every number of another group, item or output channel keeps its bits."""
    clean, spec, last = groups_first(case, run(name, case)), case.spec, case.spec.out_channels - 1
    for fault in (np.inf, np.nan):
        lhs, rhs = case.arrays()
        axes_first(lhs.reshape(spec.shape(spec.lhs_layout, spec.in_size)), spec.lhs_layout, "gn")[1, 0] = fault
        assert_same_except(groups_first(case, run(name, case, lhs, rhs)), clean, (1, 0))
        lhs, rhs = case.arrays()
        axes_first(rhs.reshape(spec.shape(spec.rhs_layout, spec.window)), spec.rhs_layout, "go")[0, last] = fault
        assert_same_except(groups_first(case, run(name, case, lhs, rhs)), clean, (0, slice(None), last))


def axes_first(array, layout, axes):
    """A view of the array with some axes first, the others in their order."""
    return array.transpose([layout.index(axis) for axis in axes + "".join(axis for axis in layout if axis not in axes)])


def groups_first(case, out):
    """The result with its groups, items and output channels as its first axes."""
    layout = case.spec.out_layout
    return axes_first(out.reshape(case.spec.shape(layout, case.spec.out_size)), layout, "gno")


def assert_same_except(out, clean, where):
    rest = np.ones(out.shape, bool)
    rest[where] = False
    assert not np.isfinite(out[where]).all()
    np.testing.assert_array_equal(out[rest].view(np.uint32), clean[rest].view(np.uint32))


def test_precision_is_passed_on():
    case = Case("pointwise", (1, 12, 4, 4), (6, 4, 1, 1), groups=3)
    spec = dataclasses.replace(case.spec, precision=(lax.Precision.HIGHEST,) * 2)
    for name in ("matmul", "per_group", "native"):
        lowered = jax.jit(functools.partial(LOWERINGS[name].lower, spec)).lower(*case.arrays())
        assert "HIGHEST" in lowered.as_text(), name


def test_a_loop_over_slices_is_one_of_vector_loops_on_all_cores():
    """XLA neither fuses the slicing into the terms, nor takes the loop for a small one that a single core runs."""
    for case in (
        Case("thin groups", (1, 32, 28, 28), (32, 8, 3, 3), groups=4),
        Case("large kernel", (1, 28, 28, 16), (13, 13, 1, 16), groups=16, layouts=NHWC),
    ):
        spec = case.spec
        text = jax.jit(lambda x, w, spec=spec: LOWERINGS["taps"].lower(spec, x, w)).lower(*case.arrays()).compile().as_text()
        assert text.count(" while(") == 1 and re.search(r" call\([^\n]*to_apply=%fetch", text) and "small_call" not in text


@pytest.mark.parametrize(
    ("kernel", "channels", "calls"),
    [((7, 7), 96, 0), ((7, 7), 192, 1), ((31,), 256, 1), ((9, 9), 32, 1), ((13, 13), 512, 4), ((5, 5), 4096, 0)],
)
def test_the_kernel_of_a_long_depthwise_sum_stays_in_the_first_cache(kernel, channels, calls):
    """Channel-last all of it is read again at each position. 13x13 is a loop over two rows, in four parts, and a row in two."""
    layouts = ("NWC", "WIO", "NWC") if len(kernel) == 1 else NHWC
    padding = tuple((size // 2, size // 2) for size in kernel)
    shapes = (1, *(2 * size for size in kernel), channels), (*kernel, 1, channels)
    case = Case("long", *shapes, groups=channels, padding=padding, layouts=layouts)
    text = jax.jit(functools.partial(LOWERINGS["taps"].lower, case.spec)).lower(*case.arrays()).as_text()
    assert text.count("call @part_of_sum") == calls


@pytest.mark.parametrize(("size", "copied"), [(4, False), (8, True)])
def test_a_kernel_that_few_results_read_is_not_copied_to_spread_it_over_the_cache(size, copied):
    """1024 channels, channel-last: each of the 9 kernel elements begins in the same set."""
    case = Case("", (1, size, size, 1024), (3, 3, 1, 1024), groups=1024, padding=((1, 1), (1, 1)), layouts=NHWC)
    text = jax.jit(functools.partial(LOWERINGS["taps"].lower, case.spec)).lower(*case.arrays()).as_text()
    assert ("call @add_kernel_groups" in text) == copied


@pytest.mark.parametrize("kernel", [3, 5])
def test_the_positions_of_a_weight_gradient_of_groups_are_an_axis_of_one_sum(kernel):
    """Channel-last there are as many products as blocks of rows, however many positions: no slice is written out for each."""
    size = 16 + kernel - 1
    case = Case("", (1, size, size, 32), (1, 16, 16, 32), batch_groups=8, layouts=WEIGHT_GRADIENT_NHWC)
    text = jax.jit(functools.partial(LOWERINGS["taps"].lower, case.spec)).lower(*case.arrays()).as_text()
    assert text.count("stablehlo.multiply") == 8
