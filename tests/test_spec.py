"""A ConvSpec says everything about a convolution, in one form whatever the layout and the kind of groups."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, EMPTY_CASES, NHWC, WEIGHT_GRADIENT, WEIGHT_GRADIENT_NHWC, Case, random_cases
from jax import export, lax

from jaxgroupconv import ConvSpec

ALL = CASES + EMPTY_CASES + tuple(random_cases(20, seed=1))


def test_canonical_form():
    case = Case(
        "", (2, 7, 5, 6), (3, 2, 3, 12), groups=2, strides=(2, 1), padding=((1, 0), (-1, 2)), layouts=("NHWC", "HWIO", "NCHW")
    )
    assert case.spec == ConvSpec(
        batch=2,
        groups=2,
        in_channels=3,
        out_channels=6,
        in_size=(7, 5),
        window=(3, 2),
        strides=(2, 1),
        padding=((1, 0), (-1, 2)),
        lhs_dilation=(1, 1),
        rhs_dilation=(1, 1),
        lhs_layout="n01gc",
        rhs_layout="01cgo",
        out_layout="ngo01",
        lhs_dtype=np.dtype("float32"),
        rhs_dtype=np.dtype("float32"),
        out_dtype=np.dtype("float32"),
        precision=None,
    )
    assert (case.spec.ndim, case.spec.spatial, case.spec.out_size, case.spec.out_shape) == (2, "01", (3, 5), (2, 12, 3, 5))


def test_batch_groups_are_groups():
    spec = Case("", (6, 2, 9, 9), (12, 2, 7, 7), batch_groups=3).spec
    assert (spec.batch, spec.groups, spec.in_channels, spec.out_channels) == (2, 3, 2, 4)
    assert (spec.lhs_layout, spec.rhs_layout, spec.out_layout) == ("gnc01", "goc01", "ngo01")
    assert spec.short_output


@pytest.mark.parametrize(
    "case",
    [
        Case("channel-first", (2, 8, 9, 9), (8, 1, 5, 5), groups=8, strides=(2, 2)),
        Case("channel-last", (2, 9, 9, 8), (5, 5, 1, 8), groups=8, strides=(2, 2), layouts=NHWC),
    ],
    ids=str,
)
def test_a_forward_convolution_of_few_outputs_is_no_weight_gradient(case):
    """5x5, stride 2, on 9x9: the layout tells, in which the items come first."""
    assert (case.spec.out_size, case.spec.short_output) == ((3, 3), False)


@pytest.mark.parametrize(
    "layouts, shape", [(WEIGHT_GRADIENT, (8, 6, 3, 3)), (WEIGHT_GRADIENT_NHWC, (4, 3, 3, 6))], ids=["first", "last"]
)
def test_a_depthwise_weight_gradient_of_a_small_map_and_many_items_has_a_short_output(layouts, shape):
    """5x5 on 3x3 maps: of few items, the result is longer than what each of its elements sums up."""

    def gradient(items):
        shapes = ((items, *shape[1:]),) * 2
        return Case("", *shapes, batch_groups=6, padding=((2, 2), (2, 2)), layouts=layouts).spec

    assert gradient(1).out_size == (5, 5)
    assert [gradient(items).short_output for items in (1, shape[0] - 1, shape[0])] == [False, False, True]


def test_both_gradients_are_specs():
    """The input's gradient has its dilation from the stride; the weight's has the batch as c and swaps window and output."""

    def loss(x, w):
        return lax.conv_general_dilated(x, w, (2, 2), ((1, 1), (1, 1)), feature_group_count=4).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(jnp.ones((5, 8, 9, 9)), jnp.ones((12, 2, 3, 3)))
    convolutions = [eqn for eqn in jaxpr.eqns if eqn.primitive is lax.conv_general_dilated_p]
    specs = {eqn.outvars[0].aval.shape: from_equation(eqn) for eqn in convolutions}
    dx, dw = specs[5, 8, 9, 9], specs[12, 2, 3, 3]
    assert (dx.batch, dx.groups, dx.in_channels, dx.out_channels, dx.lhs_dilation, dx.window) == (5, 4, 3, 2, (2, 2), (3, 3))
    assert (dw.batch, dw.groups, dw.in_channels, dw.out_channels, dw.rhs_dilation) == (2, 4, 5, 3, (2, 2))
    assert (dw.window, dw.out_size, dw.short_output, dx.short_output) == ((5, 5), (3, 3), True, False)


def from_equation(eqn):
    params = {name: value for name, value in eqn.params.items() if name not in ("preferred_element_type", "out_sharding")}
    return ConvSpec.from_lax(*(v.aval.shape for v in eqn.invars), **params)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_round_trip_and_shapes(case):
    spec, params = case.spec, case.spec.lax_params()
    assert params.pop("preferred_element_type") == case.out_dtype
    assert params == case.params
    assert (spec.lhs_shape, spec.rhs_shape) == (case.lhs, case.rhs)
    with jax.enable_x64(case.x64):
        operands = [jax.ShapeDtypeStruct(shape, case.dtype) for shape in (case.lhs, case.rhs)]
        out = jax.eval_shape(lambda x, w: lax.conv_general_dilated(x, w, **spec.lax_params()), *operands)
    assert (out.shape, out.dtype) == (spec.out_shape, spec.out_dtype)


@pytest.mark.parametrize("case", [case for case in ALL if len(case.lhs) < 5], ids=str)
def test_flops_count_the_products_that_meet_data(case):
    spec, products = case.spec, 0
    for p, k in itertools.product(np.ndindex(*spec.out_size), np.ndindex(*spec.window)):
        at = [
            pi * stride + ki * d - low
            for pi, ki, stride, d, (low, _) in zip(p, k, spec.strides, spec.rhs_dilation, spec.padding, strict=True)
        ]
        products += all(i % d == 0 and 0 <= i // d < s for i, d, s in zip(at, spec.lhs_dilation, spec.in_size, strict=True))
    assert spec.flops == 2 * products * spec.batch * spec.groups * spec.in_channels * spec.out_channels


def test_flops_and_bytes_of_a_known_convolution():
    spec = Case("", (1, 128, 56, 56), (128, 4, 3, 3), groups=32).spec
    assert spec.flops == 2 * 128 * 4 * 9 * 54 * 54
    assert spec.bytes == 4 * (128 * 56 * 56 + 128 * 4 * 9 + 128 * 54 * 54)
    halves = dataclasses.replace(spec, lhs_dtype=np.dtype("float16"), rhs_dtype=np.dtype("float16"))
    assert halves.bytes == 2 * (128 * 56 * 56 + 128 * 4 * 9) + 4 * 128 * 54 * 54


@pytest.mark.parametrize(
    ("dtype", "compute"),
    [
        ("bfloat16", "float32"),
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
        ("int8", "int8"),
        ("int32", "int32"),
    ],
)
def test_narrow_floats_are_summed_in_float32(dtype, compute):
    assert Case("", (1, 1, 3, 3), (1, 1, 3, 3), dtype=dtype).spec.compute_dtype == np.dtype(compute)


def test_specs_are_values():
    a, b = (Case("", (1, 4, 5, 5), (4, 2, 3, 3), groups=2).spec for _ in range(2))
    assert a == b and hash(a) == hash(b) and len({a, b, dataclasses.replace(a, batch=2)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.batch = 2


def test_a_spec_prints_what_is_special_about_it():
    assert str(Case("", (1, 4, 5, 6), (6, 2, 3, 2), groups=2).spec) == "n1 g2 c2 o3 5x6 k3x2 ngc01,goc01->ngo01 float32"
    special = Case("", (1, 4, 5), (4, 1, 3), groups=4, strides=(2,), padding=((1, -1),), lhs_dilation=(3,), rhs_dilation=(2,))
    assert str(dataclasses.replace(special, dtype="bfloat16", preferred="float32").spec) == (
        "n1 g4 c1 o1 5 k3 s2 ld3 rd2 pad((1, -1),) ngc0,goc0->ngo0 bfloat16,float32"
    )


def test_symbolic_sizes_are_refused():
    (batch,) = export.symbolic_shape("b")
    with pytest.raises(TypeError, match=r"`lhs_shape`, `rhs_shape` and `padding` must be integers, but got \(b, 4, 5, 5\)"):
        ConvSpec.from_lax((batch, 4, 5, 5), (4, 2, 3, 3), **Case("", (1, 4, 5, 5), (4, 2, 3, 3), groups=2).params)


@pytest.mark.parametrize(("feature_groups", "batch_groups"), [(5, 1), (0, 1), (1, 3)])
def test_groups_that_do_not_divide_are_refused(feature_groups, batch_groups):
    params = Case("", (1, 4, 5, 5), (4, 2, 3, 3), groups=2).params
    params |= {"feature_group_count": feature_groups, "batch_group_count": batch_groups}
    with pytest.raises(ValueError, match=f"`batch_group_count` must divide .* but got {feature_groups} and {batch_groups} "):
        ConvSpec.from_lax((1, 4, 5, 5), (4, 2, 3, 3), **params)
