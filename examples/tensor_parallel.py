"""The same small transformer cut by tensor parallelism: every matrix over all processes, norms and embedding whole.

    torchrun --standalone --nproc-per-node=2 examples/tensor_parallel.py --steps 40

It reads and writes the file of examples/fsdp.py: what one way of sharding has saved, the other goes on with.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from small_transformer import Transformer, batches
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import steprule


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--file", type=Path, default=Path("fsdp.safetensors"))
    arguments = parser.parse_args()

    dist.init_process_group()
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = Transformer()
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (size,))
    for block in model.blocks:
        plan = {"rise": ColwiseParallel(), "fall": RowwiseParallel()}
        plan |= {name: ColwiseParallel() for name in ("query", "key", "value")} | {"out": RowwiseParallel()}
        parallelize_module(block, mesh, plan)

    optimizer = steprule.Muon(model, lr=0.02, adamw=dict(lr=3e-3), clip_norm=1.0)
    done = 0
    if arguments.file.exists():
        done = steprule.load(arguments.file, optimizer, model)["done"]
    for step, (text, following) in enumerate(batches(done, arguments.steps, 0, 1), done):
        optimizer.zero_grad()
        loss = model.loss(text, following)
        torch.autograd.backward(loss)
        optimizer.step()
        if rank == 0 and (step % 10 == 9 or step == done):
            print(f"step {step + 1}: loss {loss.item():.3f}, gradient norm {optimizer.grad_norm:.2f}")
    steprule.save(arguments.file, optimizer, model, done=done + arguments.steps)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
