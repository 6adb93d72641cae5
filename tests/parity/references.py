"""Which reference stands beside which algorithm."""

from __future__ import annotations

from functools import partial

import slow_loops as slow
from parity_case import Case, loop, package

REFERENCES = {
    "adam-mini": "adam_mini",
    "adamp": "adamp",
    "came-pytorch": "came_pytorch",
    "dadaptation": "dadaptation",
    "madgrad": "madgrad",
    "prodigyopt": "prodigyopt",
    "pytorch_optimizer": "pytorch_optimizer",
    "schedulefree": "schedulefree",
}
"""Packages, as pip calls them, and their modules."""

kozistr = partial(Case, package="pytorch_optimizer")

ADAPTIVE = [
    kozistr(
        "AdaBelief",
        package("pytorch_optimizer.AdaBelief", weight_decay=0.1),
        dict(weight_decay=0.1),
    ),
    kozistr(
        "AdEMAMix",
        package("pytorch_optimizer.AdEMAMix", alpha=5.0, weight_decay=0.1, weight_decouple=True),
        dict(alpha=5.0, weight_decay=0.1),
    ),
    kozistr(
        "AdEMAMix",
        package("pytorch_optimizer.AdEMAMix", betas=(0.9, 0.99, 0.999), t_alpha_beta3=15.0),
        dict(alpha=5.0, betas=(0.9, 0.99, 0.999), alpha_warmup=15, beta3_warmup=15),
        what="warm-ups",
    ),
    Case(
        "SimplifiedAdEMAMix",
        loop(slow.simplified_ademamix, betas=(0.95, 0.9), alpha=3.0, eps=1e-8, weight_decay=0.1, warmup=12),
        dict(betas=(0.95, 0.9), alpha=3.0, weight_decay=0.1, beta1_warmup=12),
        remark="pytorch_optimizer corrects twice for the mean square's beginning, and makes the momentum a mean",
    ),
    kozistr(
        "StableAdamW",
        package("pytorch_optimizer.StableAdamW", weight_decay=0.1, betas=(0.9, 0.95)),
        dict(weight_decay=0.1, betas=(0.9, 0.95)),
    ),
    kozistr("Adan", package("pytorch_optimizer.Adan", weight_decay=0.1), dict(weight_decay=0.1)),
    Case(
        "ADOPT",
        loop(slow.adopt, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, decoupled=False),
        dict(weight_decay=0.1, betas=(0.8, 0.95)),
        remark="pytorch_optimizer clips by the step's number, one more than in the paper",
    ),
    Case(
        "ADOPT",
        loop(slow.adopt, betas=(0.9, 0.9999), eps=1e-6, weight_decay=0.1, decoupled=True),
        dict(weight_decay=0.1, decoupled_weight_decay=True),
        what="decoupled",
    ),
    Case(
        "LaProp",
        loop(slow.laprop, betas=(0.8, 0.95), eps=1e-15, weight_decay=0.1),
        dict(betas=(0.8, 0.95), weight_decay=0.1),
        remark="pytorch_optimizer keeps the rates of former steps in the momentum, as the paper's code does",
    ),
    kozistr(
        "QHAdam",
        package("pytorch_optimizer.QHAdam", nus=(0.7, 0.95), betas=(0.95, 0.98), weight_decay=0.1),
        dict(nus=(0.7, 0.95), betas=(0.95, 0.98), weight_decay=0.1),
    ),
    Case(
        "RMSpropTF",
        loop(slow.rmsprop_tf, momentum=0.9, weight_decay=0.1, eps=1e-3, alpha=0.9, centered=False, rate_kept=True),
        dict(momentum=0.9, weight_decay=0.1, eps=1e-3),
    ),
    Case(
        "RMSpropTF",
        loop(slow.rmsprop_tf, momentum=0.9, weight_decay=0, eps=1e-10, alpha=0.9, centered=True, rate_kept=False),
        dict(momentum=0.9, centered=True, lr_in_momentum=False),
        what="centered",
    ),
    kozistr("Yogi", package("pytorch_optimizer.Yogi", weight_decay=0.1), dict(weight_decay=0.1)),
    Case(
        "MADGRAD",
        package("madgrad.MADGRAD", weight_decay=0.1),
        dict(weight_decay=0.1),
        package="madgrad",
    ),
    Case(
        "MADGRAD",
        package("madgrad.MADGRAD", momentum=0.0),
        dict(momentum=0.0),
        package="madgrad",
        what="without momentum",
    ),
]

