"""A Program as one Triton kernel over tables on the device."""
