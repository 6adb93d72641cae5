"""Groups with algorithms of their own: as if each had an optimizer, in one step, one print and one checkpoint."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from tensors import give_gradients
from torch import nn

import steprule
from steprule import SGD, AdamW, Lion, Muon, Optimizer, hidden_matrices, schedules
from steprule.modifiers import EMA, Cautious


class Net(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(9, 4)
        self.positions = nn.Parameter(torch.zeros(1, 5, 4))
        self.mix = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 6)
        self.head = nn.Linear(4, 9, bias=False)
        if tied:
            self.head.weight = self.tokens.weight


HIDDEN = ["mix.weight", "out.weight"]
REST: dict[str, Any] = dict(lr=3e-4, betas=(0.9, 0.95))


def mixed(model: nn.Module, **options: Any) -> Muon:
    return Muon(model, lr=0.02, overrides={~hidden_matrices: dict(algorithm=AdamW, **REST)}, **options)


def of(model: nn.Module, hidden: bool) -> list[tuple[str, torch.Tensor]]:
    return [(name, p) for name, p in model.named_parameters() if (name in HIDDEN) is hidden]


def test_each_group_is_updated_as_by_an_optimizer_of_its_own() -> None:
    model, twin = Net(), Net()
    optimizer = mixed(model)
    alone = Muon(of(twin, True), lr=0.02), AdamW(of(twin, False), **REST)
    for step in range(4):
        give_gradients(model.parameters(), step)
        give_gradients(twin.parameters(), step)
        optimizer.step()
        for each in alone:
            each.step()
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
    for group in optimizer.param_groups:
        single = alone[group["algorithm"] == "AdamW"].param_groups[0]
        assert {k: v for k, v in group.items() if k in single and k not in ("params", "param_names")} == {
            k: v for k, v in single.items() if k not in ("params", "param_names")
        }
    assert {tuple(sorted(optimizer.state[p])) for _, p in of(model, False)} == {("exp_avg", "exp_avg_sq", "step")}


def test_one_launch_for_each_algorithm() -> None:
    model = Net()
    overrides = {
        ~hidden_matrices: dict(algorithm=AdamW, **REST),
        "*.bias": dict(lr=1e-3),
        steprule.norms: dict(weight_decay=0),
    }
    optimizer = Muon(model, lr=0.02, overrides=overrides)
    give_gradients(model.parameters(), 0)
    optimizer.step()
    assert len(optimizer.param_groups) == 5
    text = optimizer.explain()
    assert text.count("llvm:") == 2
    assert "\n    AdamW\n" in text
    assert "\n    Muon\n" in text


def test_it_prints_the_algorithms_and_what_was_guessed() -> None:
    text = repr(mixed(Net()))
    assert "algorithm" in text
    assert "AdamW" in text
    assert "guessed: head.weight for the last layer, positions for a table" in text
    assert "last layer" not in repr(mixed(Net(tied=True)))


@pytest.mark.parametrize("tied", [False, True])
def test_hidden_matrices(tied: bool) -> None:
    assert [name for name, _ in steprule.grouping.selectors.select(Net(tied), hidden_matrices)] == HIDDEN


def test_a_model_that_says_its_last_layer() -> None:
    class Saying(Net):
        def get_output_embeddings(self) -> nn.Module:
            return self.out

    model = Saying()
    names = [name for name, _ in steprule.grouping.selectors.select(model, hidden_matrices)]
    assert names == ["mix.weight", "head.weight"]
    assert "last layer" not in repr(SGD(model, overrides={hidden_matrices & "mix.*": dict(lr=1.0)}))


def test_schedules_options_and_modifiers_go_around_all() -> None:
    model = Net()
    overrides: dict[Any, Any] = {
        ~hidden_matrices: dict(algorithm=AdamW, lr=3e-4 * schedules.linear(10)),
        "norm.*": dict(ema=False),
    }
    optimizer = Muon(
        model, lr=0.02, overrides=overrides, clip_norm=1.0, maximize=True, modifiers=[Cautious(), EMA(0.9)]
    )
    for step in range(3):
        give_gradients(model.parameters(), step)
        optimizer.step()
    assert all(group["maximize"] and group["clip_norm"] == 1.0 for group in optimizer.param_groups)
    assert "ema_mean" in optimizer.state[model.tokens.weight]
    assert "ema_mean" in optimizer.state[model.mix.weight]
    assert "ema_mean" not in optimizer.state[model.norm.weight]
    rates = {group["algorithm"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"Muon": 0.02, "AdamW": pytest.approx(3e-4 * 0.8)}
    assert optimizer.grad_norm > 0


@pytest.mark.parametrize("through", ["dict", "pickle", "file"])
def test_one_checkpoint(through: str, tmp_path: Any) -> None:
    model, twin = Net(), Net()
    optimizer = mixed(model)
    for step in range(2):
        give_gradients(model.parameters(), step)
        optimizer.step()
    twin.load_state_dict(model.state_dict())
    if through == "pickle":
        other: Optimizer = pickle.loads(pickle.dumps(optimizer))
        for group, own in zip(other.param_groups, optimizer.param_groups, strict=True):
            group["params"][:] = [dict(twin.named_parameters())[name] for name in own["param_names"]]
        for name, p in twin.named_parameters():
            other.state[p] = copy.deepcopy(optimizer.state[dict(model.named_parameters())[name]])
    else:
        other = mixed(twin)
        if through == "file":
            steprule.save(tmp_path / "run", optimizer)
            steprule.load(tmp_path / "run", other)
        else:
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(2, 4):
        for m, o in ((model, optimizer), (twin, other)):
            give_gradients(m.parameters(), step)
            o.step()
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_torchs_two_checkpoints_load_into_one(named: bool, turned: bool) -> None:
    model, twin = Net(), Net()
    hidden, rest = (of(model, which) if named else [p for _, p in of(model, which)] for which in (True, False))
    theirs = torch.optim.Muon(hidden, lr=0.05), torch.optim.AdamW(rest, lr=1e-3, betas=(0.8, 0.9))
    for step in range(3):
        give_gradients(model.parameters(), step)
        for each in theirs:
            each.step()
    twin.load_state_dict(model.state_dict())
    ours = mixed(twin)
    saved = []
    for each in theirs:
        buffer = io.BytesIO()
        torch.save(each.state_dict(), buffer)
        buffer.seek(0)
        saved.append(torch.load(buffer))
    ours.load_state_dict(saved[::-1] if turned else saved)
    assert {g["algorithm"]: g["lr"] for g in ours.param_groups} == {"Muon": 0.05, "AdamW": 1e-3}
    give_gradients(model.parameters(), 3)
    give_gradients(twin.parameters(), 3)
    for optimizer in (*theirs, ours):
        optimizer.step()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        tolerance = 1e-3 if name in HIDDEN else 1e-6
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


def test_a_group_dictionary_and_a_group_added_later() -> None:
    p, q, r = (torch.ones(2, requires_grad=True) for _ in range(3))
    optimizer = SGD([{"params": [p]}, {"params": [q], "algorithm": AdamW, "weight_decay": 0.5}], lr=0.5)
    optimizer.add_param_group({"params": [r], "algorithm": Lion})
    assert [(g["algorithm"], g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
        ("SGD", 0.5, 0),
        ("AdamW", 1e-3, 0.5),
        ("Lion", Lion([r]).defaults["lr"], Lion([r]).defaults["weight_decay"]),
    ]
    assert "momentum" not in optimizer.param_groups[1]
    for x in (p, q, r):
        x.grad = torch.ones(2)
    optimizer.step()
    assert p[0] == 0.5
    assert set(optimizer.state[r]) == {"exp_avg"}


class Own(Optimizer):
    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, dict(lr=lr))

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * g


def test_an_algorithm_of_ones_own_that_needs_a_rate() -> None:
    p, q = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = AdamW([{"params": [p]}, {"params": [q], "algorithm": Own, "lr": 0.25}])
    q.grad = torch.ones(2)
    optimizer.step()
    assert q[0] == 0.75
    with pytest.raises((ValueError, TypeError), match="lr"):
        optimizer.add_param_group({"params": [torch.ones(1, requires_grad=True)], "algorithm": Own})
    assert len(optimizer.param_groups) == 2


REFUSED = [
    (dict(algorithm=torch.optim.AdamW), TypeError, "give a class of steprule's optimizers"),
    (dict(algorithm=steprule.LBFGS), TypeError, "LBFGS works by torch operations"),
    (dict(algorithm="AdamX"), TypeError, "algorithm='AdamX' is not known here"),
    (dict(algorithm=AdamW, momentum=0.5), ValueError, "unknown hyperparameter 'momentum' of AdamW"),
    (dict(algorithm=AdamW, lr=-1.0), ValueError, "Invalid learning rate: -1.0"),
    (dict(algorithm=Muon), ValueError, "Muon only supports 2D parameters"),
]


@pytest.mark.parametrize(("over", "error", "message"), REFUSED, ids=str)
def test_refusals(over: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SGD(Net(), overrides={"norm.*": over})


def test_a_later_override_of_another_algorithm_voids_the_earlier() -> None:
    overrides = {
        "*": dict(algorithm=AdamW, betas=(0.5, 0.5)),
        "norm.*": dict(algorithm=Lion),
        "norm.bias": dict(lr=1.0),
    }
    optimizer = SGD(Net(), overrides=overrides)
    found = {name: group for group in optimizer.param_groups for name in group["param_names"]}
    assert found["mix.weight"]["betas"] == (0.5, 0.5)
    assert found["norm.bias"]["betas"] == Lion([torch.ones(1, requires_grad=True)]).defaults["betas"]
    assert (found["norm.bias"]["lr"], found["norm.bias"]["algorithm"]) == (1.0, "Lion")


def test_a_state_of_another_algorithm_or_of_other_modifiers_is_refused() -> None:
    def saved(algorithm: Any, **options: Any) -> Any:
        model = Net()
        optimizer = SGD(model, overrides={"mix.*": dict(algorithm=algorithm)}, **options)
        give_gradients(model.parameters(), 0)
        optimizer.step()
        return optimizer.state_dict()

    here = SGD(Net(), overrides={"mix.*": dict(algorithm=AdamW)})
    before = repr(here)
    with pytest.raises(ValueError, match="the algorithm of group 1 is AdamW here and was Lion"):
        here.load_state_dict(saved(Lion))
    with pytest.raises(ValueError, match="the modifiers of group 0 is none here and was cautious"):
        here.load_state_dict(saved(AdamW, modifiers=[Cautious()]))
    assert repr(here) == before
    here.load_state_dict(saved(AdamW))
