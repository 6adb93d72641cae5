"""Weights to evaluate with: exchanged in place and back to the bit, saved with their mode, and refused in a step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from comparing import same
from torch import nn
from training import train

import steprule
from steprule import SGD, AdamW
from steprule.modifiers import EMA, SAM, Cautious, Lookahead, Modifier, ScheduleFree

KEEPING = {"ema": EMA(0.5), "lookahead": Lookahead(k=2), "schedule_free": ScheduleFree()}


def net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)


def batches(model: nn.Module, count: int = 3) -> list[torch.Tensor]:
    """The same batch several times."""
    return [torch.linspace(-1, 1, 15).reshape(5, 3).to(next(model.parameters()).dtype)] * count


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", KEEPING)
def test_weights_are_exchanged_in_place_and_back_to_the_bit(name: str, dtype: torch.dtype) -> None:
    model, twin = net(dtype), net(dtype)
    optimizer = AdamW(model, lr=0.1, modifiers=[Cautious(), KEEPING[name]])
    other = AdamW(twin, lr=0.1, modifiers=[Cautious(), KEEPING[name]])
    train(model, optimizer, batches(model))
    train(twin, other, batches(twin))
    memory, before = [p.data_ptr() for p in model.parameters()], weights(model)
    state = copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.eval()
    optimizer.eval()
    assert not same(weights(model), before)
    assert [p.data_ptr() for p in model.parameters()] == memory
    optimizer.train()
    assert same(weights(model), before)
    after = optimizer.state_dict()["state"]
    assert same(after, state)
    train(model, optimizer, batches(model))
    train(twin, other, batches(twin))
    assert same(weights(model), weights(twin))


def test_what_is_evaluated() -> None:
    model = net()
    optimizer = SGD(model, lr=0.1, modifiers=[EMA(0.5), Lookahead(k=2)])
    train(model, optimizer, batches(model))
    slow = [optimizer.state[p]["lookahead_slow"].clone() for p in model.parameters()]
    with optimizer.evaluating():
        assert same(weights(model), slow)
        optimizer.train(False)
    assert set(optimizer.state[model[0].weight]) == {"step", "ema_mean", "lookahead_slow"}


def test_evaluating_leaves_the_mode_as_it_was() -> None:
    model = net()
    optimizer = SGD(model, lr=0.1, modifiers=[EMA(0.5)])
    train(model, optimizer, batches(model))
    before = weights(model)
    with pytest.raises(KeyError), optimizer.evaluating():
        raise KeyError
    assert same(weights(model), before)
    optimizer.eval()
    with optimizer.evaluating():
        pass
    assert not same(weights(model), before)


def test_a_step_in_evaluation_mode_is_refused() -> None:
    model = net()
    for modifiers in ([], [EMA(0.5)]):
        optimizer = SGD(model, lr=0.1, modifiers=modifiers)
        train(model, optimizer, batches(model))
        optimizer.eval()
        before = weights(model)
        with pytest.raises(RuntimeError, match=r"call optimizer\.train\(\)"):
            optimizer.step(lambda: pytest.fail("the closure ran"))
        assert optimizer.explain()
        assert same(weights(model), before)
        optimizer.train()
        train(model, optimizer, batches(model, 1))


def test_half_a_step_is_finished_first() -> None:
    model = net()
    optimizer = SGD(model, lr=0.1, modifiers=[SAM(), EMA()])
    model(torch.ones(1, 3)).sum().backward()
    optimizer.first_step()
    with pytest.raises(RuntimeError, match="half done"):
        optimizer.eval()
    optimizer.second_step()
    optimizer.eval()
    with pytest.raises(RuntimeError, match="evaluate with"):
        optimizer.first_step()


def test_only_groups_that_average_are_exchanged() -> None:
    model = net()
    optimizer = SGD(model, lr=0.1, modifiers=[EMA(0.5)], overrides={"0.*": dict(ema=False), "2.bias": dict(lr=0.2)})
    train(model, optimizer, batches(model))
    before = dict(zip([n for n, _ in model.named_parameters()], weights(model), strict=True))
    with optimizer.evaluating():
        changed = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert changed == ["2.weight", "2.bias"]


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_a_file_holds_both_and_says_which(mode: str, tmp_path: Any) -> None:
    model, fresh = net(), net()
    optimizer, other = (SGD(m, lr=0.1, modifiers=[ScheduleFree()]) for m in (model, fresh))
    train(model, optimizer, batches(model))
    trained = weights(model)
    optimizer.eval()
    evaluated = weights(model)
    if mode == "training":
        optimizer.train()
    steprule.save(tmp_path / "run.safetensors", optimizer, model)
    assert optimizer.state_dict()["steprule"]["weights"] == mode
    steprule.load(tmp_path / "run.safetensors", other, fresh)
    assert same(weights(fresh), trained if mode == "training" else evaluated)
    if mode == "evaluation":
        with pytest.raises(RuntimeError, match="evaluate with"):
            other.step()
        other.train()
    assert same(weights(fresh), trained)
    with other.evaluating():
        assert same(weights(fresh), evaluated)
    optimizer.train()
    train(model, optimizer, batches(model))
    train(fresh, other, batches(fresh))
    assert same(weights(model), weights(fresh))


def test_the_mode_is_saved_before_a_step_too() -> None:
    model = net()
    optimizer = SGD(model, lr=0.1, modifiers=[EMA()])
    optimizer.eval()
    other = SGD(model, lr=0.1, modifiers=[EMA()])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with pytest.raises(RuntimeError, match="evaluate with"):
        other.step()


def test_a_modifier_of_ones_own() -> None:
    class Corrected(Modifier):
        """A mean from zero, divided by what its weights add up to."""

        def weights(self, p: Any, new: Any, s: Any, h: Any) -> Any:
            s.mean = 0.5 * s.mean + 0.5 * new
            return new

        def evaluation(self, p: Any, s: Any, h: Any) -> Any:
            return s.mean / (1 - 0.5**s.step)

    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = SGD([p], lr=1.0, modifiers=[Corrected()])
    seen = []
    for _ in range(3):
        p.grad = torch.ones_like(p)
        optimizer.step()
        seen.append(p.item())
    with optimizer.evaluating():
        assert p.item() == pytest.approx((seen[0] + 2 * seen[1] + 4 * seen[2]) / 7, rel=1e-15)
    assert optimizer.state[p]["step"] == 3
