"""Steps by the curvature along the way that was taken."""
