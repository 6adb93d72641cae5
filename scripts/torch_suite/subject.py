"""Puts steprule's classes in the place of torch.optim's where it is imported; SUBJECT=torch leaves those."""

import os
from typing import Any

import torch

if os.environ.get("SUBJECT") != "torch":
    from torch.testing._internal import common_optimizers

    import steprule

    for info in common_optimizers.optim_db:
        theirs: Any = info.optim_cls
        name = theirs.__name__
        info.optim_cls = getattr(steprule, name)
        setattr(torch.optim, name, info.optim_cls)
        setattr(common_optimizers, name, info.optim_cls)
