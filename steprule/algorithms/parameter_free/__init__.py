"""A rate that is found on the way."""
