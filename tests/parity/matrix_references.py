"""Which reference stands beside which algorithm of matrices."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import matrix_loops as slow
import torch
from parity_case import Case, Groups, Make, loop, package
from torch import Tensor

SHAPES = ((7,), (6, 5), (5, 2, 1, 2))
"""The last is a matrix of five rows and four columns: of longer ones a null space has no basis of its own."""

ONLY_MATRICES = ((4, 4), (6, 5), (3, 7))

kozistr = functools.partial(Case, package="pytorch_optimizer", shapes=SHAPES)
muons = functools.partial(Case, package="pytorch_optimizer", shapes=ONLY_MATRICES)


class Flat:
    """An optimizer that is given every parameter of more than two dimensions as a matrix, and whose steps are taken
    within a context."""

    def __init__(self, make: Make, groups: Groups, within: Callable[[Any], Any], flatten: bool = True) -> None:
        self.params = [p for group in groups for p in group["params"]]
        self.flatten = flatten
        self.flat = [self.matrix(p.detach()).requires_grad_() for p in self.params]
        flat = dict(zip(self.params, self.flat, strict=True))
        self.optimizer = make([{**group, "params": [flat[p] for p in group["params"]]} for group in groups])
        self.within = within

    @property
    def param_groups(self) -> Any:
        for p, q in zip(self.params, self.flat, strict=True):
            q.grad = None if p.grad is None else self.matrix(p.grad).clone()
        return self.optimizer.param_groups

    def step(self) -> None:
        with self.within(self.optimizer):
            self.optimizer.step()

    def matrix(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1) if x.ndim > 2 and self.flatten else x


@contextlib.contextmanager
def unrounded(_: Any = None) -> Iterator[None]:
    """Where a package rounds what it computes in float64 to fewer bits, it does not."""
    own = {name: getattr(Tensor, name) for name in ("to", "float", "bfloat16")}

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        dtype = kwargs.get("dtype", next((a for a in args if isinstance(a, torch.dtype)), None))
        kept = self.dtype == torch.float64 and dtype in (torch.float32, torch.bfloat16)
        return (self.clone() if kwargs.get("copy") else self) if kept else own["to"](self, *args, **kwargs)

    with mock.patch.object(Tensor, "to", to), mock.patch.object(Tensor, "float", lambda self: self):
        yield


def flat(path: str, within: Callable[[Any], Any] = unrounded, **options: Any) -> Make:
    make = package(path, **options)
    return lambda groups: Flat(make, groups, within)


def muon(path: str, **options: Any) -> Make:
    """One of the package's relatives of Muon, which want to be told that matrices are theirs."""
    make = package(path, foreach=False, **options)
    return lambda groups: Flat(lambda own: make([{**group, "use_muon": True} for group in own]), groups, unrounded)


@contextlib.contextmanager
def with_ridge(_: Any) -> Iterator[None]:
    """The package's exact roots, with what the paper's code adds to the eigenvalues."""
    from pytorch_optimizer.optimizer.utils import preconditioner

    own = preconditioner.compute_power_svd

    def rooted(matrix: Tensor, power: float) -> Tensor:
        largest = torch.linalg.eigvalsh(matrix)[..., -1:, None].clamp(min=1e-6)
        return own(matrix + 1e-6 * largest * torch.eye(matrix.shape[-1], dtype=matrix.dtype), power)

    with mock.patch.object(preconditioner, "compute_power_svd", rooted):
        yield


@contextlib.contextmanager
def with_our_noise(optimizer: Any) -> Iterator[None]:
    """The numbers that the package draws are ours."""
    count = optimizer.param_groups[0].get("step", 0) + 1

    def drawn(x: Tensor, **_: Any) -> Tensor:
        return slow.normal(x.shape, 0, count)

    with unrounded(), mock.patch.object(torch, "randn_like", drawn):
        yield


SHAMPOO: dict[str, Any] = dict(
    shape_interpretation=False, use_svd=True, preconditioning_compute_steps=1, start_preconditioning_step=5
)
RIDGE = "with the ridge of the paper's code, which the package's exact roots leave out"
ROUNDS = "without the package's rounding to bfloat16"
GRAFTS: list[tuple[str | None, int, int, dict[str, Any]]] = [
    ("sgd", 1, 512, {}),
    ("adagrad", 2, 3, dict(weight_decay=0.1)),
    ("rmsprop", 3, 4, dict(moving_average_for_momentum=True, weight_decay=0.1)),
    ("sqrt_n", 4, 512, dict(nesterov=False)),
    (None, 0, 2, dict(weight_decay=0.1, decoupled_weight_decay=True)),
]
"""What is grafted, the package's number for it, the size of blocks, and other options."""
NORMS = {"spectral": 2, "sign": 4, "column": 6, "row": 7}
WIDE = {"ns_dtype": "float64"}

