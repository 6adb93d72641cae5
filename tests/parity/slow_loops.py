"""Updates written from their papers, one parameter at a time in numpy: what no package has as the paper says it."""

from __future__ import annotations

from typing import Any

import numpy as np
from parity_case import Array


def means(s: Any, g: Array, beta1: float, beta2: float) -> tuple[Array, Array]:
    s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
    s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * g**2
    return s["m"] / (1 - beta1 ** s["t"]), s["v"] / (1 - beta2 ** s["t"])


def simplified_ademamix(x: Array, g: Array, s: Any, h: Any) -> Array:
    beta1, beta2 = h.betas
    done = min(s["t"] / h.warmup, 1.0)
    half_lives = [np.log(0.5) / np.log(beta) for beta in (0.9, beta1)]
    beta1 = 0.5 ** (1 / ((1 - done) * half_lives[0] + done * half_lives[1]))
    s["sum"] = beta1 * s.get("sum", 0.0) + g
    _, v = means(s, g, 0.0, beta2)
    return x - h.lr * ((s["sum"] + h.alpha * g) / (np.sqrt(v) + h.eps) + h.weight_decay * x)


def laprop(x: Array, g: Array, s: Any, h: Any) -> Array:
    beta1, beta2 = h.betas
    s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * g**2
    u = g / (np.sqrt(s["v"] / (1 - beta2 ** s["t"])) + h.eps)
    s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * u
    return x - h.lr * (s["m"] / (1 - beta1 ** s["t"]) + h.weight_decay * x)


def adopt(x: Array, g: Array, s: Any, h: Any) -> Array:
    beta1, beta2 = h.betas
    if not h.decoupled:
        g = g + h.weight_decay * x
    if s["t"] == 1:
        s["m"], s["v"] = np.zeros_like(x), g**2
        return x
    most = (s["t"] - 1) ** 0.25
    u = np.clip(g / np.maximum(np.sqrt(s["v"]), h.eps), -most, most)
    s["m"] = beta1 * s["m"] + (1 - beta1) * u
    s["v"] = beta2 * s["v"] + (1 - beta2) * g**2
    return x - h.lr * (s["m"] + (h.weight_decay * x if h.decoupled else 0))


def rmsprop_tf(x: Array, g: Array, s: Any, h: Any) -> Array:
    g = g + h.weight_decay * x
    s["v"] = h.alpha * s.get("v", 1.0) + (1 - h.alpha) * g**2
    s["mean"] = h.alpha * s.get("mean", 0.0) + (1 - h.alpha) * g
    u = g / np.sqrt(s["v"] - (s["mean"] ** 2 if h.centered else 0) + h.eps)
    s["b"] = h.momentum * s.get("b", 0.0) + (h.lr * u if h.rate_kept else u)
    return x - (s["b"] if h.rate_kept else h.lr * s["b"])


def adam_mini(x: Array, g: Array, s: Any, h: Any) -> Array:
    beta1, beta2 = h.betas
    s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
    blocks = 1 if g.ndim < 2 else h.heads or len(g)
    means = (g**2).reshape(blocks, -1).mean(1)
    s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * means
    v = np.repeat(s["v"] / (1 - beta2 ** s["t"]), g.size // blocks).reshape(g.shape)
    return x - h.lr * (s["m"] / (1 - beta1 ** s["t"]) / (np.sqrt(v) + h.eps) + h.weight_decay * x)


def sophia(x: Array, g: Array, s: Any, h: Any) -> Array:
    beta1, beta2 = h.betas
    s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
    if s["t"] % h.k == 1:
        s["h"] = beta2 * s.get("h", 0.0) + (1 - beta2) * h.bs * g**2
    ratio = np.minimum(np.abs(s["m"]) / np.maximum(h.rho * s["h"], h.eps), 1.0)
    return x - h.lr * (np.sign(s["m"]) * ratio + h.weight_decay * x)
