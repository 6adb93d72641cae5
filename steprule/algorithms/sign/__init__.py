"""Steps along the sign of the gradient, or of a running mean."""
