"""Everything is looked up at each step: what a person replaces, edits, moves, adds or drops counts at the next one."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import COMPILED, optimizer_of
from tensors import give, grad_of, leaf, normal
from torch import Tensor, nn

import steprule
from steprule import SGD, Adam, AdamW
from steprule.kernels.plan import Plan
from steprule.rule import array

SHAPE = (4, 4)


class Pair:
    """The same training with steprule and with torch: what is done to one is done to the other."""

    def __init__(self, backend: str, name: str = "AdamW", dtype: torch.dtype = torch.float64, **options: Any) -> None:
        self.params = [
            [leaf(normal(*SHAPE, seed=i, dtype=dtype)) for i in range(3)],
            [leaf(normal(*SHAPE, seed=i, dtype=dtype)) for i in range(3)],
        ]
        options = {"lr": 0.1, **options}
        self.optimizers = [
            getattr(steprule, name)(self.params[0], backend=backend, **options),
            getattr(torch.optim, name)(self.params[1], foreach=False, **options),
        ]
        self.steps = 0

    def each(self, action: Callable[[list[Tensor], Any], Any]) -> None:
        for params, optimizer in zip(self.params, self.optimizers, strict=True):
            action(params, optimizer)

    def step(self, *without: int) -> None:
        self.steps += 1
        for params, optimizer in zip(self.params, self.optimizers, strict=True):
            for i, p in enumerate(params):
                g = normal(*p.shape, seed=100 * self.steps + i, dtype=p.dtype)
                p.grad = None if i in without else g
            optimizer.step()
        self.compare()

    def compare(self) -> None:
        for p, q in zip(*self.params, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
            ours, theirs = (o.state.get(x, {}) for o, x in zip(self.optimizers, (p, q), strict=True))
            assert ours.keys() == theirs.keys()
            for name, value in theirs.items():
                torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-9)


CHANGES: dict[str, Callable[[list[Tensor], Any], Any]] = {
    "p.data by another tensor": lambda ps, o: setattr(ps[1], "data", ps[1].data * 2 + 1),
    "p.data by its transpose, at the same address": lambda ps, o: setattr(ps[1], "data", ps[1].data.t()),
    "p.data by a slice, which is not dense": lambda ps, o: setattr(
        ps[1], "data", torch.ones(4, 8, dtype=torch.float64)[:, ::2]
    ),
    "p.data by another memory": lambda ps, o: setattr(ps[1], "data", ps[1].data.t().contiguous().t()),
    "two p.data exchanged": lambda ps, o: (setattr(ps[0], "data", ps[1].data), setattr(ps[1], "data", ps[0].data + 1)),
    "p in place": lambda ps, o: ps[1].data.fill_(0.5),
    "step in place": lambda ps, o: o.state[ps[1]]["step"].fill_(7),
    "step in place, of all": lambda ps, o: [o.state[p]["step"].add_(3) for p in ps],
    "step by a tensor": lambda ps, o: o.state[ps[1]].__setitem__("step", torch.tensor(5.0)),
    "a moment in place": lambda ps, o: o.state[ps[1]]["exp_avg"].zero_(),
    "a moment by another tensor": lambda ps, o: o.state[ps[1]].__setitem__(
        "exp_avg", torch.ones(SHAPE, dtype=torch.float64)
    ),
    "a moment by one that lies otherwise": lambda ps, o: o.state[ps[1]].__setitem__(
        "exp_avg", normal(*SHAPE, dtype=torch.float64).t()
    ),
    "a moment's data": lambda ps, o: setattr(
        o.state[ps[1]]["exp_avg_sq"], "data", torch.full(SHAPE, 0.5, dtype=torch.float64)
    ),
    "the state of one deleted": lambda ps, o: o.state.pop(ps[1]),
    "all state deleted": lambda ps, o: o.state.clear(),
    "states exchanged": lambda ps, o: o.state.update({ps[0]: o.state[ps[1]], ps[1]: o.state[ps[0]]}),
    "a state by a copy": lambda ps, o: o.state.__setitem__(ps[1], dict(o.state[ps[1]])),
    "the rate of the group": lambda ps, o: o.param_groups[0].update(lr=0.3),
    "decay to zero": lambda ps, o: o.param_groups[0].update(weight_decay=0),
    "load_state_dict": lambda ps, o: o.load_state_dict(copy.deepcopy(o.state_dict())),
    "a state read and changed": lambda ps, o: o.load_state_dict(
        {
            **o.state_dict(),
            "state": {
                k: {**v, "step": v["step"] + 4, "exp_avg": -v["exp_avg"]} for k, v in o.state_dict()["state"].items()
            },
        }
    ),
    "a parameter dropped from its group": lambda ps, o: o.param_groups[0].update(params=[ps[0], ps[2]]),
    "the group's order": lambda ps, o: o.param_groups[0]["params"].reverse(),
    "a parameter swapped, its state moved": lambda ps, o: swap(ps, o),
    "a group added": lambda ps, o: (
        ps.append(leaf(normal(5, 2, seed=9, dtype=torch.float64))),
        o.add_param_group({"params": [ps[-1]], "lr": 0.05}),
    ),
    "a parameter moved to a new group": lambda ps, o: (
        o.param_groups[0].update(params=[ps[0], ps[2]]),
        o.add_param_group({"params": [ps[1]], "lr": 0.5}),
    ),
    "gradients frozen": lambda ps, o: ps[1].requires_grad_(False),
}


def swap(params: list[Tensor], optimizer: Any) -> None:
    """What adaptive models do: another tensor takes a parameter's place, with its state cut to fit."""
    old = params[1]
    new = leaf(torch.cat([old.detach()[:2], torch.ones(1, 4, dtype=old.dtype)]))
    state = optimizer.state.pop(old)
    optimizer.state[new] = {k: v[:3].clone() if v.ndim else v for k, v in state.items()}
    places = optimizer.param_groups[0]["params"]
    places[[p is old for p in places].index(True)] = params[1] = new


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_steps_counts_at_the_next_one(change: str, backend: str) -> None:
    pair = Pair(backend)
    for _ in range(3):
        pair.step()
    pair.each(CHANGES[change])
    for _ in range(3):
        pair.step()


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_groups_exchange_parameters(backend: str) -> None:
    pair = Pair(backend, "SGD", momentum=0.9)

    def regroup(params: list[Tensor], optimizer: Any) -> None:
        optimizer.param_groups[0]["params"] = [params[0]]
        optimizer.add_param_group({"params": params[1:], "lr": 0.01})

    def exchange(params: list[Tensor], optimizer: Any) -> None:
        first, second = optimizer.param_groups
        first["params"], second["params"] = [params[1]], [params[0], params[2]]

    for change in (regroup, exchange):
        pair.step()
        pair.each(change)
        pair.step()
        pair.step()


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_missing_gradients_skip_a_parameter_and_keep_its_state(backend: str) -> None:
    pair = Pair(backend)
    for without in ([], [1], [0, 2], [0, 1, 2], [], [2], [1]):
        skipped = [pair.params[0][i] for i in without]
        kept = [{k: v.clone() for k, v in pair.optimizers[0].state.get(p, {}).items()} for p in skipped]
        pair.step(*without)
        for p, before in zip(skipped, kept, strict=True):
            now = pair.optimizers[0].state.get(p, {})
            assert now.keys() == before.keys()
            assert all(torch.equal(now[k], v) for k, v in before.items())


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_gradients_of_another_layout_kind_or_dtype_from_step_to_step(backend: str) -> None:
    grads: list[Callable[[Tensor], Tensor]] = [
        lambda g: g,
        lambda g: g.t().contiguous().t(),
        lambda g: g[:, :1].expand(4, 4),
        lambda g: torch._neg_view(-g),
        lambda g: g.to_sparse(1),
        lambda g: g,
        lambda g: torch._efficientzerotensor(4, 4, dtype=g.dtype),
        lambda g: torch.stack([g, g], -1)[..., 1],
        lambda g: g,
    ]
    p, q = leaf(normal(*SHAPE, dtype=torch.float64)), leaf(normal(*SHAPE, dtype=torch.float64))
    ours, theirs = SGD([p], lr=0.1, momentum=0.5, backend=backend), torch.optim.SGD([q], lr=0.1, momentum=0.5)
    for step, change in enumerate([*grads, *reversed(grads)]):
        g = normal(*SHAPE, seed=step, dtype=torch.float64)
        p.grad = change(g)
        q.grad = p.grad.to_dense().clone()
        ours.step()
        theirs.step()
        torch.testing.assert_close(p, q, rtol=1e-14, atol=1e-15)


