"""docs/mxnet.md lists what is there."""

import re

import mxnet_records as records

from jaxgroupconv.mxnet.registry import OPERATORS

PAGE = (records.DATA.parents[2] / "docs" / "mxnet.md").read_text()


def test_every_operator_is_listed_with_its_aliases_and_attributes():
    table = PAGE[PAGE.index("| operator |") : PAGE.index("## Files")]
    rows = {cells[1].strip(" `"): cells for cells in (line.split("|") for line in table.splitlines()) if len(cells) == 6}
    for op in OPERATORS.values():
        assert re.findall(r"`(\w+)`", rows[op.name][2]) == list(op.aliases)
        assert re.findall(r"`(\w+)`", rows[op.name][3]) == list(op.attributes)
    assert rows.keys() - {op.name for op in OPERATORS.values()} == {"operator", "---"}


def test_the_operators_of_the_table_are_recorded():
    recorded = {case["op"] for name in ("operators", "convolution", "deconvolution") for case in records.cases(name)}
    assert {op.name for op in OPERATORS.values()} - recorded == {"Reshape"}, "which has records of its own"
