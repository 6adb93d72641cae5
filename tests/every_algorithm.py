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
