"""The dictionary form: what matches what, which hyperparameters win, and what torch makes of it."""

from __future__ import annotations

import copy
import random
import re
import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch
from comparing import same
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import coo
from torch import nn
from training import train

import steprule
from steprule import schedules
from steprule.rule import array, scalar
from steprule.saving.fit import LoadResult
from steprule.saving.loading import prepare
from steprule.saving.state_dict import pack

ALGORITHMS = ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop", "ASGD"]
WRAPPERS = ["module.{}", "_orig_mod.{}", "_fsdp_wrapped_module.{}", "module._orig_mod.{}"]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 2))


def options(algorithm: str) -> dict[str, float]:
    return {"lr": 0.01, "momentum": 0.9} if algorithm in ("SGD", "RMSprop") else {"lr": 0.01}


def of_torch(algorithm: str, params: object, **more: object) -> torch.optim.Optimizer:
    return getattr(torch.optim, algorithm)(params, **{**options(algorithm), **more})


def images(count: int, seed: int = 7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 1, 3, 3, generator=generator) for _ in range(count)]


def packed(optimizer: torch.optim.Optimizer, step: int = 3) -> dict[str, object]:
    return pack(optimizer.param_groups, optimizer.state, algorithm=type(optimizer).__name__, step=step)


def load(optimizer: torch.optim.Optimizer, saved: Any, **how: Any) -> LoadResult:
    new = prepare(optimizer, saved, **how)
    new.install(optimizer)
    return new.result


def by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, object]]:
    return {name: dict(optimizer.state[p]) for name, p in model.named_parameters() if p in optimizer.state}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_torch_loads_what_pack_gives_and_goes_on_with_the_same_bits(algorithm: str) -> None:
    model, twin = network(), network()
    optimizer, other = (
        of_torch(algorithm, model.named_parameters()),
        of_torch(algorithm, twin.named_parameters(), lr=7.0),
    )
    train(model, optimizer, images(3))
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(packed(optimizer)))
    train(model, optimizer, images(3))
    train(twin, other, images(3))
    assert same(model.state_dict(), twin.state_dict())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("form", ["pack", "torch"])
def test_any_order_and_any_split_into_groups(algorithm: str, form: str) -> None:
    model, twin = network(), network()
    optimizer = of_torch(algorithm, model.named_parameters())
    train(model, optimizer, images(3))
    named = list(twin.named_parameters())
    random.Random(1).shuffle(named)
    groups = [{"params": named[:1]}, {"params": named[1:4]}, {"params": named[4:]}]
    other = of_torch(algorithm, groups, lr=7.0)
    twin.load_state_dict(model.state_dict())
    load(other, packed(optimizer) if form == "pack" else optimizer.state_dict())
    assert [group["lr"] for group in other.param_groups] == [0.01] * 3
    train(model, optimizer, images(3))
    train(twin, other, images(3))
    assert same(by_name(model, optimizer), by_name(twin, other))


NAMES = ["embed.weight", "blocks.0.attn.weight", "blocks.0.attn.bias", "blocks.1.module.weight", "norm", "head.bias"]


@settings(max_examples=150, deadline=None)
@given(
    orders=st.tuples(st.permutations(NAMES), st.permutations(NAMES)),
    cuts=st.tuples(*(st.sets(st.integers(1, len(NAMES) - 1)) for _ in range(2))),
    wraps=st.tuples(*(st.lists(st.sampled_from(["{}", *WRAPPERS]), min_size=6, max_size=6) for _ in range(2))),
)
def test_any_names_any_order_any_split(
    orders: tuple[list[str], list[str]], cuts: tuple[set[int], set[int]], wraps: tuple[list[str], list[str]]
) -> None:
    def split(
        order: list[str], cut: set[int], wrap: list[str]
    ) -> tuple[dict[str, torch.Tensor], torch.optim.Optimizer]:
        params = {name: torch.zeros(2 + NAMES.index(name) % 3, requires_grad=True) for name in order}
        named = [(form.format(name), params[name]) for form, name in zip(wrap, order, strict=True)]
        ends = [0, *sorted(cut), len(named)]
        groups = [{"params": named[a:b]} for a, b in pairwise(ends)]
        return params, of_torch("Adam", groups)

    params, optimizer = split(orders[0], cuts[0], wraps[0])
    for name, p in params.items():
        number = float(NAMES.index(name))
        optimizer.state[p] = {slot: torch.full_like(p, number) for slot in ("exp_avg", "exp_avg_sq")}
        optimizer.state[p]["step"] = torch.tensor(number)
    twins, other = split(orders[1], cuts[1], wraps[1])
    load(other, packed(optimizer))
    for name, p in twins.items():
        number = float(NAMES.index(name))
        assert {slot: set(value.view(-1).tolist()) for slot, value in other.state[p].items()} == {
            "exp_avg": {number},
            "exp_avg_sq": {number},
            "step": {number},
        }


