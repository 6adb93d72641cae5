"""A rate for each coordinate, by the size of its gradients."""
