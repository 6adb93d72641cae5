"""The scripts of examples/articles/ run, and find what their comments say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import steprule

FOLDER = Path(__file__).parents[2] / "examples" / "articles"


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sgd_by_hand_is_the_loop() -> None:
    module = script("sgd_by_hand")
    assert module.main() < 1e-14
    with pytest.raises(ValueError, match="momentum > 0"):
        module.SGD([torch.ones(1, requires_grad=True)], lr=0.1, nesterov=True)
    ours, theirs = (torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    pair = (
        module.SGD([ours], lr=0.1, momentum=0.9, weight_decay2=0.2, nesterov=True),
        torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=0.2, nesterov=True),
    )
    for step in range(5):
        ours.grad = theirs.grad = torch.full((3,), 0.5 - step / 3, dtype=torch.float64)
        for each in pair:
            each.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_groups_by_module_layer_and_name() -> None:
    by_module, by_layer, by_name = script("parameter_groups").main()
    assert [group["lr"] for group in by_module.param_groups] == [1e-5, 1e-2]
    assert [len(group["params"]) for group in by_layer.param_groups] == [6, 4]
    assert [group["lr"] for group in by_layer.param_groups] == [0.001, 0.01]
    found = {name: group for group in by_name.param_groups for name in group["param_names"]}
    assert found["features.0.weight"]["momentum"] == 0.5
    assert found["classifier.4.weight"]["lr"] == pytest.approx(0.01)
    assert found["classifier.4.bias"]["weight_decay"] == 0.0 != found["classifier.4.weight"]["weight_decay"]
    assert by_name.steps_taken == 3


def test_rates_that_change() -> None:
    module = script("changing_rates")
    by_hand, by_scheduler, by_schedule = module.main().values()
    for rates in (by_hand, by_scheduler):
        assert rates == pytest.approx([0.1] * 5 + [0.01] * 5)
    assert by_schedule[:3] == pytest.approx([0.0, 0.05, 0.1])
    assert by_schedule[2:] == sorted(by_schedule[2:], reverse=True)
    kept, lost = module.by_a_new_optimizer()
    assert kept > 10 * lost


def test_resuming_from_step_10_has_the_same_bits(capsys: pytest.CaptureFixture[str]) -> None:
    assert script("resume_from_step_10").main()
    said = capsys.readouterr().out
    assert "训练之前的 state： {}" in said
    assert "已经走了 10 步" in said


def test_softmax_regression() -> None:
    difference, accuracy = script("softmax_regression").main()
    assert difference < 1e-6
    assert accuracy > 0.95


def test_word_embeddings(capsys: pytest.CaptureFixture[str]) -> None:
    first, last = script("word_embeddings").main(60)
    assert last < first - 1
    assert "与 the 最接近的词：" in capsys.readouterr().out


def test_the_readme_in_chinese_says_what_the_english_one_does() -> None:
    """The same sections, code and links: whoever changes one changes both."""
    root = FOLDER.parents[1]
    english, chinese = ((root / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
    for pattern in (r"^## ", r"^\|", r"^!\["):
        assert len(re.findall(pattern, english, re.M)) == len(re.findall(pattern, chinese, re.M)), pattern
    of_code = r"```python\n(.*?)```"
    without_comments = [
        [re.sub(r"\s+#.*", "", block) for block in re.findall(of_code, text, re.S)] for text in (english, chinese)
    ]
    assert without_comments[0] == without_comments[1]
    own = chinese.replace("](docs/zh/", "](docs/")  # pages that are in Chinese too
    links = [set(re.findall(r"\]\(((?:docs|examples)/[^)]+)\)", text)) for text in (english, own)]
    assert links[0] <= links[1]
    assert all((root / link).exists() for link in links[1])
    assert steprule.__version__