@pytest.mark.parametrize("wrapped", WRAPPERS)
@pytest.mark.parametrize("outward", [True, False])
def test_names_are_seen_through_wrappers(wrapped: str, outward: bool) -> None:
    model = network()
    bare = [(name, p) for name, p in model.named_parameters()]
    dressed = [(wrapped.format(name), p) for name, p in bare]
    inner = [(name.replace("3.", "3._checkpoint_wrapped_module."), p) for name, p in dressed]
    optimizer = of_torch("Adam", bare if outward else inner)
    train(model, optimizer, images(2))
    other = of_torch("Adam", reversed(inner if outward else bare))
    load(other, packed(optimizer))
    assert all(same(dict(optimizer.state[p]), dict(other.state[p])) for _, p in bare)


def test_a_submodule_that_is_called_module_is_told_apart() -> None:
    a, b = (torch.zeros(2, requires_grad=True) for _ in range(2))
    optimizer = of_torch("SGD", [("module.w", a), ("w", b)])
    a.grad, b.grad = torch.ones(2), torch.full((2,), 2.0)
    optimizer.step()
    other = of_torch("SGD", [("w", b), ("module.w", a)])
    load(other, packed(optimizer))
    assert other.state[a]["momentum_buffer"].tolist() == [1.0, 1.0]
    third = of_torch("SGD", [("module.module.w", a), ("module.w", b)])
    with pytest.raises(ValueError, match=r"ambiguous.*'module.module.w' and 'module.w' are both 'w'"):
        load(third, packed(optimizer))


def test_names_that_occur_twice_match_in_order() -> None:
    a, b = (torch.zeros(2, requires_grad=True) for _ in range(2))
    optimizer = of_torch("SGD", [{"params": [("weight", a)]}, {"params": [("weight", b)]}])
    a.grad, b.grad = torch.ones(2), torch.full((2,), 2.0)
    optimizer.step()
    other = of_torch("SGD", [{"params": [("weight", a)]}, {"params": [("weight", b)]}])
    load(other, packed(optimizer))
    assert other.state[b]["momentum_buffer"].tolist() == [2.0, 2.0]


def test_state_under_names_instead_of_numbers() -> None:
    model = network()
    optimizer = of_torch("Adam", model.named_parameters())
    train(model, optimizer, images(2))
    saved = optimizer.state_dict()
    names = saved["param_groups"][0].pop("param_names")
    saved["param_groups"][0]["params"] = names
    saved["state"] = {names[i]: entry for i, entry in saved["state"].items()}
    other = of_torch("Adam", reversed(list(model.named_parameters())))
    load(other, saved)
    assert same(by_name(model, optimizer), by_name(model, other))


def test_the_form_of_2019_whose_keys_are_addresses() -> None:
    model = network()
    optimizer = of_torch("SGD", model.parameters())
    train(model, optimizer, images(2))
    saved = optimizer.state_dict()
    addresses = [id(p) for p in model.parameters()]
    saved["param_groups"][0]["params"] = addresses
    saved["state"] = {addresses[i]: entry for i, entry in saved["state"].items()}
    for group in saved["param_groups"]:
        for newer in ("maximize", "foreach", "differentiable", "fused"):
            del group[newer]
    other = of_torch("SGD", model.parameters(), lr=7.0)
    load(other, saved)
    assert same(by_name(model, optimizer), by_name(model, other))
    assert other.param_groups[0]["lr"] == 0.01
    assert other.param_groups[0]["maximize"] is False


def test_adam_of_old_whose_step_is_a_whole_number() -> None:
    model, twin = network(), network()
    optimizer, other = of_torch("Adam", model.parameters()), of_torch("Adam", twin.parameters())
    train(model, optimizer, images(2))
    saved = copy.deepcopy(optimizer.state_dict())
    for entry in saved["state"].values():
        entry["step"] = int(entry["step"])
    twin.load_state_dict(model.state_dict())
    load(other, saved)
    train(model, optimizer, images(2))
    train(twin, other, images(2))
    assert same(model.state_dict(), twin.state_dict())
    slots = lambda group, param: {"exp_avg": array(), "exp_avg_sq": array(), "step": scalar()}
    entry = prepare(other, saved, slots=slots).state[next(twin.parameters())]
    assert (entry["step"].dtype, entry["step"].shape, entry["step"].item()) == (torch.float32, (), 2.0)


def test_lbfgs_keeps_its_lists_and_numbers() -> None:
    def closure(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(torch.arange(36.0).view(4, 1, 3, 3) / 36) - 1).square().sum()
        loss.backward()
        return loss

    model, twin = network(), network()
    optimizer = torch.optim.LBFGS(model.named_parameters(), lr=0.1, line_search_fn="strong_wolfe")
    other = torch.optim.LBFGS(reversed(list(twin.named_parameters())), lr=0.1, line_search_fn="strong_wolfe")
    optimizer.step(lambda: closure(model, optimizer))
    twin.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="the state of LBFGS is for all parameters in their order"):
        load(other, packed(optimizer))
    other = torch.optim.LBFGS(twin.named_parameters(), lr=0.5)
    load(other, packed(optimizer))
    entry = other.state[next(twin.parameters())]
    assert isinstance(entry["n_iter"], int)
    assert isinstance(entry["old_dirs"], list)
    for _ in range(3):
        optimizer.step(lambda: closure(model, optimizer))
        other.step(lambda: closure(twin, other))
    assert same(model.state_dict(), twin.state_dict())


