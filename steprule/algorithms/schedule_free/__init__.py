"""Averages in place of momentum and of a schedule."""
