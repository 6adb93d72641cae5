"""Steps of whole matrices."""