@pytest.mark.parametrize("form", ["steprule", "torch"])
@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("H_diag", 2**63),
        ("t", "x"),
        ("n_iter", -1),
        ("func_evals", 1.5),
        ("prev_loss", torch.zeros(2)),
        ("ro", []),
        ("al", []),
        ("al", torch.tensor(1.0)),
        ("old_dirs", torch.tensor(1.0)),
        ("old_dirs", [torch.zeros(1)]),
        ("old_dirs", [torch.zeros(3, device="meta")] * 2),
        ("old_stps", []),
        ("d", torch.zeros(4)),
        ("d", None),
        ("prev_flat_grad", None),
        ("d", ...),
        ("prev_flat_grad", ...),
    ],
)
def test_the_state_of_lbfgs_is_checked_part_by_part(part: str, value: object, form: str) -> None:
    def trained(steps: int) -> steprule.LBFGS:
        weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
        optimizer = steprule.LBFGS([("w", weight)], lr=0.1, max_iter=3)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (weight**4).sum()
            loss.backward()
            return loss

        for _ in range(steps):
            optimizer.step(closure)
        return optimizer

    saved, other = trained(1).state_dict(), trained(0)
    if form == "torch":
        del saved["steprule"]
    other.load_state_dict(saved)
    other = trained(0)
    if value is ...:
        del saved["state"][0][part]
    else:
        saved["state"][0][part] = value
    with pytest.raises(ValueError, match=f"(w: {part} was saved as|missing: w: {part}|old_dirs)"):
        other.load_state_dict(saved)
    assert not other.state


def test_parameters_that_were_never_stepped_have_no_state() -> None:
    model = network()
    optimizer = of_torch("Adam", model.named_parameters())
    for p in model[3].parameters():
        p.requires_grad_(False)
    train(model, optimizer, images(2))
    other = of_torch("Adam", model.named_parameters())
    train(model, other, images(1))
    other.state[model[3].weight] = {"step": torch.tensor(9.0)}
    load(other, packed(optimizer))
    assert model[3].weight not in other.state
    assert same(by_name(model, optimizer), by_name(model, other))


def test_shapes_are_checked_by_position_too() -> None:
    model = network()
    optimizer = of_torch("Adam", model.parameters())
    train(model, optimizer, images(1))
    params = list(model.parameters())
    other = of_torch("Adam", [*params[1:], params[0]])
    before = dict(other.param_groups[0])
    with pytest.raises(ValueError, match=r"parameter 0.*\(3, 1, 2, 2\) float32.*\(3\) float32"):
        load(other, optimizer.state_dict())
    assert other.param_groups[0] == before
    assert not other.state


@pytest.mark.parametrize("swap", [False, True])
def test_torchs_own_refusals_by_position(swap: bool) -> None:
    model = network()
    params = list(model.parameters())
    optimizer = of_torch("Adam", [{"params": params[:2]}, {"params": params[2:]}])
    one = of_torch("Adam", params)
    uneven = of_torch("Adam", [{"params": params[:3]}, {"params": params[3:]}])
    for other in (one, uneven):
        with pytest.raises(ValueError, match="loaded state dict") as theirs:
            other.load_state_dict(optimizer.state_dict())
        with pytest.raises(ValueError, match=re.escape(str(theirs.value))):
            load(other, packed(optimizer) if swap else optimizer.state_dict())


def test_every_problem_is_named_at_once_with_both_shapes() -> None:
    weights = {
        name: torch.zeros(shape, requires_grad=True) for name, shape in {"a": (2,), "b": (3, 4), "c": (5,)}.items()
    }
    optimizer = of_torch("Adam", weights.items())
    for p in weights.values():
        p.grad = torch.ones_like(p)
    optimizer.step()
    saved = copy.deepcopy(packed(optimizer))
    del saved["state"][2]["exp_avg_sq"]
    now = {name: torch.zeros(shape, requires_grad=True) for name, shape in {"b": (3, 5), "c": (5,), "d": (1,)}.items()}
    other = of_torch("Adam", now.items())
    with pytest.raises(ValueError, match="does not fit this Adam") as error:
        load(other, saved)
    for line in (
        "missing: d",
        "missing: c: exp_avg_sq",
        "unexpected: a",
        "misshapen: b was saved as (3, 4) float32, where (3, 5) float32 is needed",
    ):
        assert f"\n  {line}" in str(error.value)
    assert not other.state

    result = load(other, saved, strict=False)
    assert result.missing == ["d", "c: exp_avg_sq"]
    assert result.unexpected == ["a"]
    assert {entry.name for entry in result.misshapen} == {"b", "b: exp_avg", "b: exp_avg_sq"}
    assert not other.state


