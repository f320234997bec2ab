"""Rows in blocks, each padded with its neighbours' rows: the same convolution."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import Case

from jaxgroupconv.lowerings import LOWERINGS
from jaxgroupconv.lowerings.blocks import in_blocks

SAME = ((1, 1), (1, 1))
CASES = {  # by the blocks that eight devices make of the rows
    8: [
        Case("rows of one", (2, 4, 8, 3), (4, 2, 3, 3), groups=2, padding=SAME),
        Case("channel-last", (2, 8, 3, 4), (3, 3, 2, 4), groups=2, padding=SAME, layouts=("NHWC", "HWIO", "NHWC")),
        Case("rows first", (8, 4, 2, 3), (4, 2, 3, 3), groups=2, padding=SAME, layouts=("HCNW", "OIHW", "NCHW")),
        Case("cropped columns", (2, 4, 8, 5), (4, 2, 3, 3), groups=2, padding=((1, 1), (-1, 2))),
        Case("stride", (1, 4, 16, 6), (4, 2, 3, 3), groups=2, padding=SAME, strides=(2, 2)),
        Case("stride, high padding", (1, 4, 16, 6), (4, 2, 3, 3), groups=2, padding=((0, 1), (0, 1)), strides=(2, 2)),
        Case("input gradient of a stride", (1, 4, 8, 3), (4, 2, 3, 3), groups=2, padding=((1, 2), (1, 2)), lhs_dilation=(2, 2)),
        Case("weight gradient", (4, 2, 8, 3), (4, 2, 8, 3), batch_groups=2, padding=SAME),
        Case("weight gradient of a stride", (4, 2, 16, 6), (4, 2, 8, 3), batch_groups=2, padding=SAME, rhs_dilation=(2, 2)),
        Case("dilated kernel", (1, 2, 16, 3), (2, 1, 3, 1), groups=2, padding=((2, 2), (0, 0)), rhs_dilation=(2, 1)),
        Case("padding on one side", (1, 2, 16), (2, 1, 3), groups=2, padding=((2, 0),)),
        Case("cropped", (1, 2, 16), (2, 1, 2), groups=2, padding=((-1, 2),)),
        Case("size one", (1, 2, 8), (2, 1, 1), groups=2),
        Case("3-D", (1, 2, 8, 2, 2), (2, 1, 3, 2, 1), groups=2, padding=((1, 1), (0, 1), (0, 0))),
        Case(
            "both dilated", (1, 2, 16, 1), (2, 1, 3, 1), groups=2, padding=((1, 2), (0, 0)), strides=(2, 1), lhs_dilation=(2, 1)
        ),
    ],
    4: [
        Case("cropped by more than a row of eight blocks", (1, 2, 8), (2, 1, 2), groups=2, padding=((-1, 2),)),
        Case("a multiple of four", (1, 2, 12), (2, 1, 3), groups=2, padding=((1, 1),)),
        Case("two neighbours' rows", (1, 2, 8), (2, 1, 5), groups=2, padding=((2, 2),)),
    ],
    2: [Case("three neighbours' rows", (1, 2, 8), (2, 1, 7), groups=2, padding=((3, 3),))],
    1: [
        Case("odd", (1, 2, 9), (2, 1, 3), groups=2, padding=((1, 1),)),
        Case("valid", (1, 2, 8), (2, 1, 3), groups=2),
        Case("all of the rows", (1, 2, 8), (2, 1, 17), groups=2, padding=((8, 8),)),
    ],
}


@dataclasses.dataclass
class Definition:
    """A lowering that is the definition, and notes what it is asked for."""

    refuses: bool = False
    spec: object = None

    def why_not(self, spec):
        return "too many axes" if self.refuses else None

    def lower(self, spec, lhs, rhs, *, shared):
        assert (lhs.shape, rhs.shape) == (spec.lhs_shape, spec.rhs_shape)
        self.spec = spec
        out = oracle.conv(lhs, rhs, **spec.lax_params())
        assert out.shape == spec.out_shape
        return jnp.asarray(out, spec.out_dtype)


@pytest.mark.parametrize("count, case", [pytest.param(count, case, id=str(case)) for count in CASES for case in CASES[count]])
def test_values(count, case):
    definition = Definition()
    out = in_blocks(definition, case.spec, *case.arrays(), 8)
    assert definition.spec.in_size[0] == count if count > 1 else definition.spec == case.spec
    np.testing.assert_allclose(out, oracle.conv(*case.arrays(), **case.params), rtol=1e-5, atol=1e-5)


def test_blocks_of_three_dimensions_have_an_axis_more():
    """Of a transposed convolution that is one product, too."""
    padding, names = ((1, 1), (0, 1), (1, 0)), ("NCDHW", "OIDHW", "NCDHW")
    case = Case("", (2, 4, 8, 3, 3), (6, 2, 2, 2, 2), groups=2, padding=padding, lhs_dilation=(2, 2, 2), layouts=names)
    assert case.spec.disjoint
    out = in_blocks(LOWERINGS["matmul"], case.spec, *case.arrays(), 8)
    np.testing.assert_allclose(out, oracle.conv(*case.arrays(), **case.spec.lax_params()), rtol=1e-5, atol=1e-5)


def test_what_the_lowering_refuses_stays_whole():
    case, definition = CASES[8][0], Definition(refuses=True)
    in_blocks(definition, case.spec, *case.arrays(), 8)
    assert definition.spec == case.spec


def test_one_device_needs_no_blocks():
    case, definition = CASES[8][0], Definition()
    in_blocks(definition, case.spec, *case.arrays(), 1)
    assert definition.spec == case.spec
