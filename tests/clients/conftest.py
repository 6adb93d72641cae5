"""What the clients need to be imported at all."""

import importlib.util

import torch

LIBRARY = None
if torch.version.cuda is None and importlib.util.find_spec("torchvision") is not None:
    # torchvision of the package index is built for CUDA: beside a torch without it, its operators can't be loaded, and
    # it fails to describe two of them; nothing here runs any
    LIBRARY = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