def test_what_does_not_fit_keeps_its_state_when_not_strict() -> None:
    a, b = torch.zeros(2, requires_grad=True), torch.zeros(3, requires_grad=True)
    optimizer = of_torch("SGD", [("a", a)], lr=0.5)
    a.grad = torch.ones(2)
    optimizer.step()
    other = of_torch("SGD", [("a", a), ("b", b)])
    b.grad, a.grad = torch.full((3,), 2.0), None
    other.step()
    assert load(other, packed(optimizer), strict=False) == LoadResult(["b"], [], [])
    assert other.state[a]["momentum_buffer"].tolist() == [1.0, 1.0]
    assert other.state[b]["momentum_buffer"].tolist() == [2.0, 2.0, 2.0]
    assert other.param_groups[0]["lr"] == 0.5


def test_rename() -> None:
    model = network()
    optimizer = of_torch("Adam", [(f"module.encoder.{name}", p) for name, p in model.named_parameters()])
    train(model, optimizer, images(2))
    for rename in (
        {"encoder": "body", "encoder.4": "head"},
        lambda name: name.replace("encoder.4", "head").replace("encoder", "body"),
    ):
        moved = [(f"head.{name[2:]}" if name[0] == "4" else f"body.{name}", p) for name, p in model.named_parameters()]
        other = of_torch("Adam", moved)
        assert load(other, packed(optimizer), rename=rename) == LoadResult([], [], [])
        assert same(by_name(model, optimizer), by_name(model, other))
    with pytest.raises(ValueError, match="rename= names nothing in what is loaded: 'decoder'"):
        load(other, packed(optimizer), rename={"decoder": "x"})
    with pytest.raises(ValueError, match="ambiguous"):
        load(other, packed(optimizer), rename=lambda name: "one")
    with pytest.raises(TypeError, match="returned int"):
        load(other, packed(optimizer), rename=lambda name: 1)
    with pytest.raises(ValueError, match="rename= needs names"):
        load(of_torch("Adam", model.parameters()), packed(optimizer), rename={"encoder": "body"})


def test_resize_takes_the_common_part() -> None:
    old, new = nn.Embedding(4, 3), nn.Embedding(6, 3)
    optimizer, other = of_torch("Adam", old.named_parameters()), of_torch("Adam", new.named_parameters())
    old(torch.arange(4)).square().sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match=r"weight was saved as \(4, 3\) float32, where \(6, 3\)"):
        load(other, packed(optimizer))
    for form in (packed(optimizer), optimizer.state_dict()):
        load(other, form, resize=["weight"])
        for slot in ("exp_avg", "exp_avg_sq"):
            found = other.state[new.weight][slot]
            assert torch.equal(found[:4], optimizer.state[old.weight][slot])
            assert torch.equal(found[4:], torch.zeros(2, 3))
    slots = lambda group, param: {"step": scalar(), "exp_avg": array(0.25), "exp_avg_sq": array()}
    begin = lambda slot, p, group: torch.full_like(p, slot.initial)
    load(other, packed(optimizer), resize=["weight"], slots=slots, fresh=begin)
    assert torch.equal(other.state[new.weight]["exp_avg"][4:], torch.full((2, 3), 0.25))
    with pytest.raises(ValueError, match="'wieght'; did you mean 'weight'"):
        load(other, packed(optimizer), resize=["wieght"])
    with pytest.raises(TypeError, match="collection of names"):
        load(other, packed(optimizer), resize="weight")
    flat = nn.ParameterDict({"weight": nn.Parameter(torch.zeros(12))})
    with pytest.raises(ValueError, match=r"\(4, 3\) float32, where \(12\)"):
        load(of_torch("Adam", flat.named_parameters()), packed(optimizer), resize=["weight"])


def test_another_algorithm_is_refused_with_both_names() -> None:
    model = network()
    optimizer = of_torch("RMSprop", model.named_parameters())
    train(model, optimizer, images(1))
    with pytest.raises(ValueError, match="of RMSprop, and this is Adam"):
        load(of_torch("Adam", model.named_parameters()), packed(optimizer))
    slots = lambda group, param: {"step": scalar(), "exp_avg": array(), "exp_avg_sq": array()}
    with pytest.raises(ValueError, match="not of Adam: it has 'momentum_buffer', 'square_avg', and Adam"):
        load(of_torch("Adam", model.named_parameters()), optimizer.state_dict(), slots=slots)


def test_state_of_torch_that_nothing_reads_is_said() -> None:
    """As in torch it loads: which algorithm it is of stands nowhere."""
    model = network()
    torchs = torch.optim.AdamW(model.parameters())
    train(model, torchs, images(1))
    optimizer = steprule.SGD(model.parameters())
    with pytest.warns(UserWarning, match="'exp_avg', 'exp_avg_sq', which SGD with these hyperparameters never reads"):
        optimizer.load_state_dict(torchs.state_dict())
    with pytest.raises(ValueError, match="is not of SGD"):
        steprule.SGD(model.parameters(), momentum=0.9).load_state_dict(torchs.state_dict(), hyperparameters="current")
    steprule.AdamW(model.parameters()).load_state_dict(torchs.state_dict())


def test_a_version_of_the_future_is_refused() -> None:
    model = network()
    optimizer = of_torch("Adam", model.named_parameters())
    saved = packed(optimizer)
    saved["steprule"]["version"] = 2
    with pytest.raises(ValueError, match="has version 2, and this steprule reads version 1"):
        load(optimizer, saved)


