"""One file for one algorithm: hyperparameters, docstring, rule."""
