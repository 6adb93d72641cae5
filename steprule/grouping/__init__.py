"""Parameters to groups: selectors, overrides, layers, and who belongs to which group."""