@pytest.mark.parametrize("slot", ["step", "exp_avg", "max_exp_avg_sq"])
def test_a_slot_that_like_parameters_have_is_missed_in_torchs_form(slot: str) -> None:
    model = network()
    optimizer = of_torch("Adam", model.named_parameters(), amsgrad=True)
    train(model, optimizer, images(2))
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"][3][slot]
    with pytest.raises(ValueError, match=rf"missing: 1\.bias: {slot}"):
        load(optimizer, saved)


def test_a_group_without_momentum_beside_one_with_it() -> None:
    model = network()
    groups = [
        {"params": list(model[0].named_parameters()), "amsgrad": True},
        {"params": list(model[3].named_parameters())},
    ]
    optimizer = of_torch("Adam", groups)
    train(model, optimizer, images(2))
    other = of_torch("Adam", list(model[0].named_parameters()) + list(model[3].named_parameters()))
    with pytest.raises(ValueError, match="amsgrad of group 0 is True in saved group 0 and False in saved group 1"):
        load(other, optimizer.state_dict())
    load(other, optimizer.state_dict(), hyperparameters="current")
    assert same(by_name(model, optimizer), by_name(model, other))


class TestHyperparameters:
    def test_saved_ones_follow_the_parameters_into_other_groups(self) -> None:
        model = network()
        named = dict(model.named_parameters())
        split = [
            {"params": [(n, p) for n, p in named.items() if n.startswith(str(i))], "lr": i / 10} for i in (0, 1, 3, 4)
        ]
        optimizer = of_torch("Adam", split)
        finer = [{"params": [(n, p)]} for n, p in named.items()]
        other = of_torch("Adam", finer)
        load(other, packed(optimizer))
        assert [group["lr"] for group in other.param_groups] == [0.0, 0.0, 0.1, 0.1, 0.3, 0.3, 0.4, 0.4]
        whole = of_torch("Adam", named.items(), lr=7.0)
        with pytest.raises(ValueError, match=r"lr of group 0 is 0\.0 in saved group 0 and 0\.1 in saved group 1"):
            load(whole, packed(optimizer))
        assert whole.param_groups[0]["lr"] == 7.0

    def test_current_ones_stay(self) -> None:
        model = network()
        optimizer = of_torch("Adam", model.named_parameters())
        train(model, optimizer, images(2))
        other = of_torch("Adam", model.named_parameters(), lr=7.0, betas=(0.5, 0.6))
        load(other, packed(optimizer), hyperparameters="current")
        assert (other.param_groups[0]["lr"], other.param_groups[0]["betas"]) == (7.0, (0.5, 0.6))
        assert same(by_name(model, optimizer), by_name(model, other))
        with pytest.raises(ValueError, match="hyperparameters must be 'saved' or 'current', got 'both'"):
            load(other, packed(optimizer), hyperparameters="both")

    def test_a_tensor_is_copied(self) -> None:
        model = network()
        lr = torch.tensor(0.5)
        optimizer = of_torch("Adam", model.named_parameters(), lr=lr)
        saved = packed(optimizer)
        lr.fill_(0.25)
        other = of_torch("Adam", model.named_parameters(), lr=torch.tensor(7.0))
        load(other, saved)
        assert other.param_groups[0]["lr"].item() == 0.5
        other.param_groups[0]["lr"].fill_(1.0)
        assert saved["param_groups"][0]["lr"].item() == 0.5

    def test_what_a_scheduler_leaves_in_a_group_is_kept(self) -> None:
        model = network()
        optimizer = of_torch("SGD", model.named_parameters())
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
        other = of_torch("SGD", model.named_parameters())
        load(other, packed(optimizer))
        assert other.param_groups[0]["initial_lr"] == 0.01

    @pytest.mark.parametrize(
        ("key", "value", "kind"),
        [
            ("lr", "0.1", TypeError),
            ("lr", float("nan"), ValueError),
            ("lr", [0.1], TypeError),
            ("lr", True, TypeError),
            ("betas", (0.9,), ValueError),
            ("betas", 0.9, TypeError),
            ("betas", (0.9, "x"), TypeError),
            ("amsgrad", 0.5, TypeError),
            ("eps", torch.zeros(2), TypeError),
        ],
    )
    def test_values_of_another_kind_are_refused(self, key: str, value: object, kind: type[Exception]) -> None:
        model = network()
        optimizer = of_torch("Adam", model.named_parameters())
        saved = packed(optimizer)
        saved["param_groups"][0][key] = value
        with pytest.raises(kind, match=f"'{key}' of group 0 was saved as"):
            load(optimizer, saved)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("clip_norm", schedules.cosine(10), r"'clip_norm' of group 0 was saved as cosine\(10\) and is None here"),
            ("clip_norm", lambda step: 1.0, "'clip_norm' of group 0 was saved as"),
            ("lr", schedules.cosine(10), "'lr' of group 0 was saved as"),
            ("betas", (0.9, schedules.cosine(10)), "'betas' of group 0 was saved as"),
            ("betas", (0.9,), "'betas' of group 0 was saved as"),
            ("betas", (), "'betas' of group 0 was saved as"),
            ("foreach", "x", "'foreach' of group 0 was saved as 'x'"),
            ("fused", 1, "'fused' of group 0 was saved as 1"),
            ("maximize", schedules.cosine(10), "'maximize' of group 0 was saved as"),
            ("backend", None, "Invalid backend|'backend' of group 0"),
        ],
    )
    def test_what_no_step_could_use_is_refused_by_name(self, key: str, value: object, message: str) -> None:
        weight = torch.ones(2, requires_grad=True)
        optimizer = steprule.AdamW([("w", weight)])
        saved = optimizer.state_dict()
        before = dict(optimizer.param_groups[0])
        saved["param_groups"][0][key] = value
        with pytest.raises((TypeError, ValueError), match=message):
            optimizer.load_state_dict(saved)
        assert optimizer.param_groups[0] == before

    @pytest.mark.parametrize("key", ["params", "param_names", "betas", "backend", "maximize", "foreach"])
    def test_a_saved_schedule_is_for_a_number(self, key: str) -> None:
        optimizer = steprule.AdamW([("w", torch.ones(2, requires_grad=True))])
        saved = optimizer.state_dict()
        before = dict(optimizer.param_groups[0])
        saved["param_groups"][0]["schedules"] = {key: schedules.cosine(10).to_dict()}
        with pytest.raises(ValueError, match=f"saved schedules of group 0 have one for '{key}', which is no number"):
            optimizer.load_state_dict(saved)
        assert optimizer.param_groups[0] == before

    def test_what_a_saved_schedule_gives_next_is_checked_too(self) -> None:
        optimizer = steprule.AdamW([("w", torch.ones(2, requires_grad=True))])
        saved = optimizer.state_dict()
        saved["param_groups"][0]["schedules"] = {"lr": (0.1 - schedules.linear(10, 1.0, 0.0)).to_dict()}
        with pytest.raises(ValueError, match=r"group 0 as it was saved: Invalid learning rate: -0\.9"):
            optimizer.load_state_dict(saved)
        assert optimizer.param_groups[0]["lr"] == 1e-3

    @pytest.mark.parametrize("algorithm", ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "SparseAdam", "Rprop", "Lion"])
    def test_pairs_of_one_number_are_refused_by_every_constructor(self, algorithm: str) -> None:
        weight = torch.ones(2, requires_grad=True)
        for key in ("etas", "step_sizes") if algorithm == "Rprop" else ("betas",):
            for value in ((0.5,), (), (0.5, 0.6, 0.7), 0.5, None, "ab"):
                with pytest.raises((TypeError, ValueError), match=key):
                    getattr(steprule, algorithm)([weight], **{key: value})

    def test_a_check_is_asked(self) -> None:
        model = network()
        optimizer = of_torch("Adam", model.named_parameters())
        saved = packed(optimizer)
        saved["param_groups"][0]["lr"] = -1.0

        def check(group: dict[str, float]) -> None:
            if group["lr"] < 0:
                raise ValueError(f"Invalid learning rate: {group['lr']}")

        with pytest.raises(ValueError, match="group 0 as it was saved: Invalid learning rate: -1"):
            load(optimizer, saved, check=check)


