"""Hyperparameters that are found by trying."""
