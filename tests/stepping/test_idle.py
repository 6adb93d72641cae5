"""Parameters that do not train: which, why, and who says so."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steprule
from steprule.schedules import linear


class Net(nn.Module):
    """Of its five layers one is never called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.spare, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).tanh())
        return out


def step(net: nn.Module, optimizer: steprule.Optimizer) -> None:
    optimizer.zero_grad()
    net(torch.ones(2, 3)).sum().backward()
    optimizer.step()


def test_two_steps_without_a_gradient_are_said_once() -> None:
    net = Net()
    optimizer = steprule.AdamW(net, lr=0.1)
    step(net, optimizer)
    with pytest.warns(UserWarning, match=r"spare.weight, spare.bias: no gradient in two steps") as caught:
        step(net, optimizer)
    assert caught[0].filename == __file__
    for _ in range(3):
        step(net, optimizer)


def test_nothing_is_said_of_what_is_frozen_comes_later_or_has_a_state() -> None:
    net = Net()
    optimizer = steprule.AdamW(net, lr=0.1)
    optimizer.freeze("spare.*")
    for _ in range(3):
        step(net, optimizer)
    net = Net()
    plain = steprule.SGD(net, lr=0.1)
    step(net, plain)
    net.spare(torch.ones(1, 4)).sum().backward()
    plain.step()
    step(net, plain)
    resumed = steprule.AdamW(net, lr=0.1)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    resumed.step()
    saved = copy.deepcopy(resumed.state_dict())
    resumed = steprule.AdamW(net, lr=0.1)
    resumed.load_state_dict(saved)
    for _ in range(3):
        step(net, resumed)


def test_a_step_without_any_gradient_is_nothing_to_say() -> None:
    optimizer = steprule.SGD(Net(), lr=0.1)
    for _ in range(3):
        optimizer.step()


def test_explain_and_check_name_them() -> None:
    net = Net()
    optimizer = steprule.AdamW(net, lr=0.1, overrides={"last.bias": dict(lr=0.0)})
    optimizer.check(net)
    optimizer.freeze("first.bias")
    step(net, optimizer)
    said = optimizer.explain()
    assert said[said.index("not trained") :].splitlines() == [
        "not trained (untrained() looks at the numbers too):",
        "    frozen: requires_grad is False",
        "    'first.bias'",
        "    no gradient: backward does not reach it",
        "    'spare.weight', 'spare.bias'",
        "    its rate lr is 0",
        "    'last.bias'",
    ]
    with pytest.raises(ValueError, match=r"of Net, spare.weight, spare.bias had no gradient in any step"):
        optimizer.check(net)
    optimizer.freeze("spare.*")
    optimizer.check(net)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_why_each_one_does_not_train(dtype: torch.dtype) -> None:
    names = ("moves", "small", "zero", "nan", "infinite", "still", "none", "held")
    params = {name: torch.ones(3, dtype=dtype, requires_grad=name != "held") for name in names}
    for name, p in params.items():
        p.grad = None if name in ("none", "held") else torch.ones_like(p)
    params["small"].grad = torch.full((3,), 1e-9, dtype=dtype)
    params["zero"].grad = torch.zeros(3, dtype=dtype)
    params["nan"].grad = torch.tensor([1.0, float("nan"), 1.0], dtype=dtype)
    params["infinite"].data[1] = float("inf")
    groups: list[dict[str, Any]] = [{"params": [(name, p) for name, p in params.items() if name != "still"]}]
    groups.append({"params": [("still", params["still"])], "lr": 0.0})
    optimizer = steprule.SGD(groups, lr=0.1, momentum=0.9, nonfinite="raise")
    bits = [p.detach().clone() for p in params.values()]
    reasons = optimizer.untrained()
    assert {name: reason.split(":")[0] for name, reason in reasons.items()} == {
        "small": "its update is lost in rounding",
        "zero": "its gradient is zero",
        "nan": "its gradient is not finite",
        "infinite": "it is not finite",
        "still": "its rate lr is 0",
        "none": "no gradient",
        "held": "frozen",
    }
    assert ("bfloat16 leaves a step of less than 0.004" in reasons["small"]) is (dtype is torch.bfloat16)
    assert all(torch.equal(a, b.detach()) or a.isnan().any() for a, b in zip(bits, params.values(), strict=True))
    assert not optimizer.state
    assert optimizer.steps_taken == 0


def test_a_trial_leaves_the_run_as_it_was() -> None:
    def run(look: bool) -> list[Any]:
        net = Net()
        optimizer = steprule.AdamW(net, lr=0.1 * linear(9), clip_norm=1.0)
        for i in range(6):
            optimizer.zero_grad()
            net(torch.randn(2, 3)).sum().backward()
            if look and i in (0, 3):
                assert set(optimizer.untrained()) == {"spare.weight", "spare.bias"}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                optimizer.step()
        state = [optimizer.state[p][name] for p in net.first.parameters() for name in ("step", "exp_avg", "exp_avg_sq")]
        return [*net.parameters(), *state, torch.tensor(optimizer.param_groups[0]["lr"])]

    torch.manual_seed(1)
    plain = run(look=False)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(plain, run(look=True), strict=True))