class TestSchedules:
    def optimizer(self, model: nn.Module, step: int = 0, **hyper: object) -> torch.optim.Optimizer:
        """An optimizer with its schedules separated from the numbers in its groups."""
        plain = {key: value for key, value in hyper.items() if not isinstance(value, (schedules.Schedule, tuple))}
        made_ = of_torch("Adam", model.named_parameters(), **plain)
        made_.param_groups[0].update(hyper)
        found = schedules.separate(made_.param_groups[0], step)
        if found:
            made_.param_groups[0]["schedules"] = found
        return made_

    def test_one_that_is_the_same_stays_and_stands_where_it_stood(self) -> None:
        model = network()
        rate = 0.1 * schedules.cosine(10)
        saved = packed(self.optimizer(model, 4, lr=rate), step=4)
        assert saved["param_groups"][0]["schedules"] == {"lr": rate.to_dict(), "steps taken": 4}
        other = self.optimizer(model, lr=0.1 * schedules.cosine(10))
        new = prepare(other, saved)
        new.install(other)
        assert (new.step, new.replaced) == (4, [])
        schedules.write(other.param_groups, new.step)
        assert other.param_groups[0]["lr"] == rate(4)

    def test_the_steps_that_it_has_followed_count_where_the_dictionary_says_no_others(self) -> None:
        model = network()
        saved = packed(self.optimizer(model, 4, lr=0.1 * schedules.cosine(10)), step=4)
        del saved["steprule"]
        assert prepare(self.optimizer(model), saved).step == 4
        saved["state"] = {0: {"step": torch.tensor(7.0)}}  # torch.optim has gone on with it
        assert prepare(self.optimizer(model), saved, strict=False).step == 7
        saved["param_groups"][0]["schedules"]["steps taken"] = "many"
        with pytest.raises(TypeError, match=r"'steps taken' in the schedules of param_groups\[0\] must be a number"):
            prepare(self.optimizer(model), saved)

    def test_one_that_is_not_here_comes_from_the_file(self) -> None:
        model = network()
        betas = (schedules.constant(0.9), 0.99 * schedules.linear(10, 0.5, 1.0))
        saved = packed(self.optimizer(model, 4, betas=betas), step=4)
        other = self.optimizer(model)
        load(other, saved)
        assert other.param_groups[0]["betas"] == (0.9, betas[1](4))
        assert set(other.param_groups[0]["schedules"]) == {("betas", 0), ("betas", 1)}

    def test_a_changed_one_wins_and_is_said(self) -> None:
        model = network()
        saved = packed(self.optimizer(model, lr=0.1 * schedules.cosine(10)), step=4)
        other = self.optimizer(model, lr=0.2 * schedules.linear(8))
        new = prepare(other, saved)
        new.install(other)
        assert new.replaced == ["lr of group 0 is 0.2 * linear(8) now, which is not what was saved"]
        schedules.write(other.param_groups, new.step)
        assert other.param_groups[0]["lr"] == 0.1

    def test_what_a_plateau_has_seen_is_taken_over_only_when_installed(self) -> None:
        model = network()
        first = 0.1 * schedules.plateau(factor=0.5, patience=0)
        saved_from = self.optimizer(model, lr=first)
        for loss in (1.0, 2.0, 3.0):
            first.report(loss)
        saved = packed(saved_from)
        mine = 0.1 * schedules.plateau(factor=0.5, patience=0)
        other = self.optimizer(model, lr=mine)
        new = prepare(other, saved)
        assert mine(0) == 0.1
        new.install(other)
        assert mine(0) == 0.025
        saved["param_groups"][0]["schedules"]["lr"]["right"]["state"]["best"] = "low"
        with pytest.raises(ValueError, match="the schedule lr of group 0"):
            load(other, saved)

    def test_a_function_cannot_come_from_a_file(self) -> None:
        model = network()
        saved = packed(self.optimizer(model, lr=schedules.function(lambda step: 0.1)))
        with pytest.raises(ValueError, match=r"saved schedules of group 0.*give the schedule again"):
            load(self.optimizer(model), saved)
        load(self.optimizer(model), saved, hyperparameters="current")

    def test_current_ones_go_on_at_the_saved_step(self) -> None:
        model = network()
        other = self.optimizer(model, lr=0.1 * schedules.linear(10))
        new = prepare(other, packed(self.optimizer(model), step=5), hyperparameters="current")
        new.install(other)
        schedules.write(other.param_groups, new.step)
        assert other.param_groups[0]["lr"] == pytest.approx(0.05)


