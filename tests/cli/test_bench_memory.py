"""`steprule bench --memory`."""

from __future__ import annotations

import pytest
from command_line import invoke

from steprule.cli.bench import peak_memory

WEIGHTS = 4 * 6 * (256 * 256 + 256)


def test_what_is_counted_is_what_is_said() -> None:
    plain, backward = (
        peak_memory.measure_training(name, 1, 256, 6) for name in ("steprule", "steprule, step_in_backward")
    )
    assert plain.weights == backward.weights == WEIGHTS
    assert plain.said is not None
    assert backward.said is not None
    assert plain.said - backward.said > 0.7 * WEIGHTS
    for result in (plain, backward):
        assert result.said is not None
        assert result.said < result.counted < result.said + 0.2 * WEIGHTS
        assert len(result.seconds) == 1


def test_torchs_are_measured_too() -> None:
    for name in ("torch fused", "torch, _apply_optimizer_in_backward"):
        result = peak_memory.measure_training(name, 2, 256, 6)
        assert result.said is None
        assert result.counted > 2 * WEIGHTS


def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    result = peak_memory.MemoryResult("steprule", 4000, 12_000, None, 12_500, [0.25, 0.5, 0.75])
    monkeypatch.setattr("steprule.cli.bench.measure_memory", lambda steps, quick: iter([result] * steps))
    shown = invoke("bench", "--memory", "--repeats", "1")
    assert shown.exit_code == 0
    assert "12 kB  12.5 kB" in shown.output
    assert "500.0 ms" in shown.output