MATRIX = [
    *(
        kozistr(
            "SOAP",
            flat("pytorch_optimizer.SOAP", precondition_frequency=k, weight_decay=0.1, normalize_gradient=k == 3),
            dict(precondition_frequency=k, weight_decay=0.1, normalize_grads=k == 3),
            what=f"every {k}",
            remark="without the package's rounding to float32; parameters of more than two dimensions as matrices",
        )
        for k in (1, 3)
    ),
    kozistr(
        "SOAP",
        flat("pytorch_optimizer.SOAP", max_precondition_dim=5, shampoo_beta=0.8, correct_bias=False),
        dict(max_precond_dim=5, shampoo_beta=0.8, correct_bias=False),
        what="long sides",
    ),
    *(
        kozistr(
            "Shampoo",
            flat("pytorch_optimizer.ScalableShampoo", with_ridge, graft_type=g, block_size=b, **SHAMPOO, **options),
            dict(graft=name, block_size=b, **options),
            what=f"{name} block {b}",
            remark=RIDGE,
        )
        for name, g, b, options in GRAFTS
    ),
    Case(
        "Shampoo",
        loop(slow.shampoo, k=3, eps=1e-6, betas=(0.9, 1.0)),
        dict(preconditioning_compute_steps=3, start_preconditioning_step=1, betas=(0.9, 1.0)),
        what="every 3 sums",
        remark="the package computes roots one step before those of the paper's code, in every k-th",
    ),
    muons(
        "Muon",
        muon("pytorch_optimizer.Muon", weight_decay=0.1, use_adjusted_lr=True),
        dict(weight_decay=0.1, adjust_lr_fn="match_rms_adamw", **WIDE),
        what="Moonlight",
        remark=ROUNDS,
    ),
    muons(
        "Muon",
        muon("pytorch_optimizer.Muon", nesterov=False, ns_coeffs="quintic", weight_decay=0.0),
        dict(nesterov=False, ns_coefficients=slow.QUINTIC, weight_decay=0.0, **WIDE),
        what="a list of coefficients",
        remark=ROUNDS,
    ),
    Case(
        "Muon",
        loop(slow.polar_express, steps=4, momentum=0.95),
        dict(ns_coefficients="polar_express", ns_steps=4, weight_decay=0.0, **WIDE),
        what="Polar Express",
        shapes=ONLY_MATRICES,
        remark="the coefficients that the paper prints; the package's are others",
    ),
    *(
        muons(
            "NorMuon",
            muon("pytorch_optimizer.NorMuon", weight_decay=0.1, update_scale=scale),
            dict(weight_decay=0.1, update_scale=scale, **WIDE),
            what=scale,
            remark=ROUNDS,
        )
        for scale in ("preserve_norm", "match_rms")
    ),
    muons(
        "AdaMuon",
        muon("pytorch_optimizer.AdaMuon", weight_decay=0.1, betas=(0.9, 0.9), eps=1e-12),
        dict(weight_decay=0.1, momentum=0.9, eps=1e-12, nesterov=False, sign_stabilized=False, **WIDE),
        what="without signs",
        remark=f"{ROUNDS}; it leaves out the signs of the paper, and corrects running means, which lengths even out",
    ),
    Case(
        "AdaMuon",
        loop(slow.adamuon, momentum=0.9, eps=1e-8),
        dict(momentum=0.9, **WIDE),
        shapes=ONLY_MATRICES,
    ),
    *(
        muons(
            "Scion",
            flat("pytorch_optimizer.SCION", norm_type=norm, momentum=0.2, scale=3.0, constraint=name != "row"),
            dict(norm=name, momentum=0.2, scale=3.0, unconstrained=name == "row", **WIDE),
            what=name,
            remark=ROUNDS if name == "spectral" else "",
        )
        for name, norm in NORMS.items()
    ),
    Case(
        "Scion",
        lambda groups: Flat(
            package("pytorch_optimizer.SCION", momentum=1.0, constraint=True), groups, unrounded, False
        ),
        WIDE,
        package="pytorch_optimizer",
        what="auto",
        remark=ROUNDS,
    ),
    Case(
        "Dion",
        loop(slow.dion, mu=0.9, eps=1e-8, weight_decay=0.1, rank_fraction=0.5),
        dict(mu=0.9, weight_decay=0.1, rank_fraction=0.5),
        shapes=ONLY_MATRICES,
    ),
    kozistr(
        "GaLore",
        flat(
            "pytorch_optimizer.GaLore",
            rank=2,
            update_proj_gap=1,
            scale=0.25,
            projection_type="std",
            weight_decay=0.1,
            foreach=False,
        ),
        dict(rank=2, update_proj_gap=1, weight_decay=0.1),
        shapes=((7,), (6, 5), (3, 7)),
        what="every step",
        remark="without the package's rounding to float32",
    ),
    Case(
        "GaLore",
        loop(slow.galore, betas=(0.9, 0.999), eps=1e-6, rank=3, gap=4, scale=0.25),
        dict(rank=3, update_proj_gap=4),
        shapes=((7,), (6, 5), (3, 7)),
        what="every 4",
        remark="the package looks for directions one step before the paper's code, in every k-th",
    ),
    *(
        Case(
            "Apollo",
            loop(slow.apollo, betas=(0.9, 0.999), eps=1e-6, rank=2, gap=4, scale=scale, kind=kind, weight_decay=0.1),
            dict(rank=2, update_proj_gap=4, scale=scale, scale_type=kind, weight_decay=0.1),
            shapes=((7,), (6, 5), (3, 7)),
            what=kind,
            remark="the package scales the projected gradient and brings it back, where the paper scales the gradient",
        )
        for kind, scale in (("channel", 1.0), ("tensor", 128.0))
    ),
    *(
        kozistr(
            "Kron",
            flat(
                "pytorch_optimizer.Kron",
                with_our_noise,
                balance_prob=0.0,
                weight_decay=0.1,
                precondition_dtype=torch.float64,
                pre_conditioner_update_probability=probability,
                max_size_triangular=longest,
                momentum_into_precondition_update=into,
            ),
            dict(
                weight_decay=0.1,
                preconditioner_update_probability=probability,
                max_size_triangular=longest,
                momentum_into_precond_update=into,
            ),
            shapes=ONLY_MATRICES,
            what=what,
            remark="with our random numbers, and without the package's rounding to float32",
        )
        for what, probability, longest, into in (
            ("triangles", None, 8192, True),
            ("some diagonals", 0.3, 5, False),
            ("diagonals", 1.0, 0, True),
        )
    ),
]