class TestTensors:
    @pytest.mark.parametrize(
        ("then", "now"), [("float32", "float64"), ("float64", "bfloat16"), ("bfloat16", "float32")]
    )
    def test_state_takes_the_dtype_of_the_parameter(self, then: str, now: str) -> None:
        old = nn.Linear(3, 2, dtype=getattr(torch, then))
        new = nn.Linear(3, 2, dtype=getattr(torch, now))
        optimizer, other = (
            of_torch("Adam", old.named_parameters()),
            of_torch("Adam", new.named_parameters()),
        )
        old(torch.ones(1, 3, dtype=old.weight.dtype)).sum().backward()
        optimizer.step()
        for form in (packed(optimizer), optimizer.state_dict()):
            load(other, form)
            entry = other.state[new.weight]
            assert entry["exp_avg"].dtype == new.weight.dtype
            assert entry["step"].dtype == torch.float32
            assert torch.equal(entry["exp_avg"], optimizer.state[old.weight]["exp_avg"].to(new.weight.dtype))

    def test_state_kept_in_another_dtype_on_purpose_stays_in_it(self) -> None:
        p = torch.zeros(3, requires_grad=True)
        optimizer = of_torch("SGD", [("p", p)])
        optimizer.state[p]["momentum_buffer"] = torch.ones(3, dtype=torch.bfloat16)
        other = of_torch("SGD", [("p", p)])
        load(other, packed(optimizer))
        assert other.state[p]["momentum_buffer"].dtype == torch.bfloat16

    def test_complex_and_real_do_not_mix(self) -> None:
        p, q = torch.zeros(3, dtype=torch.complex64, requires_grad=True), torch.zeros(3, requires_grad=True)
        p.grad = torch.ones(3, dtype=torch.complex64)
        optimizer = of_torch("Adam", [("p", p)])
        optimizer.step()
        for form in (packed(optimizer), optimizer.state_dict()):
            with pytest.raises(ValueError, match="complex64"):
                load(of_torch("Adam", [("p", q)]), form)
        load(of_torch("Adam", [("p", p.detach().to(torch.complex128).requires_grad_())]), packed(optimizer))

    def test_nothing_is_shared_with_the_dictionary(self) -> None:
        model = network()
        optimizer = of_torch("NAdam", model.named_parameters())
        train(model, optimizer, images(2))
        saved = packed(optimizer)
        other = of_torch("NAdam", model.named_parameters())
        load(other, saved)
        places = {t.data_ptr() for entry in saved["state"].values() for t in entry.values()}
        assert not places & {t.data_ptr() for entry in other.state.values() for t in entry.values()}

    def test_the_layout_is_the_parameters(self) -> None:
        weight = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
        optimizer = of_torch("SGD", [("w", weight)])
        optimizer.state[weight]["momentum_buffer"] = torch.arange(96.0).view(2, 3, 4, 4)
        other = of_torch("SGD", [("w", weight)])
        load(other, packed(optimizer))
        found = other.state[weight]["momentum_buffer"]
        assert found.stride() == weight.stride()
        assert torch.equal(found, torch.arange(96.0).view(2, 3, 4, 4))

    def test_views_of_one_vector_are_packed_alone(self) -> None:
        params = [torch.zeros(2, requires_grad=True) for _ in range(1000)]
        steps = torch.ones(1000)
        optimizer = of_torch("Adam", params)
        for i, p in enumerate(params):
            optimizer.state[p] = {"step": steps[i], "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
        saved = packed(optimizer)
        assert all(entry["step"].untyped_storage().nbytes() == 4 for entry in saved["state"].values())
        steps += 1
        assert all(entry["step"] == 1 for entry in saved["state"].values())

    def test_zero_sizes_and_single_numbers(self) -> None:
        params = {"none": torch.zeros(0, 3), "one": torch.tensor(2.0)}
        for p in params.values():
            p.requires_grad_()
            p.grad = torch.ones_like(p)
        optimizer = of_torch("Adam", params.items())
        optimizer.step()
        other = of_torch("Adam", reversed(params.items()))
        load(other, packed(optimizer))
        assert all(same(dict(optimizer.state[p]), dict(other.state[p])) for p in params.values())


def test_hooks_run_around_loading() -> None:
    model = network()
    optimizer = of_torch("Adam", model.named_parameters())
    train(model, optimizer, images(1))
    other = of_torch("Adam", model.named_parameters())
    seen = []

    def before(optimizer_: torch.optim.Optimizer, saved: dict[str, object]) -> dict[str, object]:
        seen.append("before")
        return {**saved, "state": {}}

    other.register_load_state_dict_pre_hook(before)
    other.register_load_state_dict_post_hook(lambda optimizer_: seen.append("after"))
    saved = optimizer.state_dict()
    load(other, saved)
    assert seen == ["before", "after"]
    assert not other.state
    assert saved["state"]


def test_no_warning_is_given() -> None:
    model = network()
    optimizer = of_torch("Adam", model.named_parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(optimizer, packed(optimizer))


class TestAsTorchDoes:
    @pytest.mark.parametrize("cls", [torch.optim.AdamW, steprule.AdamW])
    def test_saved_names_are_kept_where_there_are_none(self, cls: Any) -> None:
        model, twin = network(), network(1)
        params = list(model.named_parameters())
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.5}]
        optimizer = made_by(cls, groups)
        train(model, optimizer, images(1))
        bare = list(twin.parameters())
        other = made_by(steprule.AdamW, [{"params": bare[:2]}, {"params": bare[2:]}])
        other.load_state_dict(optimizer.state_dict())
        assert [group["param_names"] for group in other.param_groups] == [
            [name for name, _ in params[:2]],
            [name for name, _ in params[2:]],
        ]
        assert "param_names" in other.state_dict()["param_groups"][0]
        third = made_by(steprule.AdamW, [{"params": bare[:2]}, {"params": bare[2:]}])
        third.load_state_dict(optimizer.state_dict(), hyperparameters="current")
        assert "param_names" not in third.param_groups[0]

    @pytest.mark.parametrize("cls", [torch.optim.SGD, steprule.SGD])
    def test_what_stands_under_no_parameter_is_the_very_object(self, cls: Any) -> None:
        weight = torch.ones(3, requires_grad=True)
        optimizer = cls([weight], lr=0.1, momentum=0.9)
        own = {weight: weight.detach().clone(), "sigma": torch.zeros(3)[:1], "deep": [{weight: 1}]}
        optimizer.state["trac"] = own
        saved = optimizer.state_dict()
        assert saved["state"]["trac"] is own
        other = steprule.SGD([weight], lr=0.1, momentum=0.9)
        other.load_state_dict(saved)
        assert other.state["trac"] is own
        assert weight in other.state["trac"]

    @pytest.mark.parametrize("entry", [1, None, "x", [1], {"test": 1}, {"step": "x"}, {"step": torch.ones(2)}])
    def test_a_hook_may_put_anything_into_the_state_of_sparse_adam(self, entry: Any) -> None:
        weight = torch.ones(3, 1, requires_grad=True)
        optimizer = steprule.SparseAdam([weight], lr=0.1)
        optimizer.register_state_dict_pre_hook(lambda o: o.state.update(test=entry))  # type: ignore[call-overload]
        weight.grad = coo([0], torch.ones(1, 1), (3, 1))
        optimizer.step()
        saved = optimizer.state_dict()
        assert saved["state"]["test"] is entry
        assert type(saved["state"][0]["step"]) is int
        assert not isinstance(entry, dict) or type(entry.get("step")) is not int


def made_by(cls: Any, groups: Any) -> Any:
    return cls([dict(group) for group in groups], lr=0.01)
