import ast

import pytest
from conftest import ROOT

from mer_dist.core.text_table import aligned


def test_columns_stand_two_blanks_apart_with_nothing_behind_the_last():
    assert aligned([["count", "why"], ["7", ""], ["12", "no sound"]]) == "count  why\n7\n12     no sound"
    assert aligned([["a", "b"], ["7", "1"], ["12", "10"]], right=range(1, 2)) == "a    b\n7    1\n12  10"
    assert aligned([["a", "12"], ["bcd", "7"]], right={1}, indent="  ") == "  a    12\n  bcd   7"
    assert aligned([]) == ""


def test_rows_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="zip"):
        aligned([["a", "b"], ["c"]])


def test_no_other_module_aligns_columns():
    others = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "mer_dist").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("ljust", "rjust")
    ]
    assert set(others) == {"mer_dist/core/text_table.py"}
