"""The shapes of the parameters that are measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

__all__ = ["SHAPES", "SIZES", "Shape", "shapes_of", "total_elements"]

Shape = tuple[int, ...]


def with_biases(weights: Sequence[Shape]) -> list[Shape]:
    """Each weight, followed by a bias as long as its first dimension."""
    return [shape for weight in weights for shape in (weight, weight[:1])]


def resnet50() -> list[Shape]:
    """The weights of all convolutions, weight and bias of the norm behind each, and the classifier."""
    shapes: list[Shape] = []

    def convolution(inputs: int, outputs: int, kernel: int) -> None:
        shapes.extend([(outputs, inputs, kernel, kernel), (outputs,), (outputs,)])

    convolution(3, 64, 7)
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolution(inputs, width, 1)
            convolution(width, width, 3)
            convolution(width, 4 * width, 1)
            if block == 0:
                convolution(inputs, 4 * width, 1)
            inputs = 4 * width
    return shapes + with_biases([(1000, inputs)])


def gpt_block(width: int) -> list[Shape]:
    """The matrices of a block, out by in."""
    return [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]


def gpt(width: int, blocks: int, positions: int) -> list[Shape]:
    """The two embeddings, and each block with its biases and norms."""
    block = [*with_biases(gpt_block(width)), *4 * [(width,)]]
    return [(50257, width), (positions, width), *blocks * block]


SHAPES: Mapping[str, Sequence[Shape]] = {
    # for images of 3x32x32 and ten classes: 10 tensors, 62,006 parameters
    "lenet": with_biases([(6, 3, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)]),
    "lenet-matrices": [(120, 400), (84, 120), (10, 84)],
    # 161 tensors, 25.6 million parameters
    "resnet50": resnet50(),
    # the two embeddings and twelve blocks of GPT-2 small: 146 tensors, 124.4 million parameters
    "gpt2": gpt(768, 12, 1024),
    "gpt2-hidden": 12 * gpt_block(768),
    # the matrices of four narrow blocks, 3.1 million parameters: for what decomposes them
    "narrow": 4 * gpt_block(256),
    # as GPT-3 XL: 290 tensors, 1.32 billion parameters
    "gpt-1.3b": gpt(2048, 24, 2048),
    "embedding": [(50257, 768)],
    "small": 10_000 * [(100,)],
    # where a step costs the host more than the memory: one tensor; a number names so many, see shapes_of
    "one": [(100,)],
    # a head over a vocabulary, and a matrix of one row
    "wide": [(768, 50257)],
    "row": [(1, 10_000_000)],
}


def shapes_of(name: str) -> Sequence[Shape]:
    """The shapes of a name; a number stands for so many tensors of 100.

    Raises:
        KeyError: there are none.
    """
    if name.isdecimal() and int(name):
        return int(name) * [(100,)]
    return SHAPES[name]


SIZES: Mapping[str, int] = {f"{n}M": n * 1_000_000 for n in (1, 3, 10, 30, 100, 200)}
"""Numbers of parameters, for the time per parameter."""


def total_elements(shapes: Sequence[Shape]) -> int:
    """How many numbers tensors of these shapes hold.

    >>> total_elements(SHAPES["resnet50"])
    25557032
    """
    return sum(map(math.prod, shapes))
