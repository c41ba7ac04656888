"""What an operation's schema says that it writes."""

from __future__ import annotations

import torch

from frostline.audit.writes import declared_writes

ATEN = torch.ops.aten


def test_in_place_and_out_arguments_by_position_and_by_name() -> None:
    assert list(declared_writes(ATEN.add_.Tensor, ("x", "y"), {})) == ["x"]
    assert list(declared_writes(ATEN.add.out, ("x", "y"), {"out": "z"})) == ["z"]
    assert list(declared_writes(ATEN._foreach_add_.Scalar, (["a", "b"], 1), {})) == [["a", "b"]]
    assert list(declared_writes(ATEN.add.Tensor, ("x", "y"), {})) == []


def test_what_a_schema_hides_is_not_here() -> None:
    """Batch norm writes its statistics, and its schema does not say so."""
    names = [argument.name for argument in ATEN.native_batch_norm.default._schema.arguments]
    assert "running_mean" in names
    assert list(declared_writes(ATEN.native_batch_norm.default, tuple(names), {})) == []