schedulefree = partial(Case, package="schedulefree", evaluated=True)

COMPOSED = [
    schedulefree(
        "ScheduleFreeSGD",
        package("schedulefree.SGDScheduleFree", weight_decay=0.1),
        dict(weight_decay=0.1),
    ),
    schedulefree(
        "ScheduleFreeAdamW",
        package("schedulefree.AdamWScheduleFree", weight_decay=0.1, betas=(0.8, 0.95), r=1.0),
        dict(weight_decay=0.1, betas=(0.8, 0.95), r=1.0),
    ),
    schedulefree(
        "ScheduleFreeRAdam", package("schedulefree.RAdamScheduleFree", weight_decay=0.1), dict(weight_decay=0.1)
    ),
    schedulefree(
        "ScheduleFreeRAdam",
        package("schedulefree.RAdamScheduleFree", betas=(0.9, 0.95), silent_sgd_phase=False),
        dict(betas=(0.9, 0.95), silent_sgd_phase=False),
        what="loud",
    ),
    kozistr(
        "MARS",
        package("pytorch_optimizer.MARS", optimize_1d=True, weight_decay=0.1, eps=1e-14),
        dict(weight_decay=0.1, eps=1e-14),
        remark="epsilon there counts before the mean square is corrected; here after, as in the paper's code",
    ),
    kozistr(
        "Ranger",
        package("pytorch_optimizer.Ranger", use_gc=False, degenerated_to_sgd=True, weight_decay=0.1, betas=(0.9, 0.9)),
        dict(weight_decay=0.1, betas=(0.9, 0.9)),
        remark="without the centralized gradients that modifiers=[Centralize()] adds",
    ),
]

adamp = partial(Case, package="adamp")

REDUCING = [
    kozistr(
        "AdaBound",
        package("pytorch_optimizer.AdaBound", gamma=0.1, weight_decay=0.1),
        dict(gamma=0.1, weight_decay=0.1),
    ),
    kozistr(
        "AdaGC",
        package("pytorch_optimizer.AdaGC", warmup_steps=6, foreach=False),
        dict(warmup_steps=6),
        together=True,
        lacking=False,
    ),
    kozistr("NovoGrad", package("pytorch_optimizer.NovoGrad", weight_decay=0.1), dict(weight_decay=0.1)),
    kozistr(
        "NovoGrad", package("pytorch_optimizer.NovoGrad", grad_averaging=True), dict(grad_averaging=True), what="means"
    ),
    kozistr("LARS", package("pytorch_optimizer.LARS", weight_decay=0.1), dict(weight_decay=0.1)),
    kozistr(
        "LARS",
        package("pytorch_optimizer.LARS", nesterov=True, dampening=0.2),
        dict(nesterov=True, dampening=0.2),
        what="nesterov",
    ),
    kozistr(
        "StableSPAM",
        package("pytorch_optimizer.StableSPAM", update_proj_gap=7, weight_decay=0.1),
        dict(update_proj_gap=7, weight_decay=0.1),
    ),
    adamp("AdamP", package("adamp.AdamP", weight_decay=0.1), dict(weight_decay=0.1)),
    adamp(
        "AdamP",
        package("adamp.AdamP", delta=2.0, weight_decay=0.1),
        dict(delta=2.0, weight_decay=0.1),
        what="projected",
    ),
    adamp(
        "AdamP",
        package("adamp.AdamP", delta=0.7, nesterov=True, wd_ratio=0.3),
        dict(delta=0.7, nesterov=True, wd_ratio=0.3),
        what="nesterov",
    ),
    kozistr(
        "SGDP",
        package("pytorch_optimizer.SGDP", momentum=0.9, dampening=0.1, weight_decay=0.1),
        dict(momentum=0.9, dampening=0.1, weight_decay=0.1),
        remark="adamp takes the part out of the momentum that it keeps, too; the paper does not",
    ),
    adamp(
        "SGDP",
        package("adamp.SGDP", lr=0.1, momentum=0.9, delta=2.0, nesterov=True),
        dict(momentum=0.9, delta=2.0, nesterov=True),
        what="projected",
    ),
    Case(
        "CAME", package("came_pytorch.CAME", lr=0.1, weight_decay=0.1), dict(weight_decay=0.1), package="came-pytorch"
    ),
    Case(
        "AdamMini",
        loop(slow.adam_mini, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, heads=0),
        dict(betas=(0.9, 0.95), weight_decay=0.1),
    ),
    Case(
        "AdamMini",
        loop(slow.adam_mini, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, heads=2),
        dict(betas=(0.9, 0.95), weight_decay=0.1, heads=2),
        what="heads",
    ),
]

