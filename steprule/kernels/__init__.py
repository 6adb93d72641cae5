"""What runs a Program: machine code on a CPU, Triton on a GPU, torch operations anywhere."""
