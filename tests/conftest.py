"""Triton kernels are tested on the GPU where there is one, and in Triton's interpreter where there is none."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is imported
