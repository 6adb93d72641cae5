"""Steps along the gradient, or along its running mean."""
