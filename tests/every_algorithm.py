"""The names of all algorithms, for the tests that no algorithm may be left out of."""

import steprule

CLASSES = {name: found for name in steprule.__all__ if isinstance(found := getattr(steprule, name), type)}

ALGORITHMS = [name for name, found in CLASSES.items() if issubclass(found, steprule.Optimizer) and name != "Optimizer"]

RULES = [name for name in ALGORITHMS if CLASSES[name].update is not steprule.Optimizer.update]
"""Those that an update rule describes."""

MATRIX = {name for name in RULES if CLASSES[name].__module__.startswith("steprule.algorithms.matrix.")}
"""Those that hand whole matrices to functions of torch."""

ONLY_MATRICES = {"AdaMuon", "Dion", "Muon", "NorMuon"}
"""Those that take nothing else."""

TIMED = {"Apollo", "Dion", "GaLore", "Kron", "SOAP", "Shampoo"}
"""Those whose functions of matrices depend on the number of the step, which the host has to know."""

REDUCING = {
    "AdaGC",
    "AdamMini",
    "AdamP",
    "Adafactor",
    "CAME",
    "DAdaptAdam",
    "DAdaptLion",
    "DAdaptSGD",
    "LARS",
    "Lamb",
    "MARS",
    "NovoGrad",
    "Prodigy",
    "SGDP",
    "StableAdamW",
    "StableSPAM",
} & set(RULES)
"""Those that add up over a parameter, in an order that is each backend's own."""

ROWS = {"Adafactor", "AdamMini", "AdamP", "CAME", "SGDP"} & set(RULES)
"""Those that add up over rows, columns or channels: no sparse gradients, no complex parameters."""

BY_SHAPE = {"Adafactor", "AdamMini", "AdamP", "CAME", "LARS", "SGDP"} & set(RULES) | MATRIX - ONLY_MATRICES
"""Those that have other rules for vectors."""

PARAMETER_FREE = {name for name in RULES if CLASSES[name].__module__.startswith("steprule.algorithms.parameter_free.")}
"""Those that find their rate, one number of the whole optimizer."""

OVER_ALL = PARAMETER_FREE | {"AdaGC"}
"""Those that add up over all parameters: what comes before has to be the same for every group and every shape."""

MOVING = {name: {"d0": 0.1} for name in PARAMETER_FREE} | {"ScheduleFreeRAdam": {"silent_sgd_phase": False}}
"""Options with which they move far enough to be seen in their first steps."""