SIGNS = [
    kozistr("Signum", package("pytorch_optimizer.SignSGD", weight_decay=0.1), dict(weight_decay=0.1)),
    kozistr("Signum", package("pytorch_optimizer.SignSGD", momentum=0.0), dict(momentum=0.0), what="without momentum"),
    kozistr("Tiger", package("pytorch_optimizer.Tiger"), {}),
]

dadaptation = partial(Case, package="dadaptation", together=True, rates=(1.0, 1.0))
prodigyopt = partial(Case, package="prodigyopt", together=True, rates=(1.0, 1.0))

PARAMETER_FREE = [
    prodigyopt("Prodigy", package("prodigyopt.Prodigy", weight_decay=0.1), dict(weight_decay=0.1)),
    prodigyopt(
        "Prodigy",
        package(
            "prodigyopt.Prodigy", d0=1e-3, growth_rate=1.5, d_coef=0.8, decouple=False, weight_decay=0.1, beta3=0.9
        ),
        dict(d0=1e-3, growth_rate=1.5, d_coef=0.8, decoupled_weight_decay=False, weight_decay=0.1, beta3=0.9),
        what="every other setting",
    ),
    prodigyopt(
        "Prodigy",
        package("prodigyopt.Prodigy", d0=1e-3, use_bias_correction=True, safeguard_warmup=True),
        dict(d0=1e-3, use_bias_correction=True, safeguard_warmup=True),
        what="corrected",
        lacking=False,
    ),
    dadaptation(
        "DAdaptAdam", package("dadaptation.DAdaptAdam", d0=1e-3, weight_decay=0.1), dict(d0=1e-3, weight_decay=0.1)
    ),
    dadaptation(
        "DAdaptAdam",
        package(
            "dadaptation.DAdaptAdam",
            d0=1e-3,
            growth_rate=1.2,
            decouple=True,
            weight_decay=0.1,
            use_bias_correction=True,
        ),
        dict(d0=1e-3, growth_rate=1.2, decoupled_weight_decay=True, weight_decay=0.1, use_bias_correction=True),
        what="corrected",
        lacking=False,
    ),
    dadaptation(
        "DAdaptLion", package("dadaptation.DAdaptLion", d0=1e-3, weight_decay=0.1), dict(d0=1e-3, weight_decay=0.1)
    ),
    dadaptation(
        "DAdaptSGD", package("dadaptation.DAdaptSGD", d0=1e-3, weight_decay=0.1), dict(d0=1e-3, weight_decay=0.1)
    ),
    dadaptation(
        "DAdaptSGD",
        package("dadaptation.DAdaptSGD", momentum=0.9, growth_rate=1.5, d0=1e-2),
        dict(momentum=0.9, growth_rate=1.5, d0=1e-2),
        what="momentum",
    ),
    Case(
        "Sophia",
        loop(slow.sophia, betas=(0.9, 0.95), rho=0.02, k=3, eps=1e-15, bs=10, weight_decay=0.1),
        dict(betas=(0.9, 0.95), rho=0.02, k=3, bs=10, weight_decay=0.1),
    ),
]

CASES = [*ADAPTIVE, *COMPOSED, *REDUCING, *SIGNS, *PARAMETER_FREE]
