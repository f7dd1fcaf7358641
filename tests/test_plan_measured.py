"""What a plan foretells is what its run takes: one shape of ``benchmarks/plan.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.plan import SHAPES, measure, within


@pytest.mark.slow
def test_memory_and_bytes_are_as_foretold(tmp_path: Path) -> None:
    row = measure(tmp_path, SHAPES["upsample"])
    assert within(row), row
