"""Tables on terminals that can't show every character."""

from __future__ import annotations

import io
import sys

import pytest
import torch

import steprule
from steprule.schedules import cosine, warmup


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-8"])
def test_an_optimizer_is_printed_on_any_terminal(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    weight = torch.ones(2, requires_grad=True)
    weight.grad = torch.ones(2)
    optimizer = steprule.AdamW([("größe", weight)], lr=0.1 * warmup(10).then(cosine(90)))
    print(optimizer)
    print(optimizer.explain(source=True))
    sys.stdout.flush()
    text = written.getvalue().decode(encoding)
    assert "AdamW: 2 parameters in 1 tensor" in text
    assert ("─" in text) is (encoding == "utf-8")
    assert "gr??e" in text if encoding == "ascii" else "größe" in text
