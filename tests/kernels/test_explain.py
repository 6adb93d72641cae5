"""Which kernel serves what, and why: as explain() says it, and as an error where a backend is insisted on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import optimizer_of
from tensors import coo, give, leaf
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from steprule import SGD, AdamW, Lamb
from steprule.rule import array, matrix, norm


def trained(optimizer: Any) -> str:
    optimizer.step()
    text: str = optimizer.explain()
    return text


def test_before_any_step() -> None:
    p = leaf(torch.zeros(3), torch.ones(3))
    optimizer = AdamW([p])
    assert optimizer.explain().startswith("llvm: dense memory on the CPU")
    assert p.tolist() == [0.0] * 3
    assert not optimizer.state
    assert AdamW([leaf(torch.zeros(3))]).explain() == "no parameter has a gradient yet"


def test_all_groups_that_share_a_rule_and_dtypes_are_one_paragraph() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20), nn.Linear(20, 5))
    groups = [
        {"params": list(model[:2].named_parameters()), "lr": 0.1, "weight_decay": 0.3},
        {"params": [(f"2.{n}", p) for n, p in model[2].named_parameters()]},
    ]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    assert trained(AdamW(groups)) == "\n".join(
        [
            "llvm: dense memory on the CPU",
            "    6 tensors, 365 elements of float32 on cpu",
            "    28 bytes an element in 1 pass over memory",
            "    '0.weight', '0.bias', '1.weight', '1.bias', '2.weight', '2.bias'",
        ]
    )


def test_dtypes_layouts_and_answers_make_paragraphs() -> None:
    params = [
        leaf(torch.zeros(2), torch.ones(2)),
        leaf(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)),
        leaf(torch.zeros(4)[::2], torch.ones(2)),
        leaf(torch.zeros(2, dtype=torch.complex64), torch.ones(2, dtype=torch.complex64)),
        leaf(torch.zeros(2), coo([1], torch.tensor([1.0]), (2,))),
        leaf(torch.zeros(2), torch.ones(2)),
    ]
    groups = [{"params": params[:5]}, {"params": params[5:], "momentum": 0}]
    text = trained(SGD(groups, momentum=0.9))
    heads = [line for line in text.splitlines() if not line.startswith(" ")]
    assert (
        heads
        == ["llvm: dense memory on the CPU"] * 2
        + ["eager: the parameter is not dense in memory"]
        + ["llvm: dense memory on the CPU"] * 3
    )
    assert "2 elements of float64 on cpu" in text
    assert "4 elements of complex64 on cpu" in text
    assert "2 elements of float32, sparse gradients on cpu" in text
    assert "5 bytes" not in text
    assert "20 bytes an element" in text
    assert "40 bytes an element" in text
    assert "12 bytes an element" in text
    assert "torch operations, tensor by tensor" in text
    assert "0 of group 1" in text


def test_bytes_and_passes_are_counted() -> None:
    def two_steps(p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - matrix(torch.neg, g / norm(g), dtype="bfloat16") - matrix(torch.neg, g)

    p = leaf(torch.zeros(2, 3), torch.ones(2, 3))
    # pass 1 reads p, g and two moments; pass 2 reads them again and writes three
    assert "44 bytes an element in 2 passes over memory" in trained(Lamb([p]))
    # pass 1 reads g, writes float32; pass 2 reads g, writes bfloat16; pass 3 reads p and both, writes p
    assert "28 bytes an element in 3 passes" in trained(optimizer_of(two_steps, [p]))


def test_matrix_steps_of_different_dtypes_in_another_order_than_their_passes() -> None:
    seen: list[torch.dtype] = []

    def note(x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return x

    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - matrix(note, g / norm(g), dtype="bfloat16") - matrix(note, g, dtype="float64")

    p = leaf(torch.zeros(3, 3), torch.ones(3, 3))
    optimizer_of(rule, [p], "llvm").step()
    assert seen == [torch.float64, torch.bfloat16]
    torch.testing.assert_close(p.detach(), -1 - torch.tensor(1 / 3).bfloat16().float().expand(3, 3))


def test_many_names_are_shortened() -> None:
    params = [leaf(torch.zeros(1), torch.ones(1)) for _ in range(9)]
    assert trained(SGD(params)).splitlines()[-1].strip() == (
        ", ".join(f"{i} of group 0" for i in range(6)) + ", ... and 3 more"
    )


def test_the_source_shows_the_mathematics_and_the_generated_code() -> None:
    p = leaf(torch.zeros(4), torch.ones(4))
    optimizer = SGD([p], momentum=0.5)
    optimizer.step()
    text = optimizer.explain(source=True)
    assert "momentum_buffer ← " in text
    assert "define internal void @chunk0(ptr noalias" in text
    assert "@chunk0" not in optimizer.explain()


@pytest.mark.parametrize(
    ("reason", "make"),
    [
        ("the parameter is not dense in memory", lambda: (torch.zeros(4, 4)[:, ::2], torch.ones(4, 2))),
        ("the parameter is a negative view", lambda: (torch._neg_view(torch.zeros(3)), torch.ones(3))),
        (
            "the parameter is torch.float8_e4m3fn",
            lambda: (torch.zeros(3).to(torch.float8_e4m3fn), torch.ones(3).to(torch.float8_e4m3fn)),
        ),
        (
            "the parameter is a TwoTensor, whose memory is not plain",
            lambda: (TwoTensor(torch.zeros(3), torch.zeros(3)), TwoTensor(torch.ones(3), torch.ones(3))),
        ),
        (
            "the parameter's rows are not contiguous",
            lambda: (torch.zeros(3, 2).t(), coo([1], torch.ones(1, 3), (2, 3))),
        ),
        ("the gradient is torch.float8_e5m2", lambda: (torch.zeros(3), torch.ones(3).to(torch.float8_e5m2))),
    ],
)
def test_what_llvm_cannot_serve_goes_to_torch_operations_or_is_an_error(reason: str, make: Any) -> None:
    value, grad = make()
    p = value.requires_grad_()
    give(p, grad)
    optimizer = SGD([("w", p)], lr=0.5)
    before = p.detach().float().clone()
    assert trained(optimizer).splitlines()[0] == f"eager: {reason}"
    moved = (before - p.detach().float()).to_dense()
    expected = 0.5 * grad.to_dense().float().expand(p.shape) if not grad.is_sparse else moved
    assert torch.equal(moved * 1.0, expected * 1.0)
    insisting = SGD([("w", p)], lr=0.5, backend="llvm")
    with pytest.raises(RuntimeError) as error:
        insisting.step()
    assert str(error.value).startswith(f"backend='llvm' can't serve parameter 'w': {reason}; backend='auto' would take")


def test_differentiable_is_a_reason_too() -> None:
    p = leaf(torch.zeros(3), torch.ones(3))
    optimizer = SGD([p.clone()], lr=0.5, differentiable=True)
    optimizer.param_groups[0]["params"][0].retain_grad()
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    assert optimizer.explain().startswith("eager: differentiable=True: autograd has to see each operation")


def test_meta_parameters_are_not_for_llvm() -> None:
    p = torch.zeros(3, device="meta").requires_grad_()
    p.grad = torch.zeros(3, device="meta")
    with pytest.raises(
        RuntimeError, match="backend='llvm' can't serve parameter 0 of group 0: the parameter is on meta"
    ):
        SGD([p], backend="llvm").step()


def test_a_backend_that_is_not_there() -> None:
    p = leaf(torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="Invalid backend: 'cuda'; it is one of auto, llvm, triton, eager"):
        SGD([p], backend="cuda")


def test_a_backend_for_some_groups_only() -> None:
    p, q = leaf(torch.zeros(3), torch.ones(3)), leaf(torch.zeros(3), torch.ones(3))
    text = trained(SGD([{"params": [p], "backend": "eager"}, {"params": [q]}], lr=1.0))
    assert text.splitlines()[0] == "eager: backend='eager' was asked for"
    assert text.splitlines()[4] == "llvm: dense memory on the CPU"
    assert p.tolist() == q.tolist() == [-1.0] * 3


def test_an_error_of_one_parameter_changes_none() -> None:
    p, q = leaf(torch.zeros(3), torch.ones(3)), leaf(torch.zeros(6)[::2], torch.ones(3))
    optimizer = AdamW([p, q], backend="llvm")
    with pytest.raises(RuntimeError, match="parameter 1 of group 0"):
        optimizer.step()
    assert p.tolist() == [0.0] * 3
    assert not optimizer.state


def test_explain_leaves_a_training_as_it_is() -> None:
    p = leaf(torch.zeros(4), torch.ones(4))
    optimizer = SGD([p], lr=1.0, momentum=0.5, clip_norm=1.0)
    optimizer.step()
    optimizer.explain(source=True)
    assert optimizer.grad_norm.item() == 2.0
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((4,), -0.5 - 0.75))
    assert optimizer.state[p].keys() == {"momentum_buffer"}


def test_slots_count_in_the_dtype_they_have() -> None:
    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.m = s.m + g
        return p - s.m

    p = leaf(torch.zeros(4, dtype=torch.bfloat16), torch.ones(4, dtype=torch.bfloat16))
    text = trained(optimizer_of(rule, [p], slots={"m": array(dtype="float32")}))
    assert "14 bytes an element in 1 pass" in text
