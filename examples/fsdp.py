"""A small transformer on Python's licence texts, sharded with fully_shard: Muon for its matrices, AdamW for the rest.

    torchrun --standalone --nproc-per-node=2 examples/fsdp.py --steps 40
    torchrun --standalone --nproc-per-node=4 examples/fsdp.py --steps 40    # goes on from the same file

On a CPU it runs as it stands; on GPUs each process takes the one of its local rank.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from small_transformer import Transformer, batches
from torch.distributed.fsdp import fully_shard

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
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)

    optimizer = steprule.Muon(model, lr=0.02, adamw=dict(lr=3e-3), clip_norm=1.0)
    done = 0
    if arguments.file.exists():
        done = steprule.load(arguments.file, optimizer, model)["done"]
    if rank == 0:
        print(f"{size} processes, {done} steps done")

    for step, (text, following) in enumerate(batches(done, arguments.steps, rank, size), done):
        optimizer.zero_grad()
        loss = model.loss(text, following)
        torch.autograd.backward(loss)
        optimizer.step()
        if step % 10 == 9 or step == done:
            mean = loss.detach().clone()
            dist.all_reduce(mean)
            if rank == 0:
                print(f"step {step + 1}: loss {mean.item() / size:.3f}, gradient norm {optimizer.grad_norm:.2f}")
    steprule.save(arguments.file, optimizer, model, done=done + arguments.steps)
    if rank == 0:
        print(optimizer.explain())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