def test_a_gradient_replaced_through_its_data_is_read_within_its_bounds() -> None:
    p = leaf(torch.zeros(1000), torch.ones(1000))
    optimizer = SGD([("w", p)], lr=1.0)
    optimizer.step()
    grad_of(p).data = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"gradient of parameter 'w' has shape \(3,\), the parameter \(1000,\)"):
        optimizer.step()
    assert p.unique().tolist() == [-1.0]


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_a_parameter_of_another_shape_needs_state_of_that_shape(backend: str) -> None:
    p = leaf(torch.ones(3), torch.ones(3))
    optimizer = SGD([("w", p)], lr=0.5, momentum=0.5, backend=backend)
    optimizer.step()
    p.data = torch.ones(2)
    with pytest.raises(RuntimeError, match=r"gradient of parameter 'w' has shape .* was p\.data replaced"):
        optimizer.step()
    p.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match=r"state 'momentum_buffer' of parameter 'w' is \(3,\) on cpu"):
        optimizer.step()
    assert p.tolist() == [1.0, 1.0]
    del optimizer.state[p]["momentum_buffer"]
    optimizer.step()
    assert p.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_moved_to_another_dtype(dtype: torch.dtype, backend: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = SGD(model, lr=0.5, momentum=0.5, backend=backend)
    grads = [torch.ones_like(p) for p in model.parameters()]
    for p, g in zip(model.parameters(), grads, strict=True):
        p.grad = g
    optimizer.step()
    start = [p.detach().clone() for p in model.parameters()]
    model.to(dtype)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for p, before in zip(model.parameters(), start, strict=True):
        assert p.dtype == dtype
        torch.testing.assert_close(p.detach(), before.to(dtype) - 0.5 * 1.5)
        # the state stays what it was, as in torch
        assert optimizer.state[p]["momentum_buffer"].dtype == torch.float32


def test_a_parameter_of_another_dtype_at_the_same_address() -> None:
    memory = torch.ones(8, dtype=torch.float32)
    p = leaf(memory[:4])
    p.grad_dtype = None
    p.grad = torch.ones(4)
    optimizer = SGD([p], lr=0.5)
    optimizer.step()
    p.data = memory.view(torch.bfloat16)[:4].fill_(1.0)
    assert p.dtype == torch.bfloat16
    before = memory[2:].clone()
    optimizer.step()
    assert p.tolist() == [0.5] * 4
    assert torch.equal(memory[2:], before)


@pytest.mark.parametrize("backend", COMPILED)
def test_extra_entries_in_a_state_stay(backend: str) -> None:
    p = leaf(torch.zeros(3), torch.ones(3))
    optimizer = SGD([p], lr=1.0, momentum=0.5, backend=backend)
    optimizer.state[p]["mine"] = "kept"
    for _ in range(3):
        optimizer.step()
        optimizer.state[p]["count"] = optimizer.state[p].get("count", 0) + 1
    assert optimizer.state[p]["mine"] == "kept"
    assert optimizer.state[p]["count"] == 3
    assert p[0].item() == -(1 + 1.5 + 1.75)


@pytest.mark.parametrize("backend", COMPILED)
def test_a_scalar_slot_edited_or_replaced(backend: str) -> None:
    p, q = leaf(torch.ones(3, dtype=torch.float64)), leaf(torch.ones(3, dtype=torch.float64))
    ours, theirs = steprule.NAdam([p], backend=backend), torch.optim.NAdam([q])
    for step in range(6):
        for x, optimizer in ((p, ours), (q, theirs)):
            x.grad = normal(3, seed=step, dtype=torch.float64)
            if step == 2:
                optimizer.state[x]["mu_product"].mul_(0.5)
            if step == 4:
                optimizer.state[x]["mu_product"] = torch.tensor(0.25)
            optimizer.step()
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(ours.state[p]["mu_product"], theirs.state[q]["mu_product"])


def test_what_fails_in_a_first_step_leaves_no_state() -> None:
    p, q = leaf(torch.zeros(3), torch.ones(3)), leaf(torch.zeros(3), torch.ones(3))
    optimizer = SGD([p, q], lr=1.0, momentum=0.5)
    optimizer.state[q]["momentum_buffer"] = torch.zeros(7)
    with pytest.raises(RuntimeError, match="state 'momentum_buffer' of parameter 1 of group 0 is"):
        optimizer.step()
    assert p.tolist() == q.tolist() == [0.0] * 3
    assert p not in optimizer.state or not optimizer.state[p]


# What is held in memory, and for how long.


def alive(reference: weakref.ref[Any]) -> bool:
    gc.collect()
    return reference() is not None


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("lies", ["as the parameter", "otherwise"])
def test_gradients_are_freed_when_the_step_is_done(lies: str, backend: str) -> None:
    p = leaf(torch.zeros(4, 4))
    optimizer = AdamW([p], clip_norm=1.0, backend=backend)
    for _ in range(3):
        p.grad = torch.ones(4, 4) if lies == "as the parameter" else torch.ones(4, 4).t()
        grad = weakref.ref(p.grad)
        optimizer.step()
        optimizer.zero_grad()
        assert not alive(grad)


@pytest.mark.parametrize("backend", COMPILED)
def test_dropped_parameters_and_their_state_are_freed_at_the_next_step(backend: str) -> None:
    p, q = leaf(torch.zeros(4), torch.ones(4)), leaf(torch.zeros(4), torch.ones(4))
    optimizer = AdamW([p, q], backend=backend)
    optimizer.step()
    gone = [weakref.ref(p), weakref.ref(optimizer.state[p]["exp_avg"])]
    optimizer.param_groups[0]["params"] = [q]
    del optimizer.state[p], p
    optimizer.step()
    assert not any(map(alive, gone))


@pytest.mark.parametrize("backend", COMPILED)
def test_replaced_memory_is_freed_at_the_next_step(backend: str) -> None:
    p = leaf(torch.zeros(4), torch.ones(4))
    optimizer = AdamW([p], backend=backend)
    optimizer.step()
    gone = [weakref.ref(optimizer.state[p]["exp_avg"]), weakref.ref(optimizer._workings.planner.plan)]
    optimizer.state[p]["exp_avg"] = torch.zeros(4)
    optimizer.step()
    assert not any(map(alive, gone))


@pytest.mark.parametrize("backend", COMPILED)
def test_an_optimizer_that_is_dropped_frees_everything(backend: str) -> None:
    p = leaf(torch.zeros(4), torch.ones(4))
    optimizer = AdamW([p], backend=backend)
    optimizer.step()
    gone: list[Any] = [weakref.ref(optimizer), weakref.ref(p), weakref.ref(optimizer.state[p]["exp_avg"])]
    del optimizer, p
    assert not any(map(alive, gone))


def test_plans_do_not_pile_up() -> None:
    p, q = leaf(torch.zeros(4), torch.ones(4)), leaf(torch.zeros(4))
    optimizer = AdamW([p, q])
    counts, others = [], [x for x in gc.get_objects() if type(x) is Plan]
    for step in range(6):
        q.grad = torch.ones(4) if step % 2 else None
        optimizer.step()
        gc.collect()
        counts.append(sum(type(x) is Plan and all(x is not o for o in others) for x in gc.get_objects()))
    assert max(counts) == counts[-1] == 2  # one for each set of gradients
    assert len(optimizer._workings.planner.programs) == 1


# Copies.


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
@pytest.mark.parametrize("backend", COMPILED)
def test_copies_go_on_by_themselves(copied: Callable[[Any], Any], backend: str) -> None:
    p = leaf(normal(5))
    optimizer = Adam([("w", p)], lr=0.1, backend=backend, clip_norm=1.0)

    def go_on(optimizer: Any, steps: range) -> Tensor:
        [x] = optimizer.param_groups[0]["params"]
        for step in steps:
            x.grad = normal(5, seed=10 + step)
            optimizer.step()
        result: Tensor = x.detach().clone()
        return result

    go_on(optimizer, range(2))
    other = copied(optimizer)
    [q] = other.param_groups[0]["params"]
    assert type(other) is Adam
    assert q is not p
    assert torch.equal(p, q)
    assert other.param_groups[0]["param_names"] == ["w"]
    ahead = go_on(other, range(2, 5))
    assert optimizer.state[p]["step"].item() == 2
    assert not torch.equal(p.detach(), ahead)
    assert torch.equal(go_on(optimizer, range(2, 5)), ahead)
    assert optimizer.state[p]["step"].item() == other.state[q]["step"].item() == 5


def test_a_model_and_its_optimizer_copied_together_stay_together() -> None:
    model = nn.Linear(2, 2)
    optimizer = SGD(model.parameters(), lr=1.0, momentum=0.5)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    other_model, other = copy.deepcopy((model, optimizer))
    before = other_model.weight.detach().clone()
    other_model.weight.grad = torch.ones(2, 2)
    other.step()
    torch.testing.assert_close(other_model.weight.detach(), before - 1.5)
    assert other.param_groups[0]["params"][0] is other_model.weight


def test_steps_of_one_state_are_not_views_of_anothers() -> None:
    params = [leaf(torch.zeros(2), torch.ones(2)) for _ in range(3)]
    optimizer = Adam(params)
    optimizer.step()
    optimizer.state[params[0]]["step"] += 10
    assert [optimizer.state[p]["step"].item() for p in params] == [11, 1, 1]
    optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in params] == [12, 2, 2]


def test_slots_of_another_dtype_survive_the_change_of_the_parameters() -> None:
    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.m = s.m + g
        return p - s.m

    p = leaf(torch.zeros(3), torch.ones(3))
    optimizer = optimizer_of(rule, [p], slots={"m": array(dtype="bfloat16")})
    optimizer.step()
    p.data = p.data.double()
    give(p, torch.ones(3, dtype=torch.float64))
    optimizer.step()
    assert optimizer.state[p]["m"].dtype == torch.bfloat16
    assert p.tolist() == [-3.0] * 3
