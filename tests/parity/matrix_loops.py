"""Slow loops of matrix algorithms, written from their papers: ``update(x, g, s, h)`` for :class:`parity_case.Loop`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]

QUINTIC = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]
"""Of modded-nanogpt, as the package has them."""

PRINTED = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
]
"""The first coefficients that the paper of the Polar Express prints, before its safety factor."""


def normal(shape: Any, seed: int, count: int) -> torch.Tensor:
    """The random matrices of our algorithms."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + count)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


def newton_schulz(x: Array, coefficients: Any, scale: float = 1.0, eps: float = 0.0) -> Array:
    x = x / (np.linalg.norm(x) * scale + eps)
    for a, b, c in coefficients:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def averaged(g: Array, s: Any, beta: float) -> Array:
    """The running mean with a look ahead."""
    s["m"] = beta * s.get("m", 0.0) + (1 - beta) * g
    return np.asarray((1 - beta) * g + beta * s["m"])


def polar_express(x: Array, g: Array, s: Any, h: Any) -> Array:
    safe = [(a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in PRINTED[: h.steps]]
    o = newton_schulz(averaged(g, s, h.momentum), safe, 1.01, 1e-7)
    return x - h.lr * math.sqrt(max(1, x.shape[0] / x.shape[1])) * o


def adamuon(x: Array, g: Array, s: Any, h: Any) -> Array:
    o = newton_schulz(np.sign(averaged(g, s, h.momentum)), [(3.4445, -4.7750, 2.0315)] * 5)
    s["v"] = h.momentum * s.get("v", 0.0) + (1 - h.momentum) * o**2
    u = o / (np.sqrt(s["v"]) + h.eps)
    return x - h.lr * 0.2 * math.sqrt(x.size) * u / (np.linalg.norm(u) + h.eps)


def dion(x: Array, g: Array, s: Any, h: Any) -> Array:
    rows, columns = x.shape
    if "q" not in s:
        s["q"] = normal((columns, math.ceil(h.rank_fraction * min(x.shape))), 0, 0).numpy()
    b = s.get("m", 0.0) + g
    p = np.linalg.qr(b @ s["q"])[0]
    r = b.T @ p
    s["m"] = b - (1 - h.mu) * p @ r.T
    s["q"] = r / (np.linalg.norm(r, axis=0) + h.eps)
    return x * (1 - h.lr * h.weight_decay) - h.lr * math.sqrt(rows / columns) * p @ s["q"].T


def adam(g: Array, s: Any, h: Any) -> Array:
    beta1, beta2 = h.betas
    s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
    s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * g**2
    return np.asarray(s["m"] / (np.sqrt(s["v"]) + h.eps))


def rate(s: Any, h: Any) -> float:
    beta1, beta2 = h.betas
    return float(h.lr * math.sqrt(1 - beta2 ** s["t"]) / (1 - beta1 ** s["t"]))


def galore(x: Array, g: Array, s: Any, h: Any) -> Array:
    if x.ndim < 2:
        return x - rate(s, h) * adam(g, s, h)
    if (s["t"] - 1) % h.gap == 0:
        u, _, v = (part.numpy() for part in torch.linalg.svd(torch.from_numpy(g), full_matrices=False))
        s["p"] = u[:, : h.rank] if g.shape[0] < g.shape[1] else v[: h.rank]
    if g.shape[0] < g.shape[1]:
        return x - rate(s, h) * h.scale * s["p"] @ adam(s["p"].T @ g, s, h)
    return x - rate(s, h) * h.scale * adam(g @ s["p"].T, s, h) @ s["p"]


def apollo(x: Array, g: Array, s: Any, h: Any) -> Array:
    if x.ndim < 2:
        return (x - rate(s, h) * adam(g, s, h)) * (1 - h.lr * h.weight_decay)
    if (s["t"] - 1) % h.gap == 0:
        s["p"] = normal((min(x.shape), h.rank), 0, (s["t"] - 1) // h.gap + 1).numpy() / math.sqrt(h.rank)
    wide = x.shape[0] < x.shape[1]
    low = s["p"].T @ g if wide else g @ s["p"]
    u = adam(low, s, h)
    axis = None if h.kind == "tensor" else (0 if wide else 1)
    sizes = [np.linalg.norm(a, axis=axis, keepdims=h.kind != "tensor") for a in (u, low)]
    u = g * sizes[0] / (sizes[1] + 1e-8)
    if "length" in s:
        u = u / (max(np.linalg.norm(u) / (s["length"] + 1e-8), 1.01) / 1.01)
    s["length"] = np.linalg.norm(u)
    return (x - rate(s, h) * math.sqrt(h.scale) * u) * (1 - h.lr * h.weight_decay)


def inverse_fourth_root(a: Array, eps: float) -> Array:
    values, vectors = np.linalg.eigh(a)
    return np.asarray((vectors * (values + eps * max(values.max(), 1e-6)) ** -0.25) @ vectors.T)


def shampoo(x: Array, g: Array, s: Any, h: Any) -> Array:
    u = g
    if x.ndim > 1:
        a = g.reshape(len(g), -1)
        for name, gram in (("left", a @ a.T), ("right", a.T @ a)):
            s[name] = s.get(name, h.eps * np.eye(len(gram))) + gram
            if (s["t"] - 1) % h.k == 0:
                s[f"{name} root"] = inverse_fourth_root(s[name], h.eps)
        u = (s["left root"] @ a @ s["right root"]).reshape(g.shape)
        u = u * np.linalg.norm(g) / np.linalg.norm(u)
    s["m"] = h.betas[0] * s.get("m", 0.0) + u
    return x - h.lr * (h.betas[0] * s["m"] + u)
