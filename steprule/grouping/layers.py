"""Layer-wise falling rates: the layers of a model, and the overrides that follow from them."""

from __future__ import annotations

import itertools
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from numbers import Real
from typing import Any, TypeAlias

from torch import nn

from .globs import fold
from .overrides import Scale, scale
from .selectors import NamedParameter, Selectable, Selector, chosen, dimensions, embeddings, entries, selector

__all__ = ["layer_decay"]

CONTAINERS = (nn.ModuleList, nn.Sequential)
Classes: TypeAlias = "set[type[nn.Module]]"


def layer_decay(
    model: nn.Module,
    decay: float,
    order: Sequence[Selectable] | Mapping[str, Sequence[Selectable]] | None = None,
) -> dict[Selector, dict[str, Scale]]:
    r"""Overrides with a rate that falls from layer to layer towards the input: :math:`lr \cdot decay^{n - 1 - i}`.

    For fine-tuning (ELECTRA, https://arxiv.org/abs/2003.10555; BEiT, https://arxiv.org/abs/2106.08254). The
    layers are taken from the module tree in the order of its definition: first what stands before the blocks, and
    every embedding beside them; then each block in every ``nn.ModuleList`` and ``nn.Sequential``; last what
    stands after them. Blocks are of a class of which containers hold more than one, and have modules of their own;
    in a model that is made of plain layers alone, the layers with a matrix. A block is one layer, whatever is
    inside it; what stands between two blocks goes with the one before.

    Modules side by side that each hold blocks, such as a student and its teacher or the towers of two modalities, have
    each a depth of their own, the last layer of each the rate of the optimizer; modules of one class and of different
    sizes are the stages of one network. Containers side by side follow each other, but for those of the same sizes of
    which one is frozen and another is not, and linear layers in an ``nn.ModuleList`` that do not fit onto each other:
    the heads of several tasks, one layer. Where the tree does not tell which of them it is, a warning says so.

    Args:
        model: the module.
        decay: factor from a layer to the one before it, above 0.
        order: the layers by hand, the lowest first: one selector for each; a parameter that several match goes
            to the first. Together they cover the model. Or a mapping of such lists, by any name: each is a depth of its
            own.

    Returns:
        Overrides for ``groups`` and for the ``overrides`` of an optimizer, alone or merged with others; the last
        layer has the rate of the optimizer and needs none.

    Raises:
        ValueError: no layers were found; ``decay`` is not a positive number; ``order`` leaves parameters out or
            one of its selectors adds none.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> layer_decay(model, 0.5)
        {0.{weight,bias}: {'lr': scale(0.25)}, 2.{weight,bias}: {'lr': scale(0.5)}}
    """
    if not isinstance(decay, Real) or isinstance(decay, bool) or not 0 < decay < math.inf:
        raise ValueError(f"decay must be a positive number, got {decay!r}")
    known = entries(model)
    layers = found_layers(model, known) if order is None else ordered_layers(known, order)
    powers = range(len(layers) - 1, 0, -1)
    return {exactly(layer): {"lr": scale(decay**power)} for layer, power in zip(layers, powers, strict=False)}


def exactly(layer: Sequence[NamedParameter]) -> Selector:
    tensors = {entry.parameter for entry in layer}
    return Selector(" ".join(fold(entry.name for entry in layer)), lambda entry: entry.parameter in tensors)


def ordered_layers(
    known: Sequence[NamedParameter], order: Sequence[Selectable] | Mapping[str, Sequence[Selectable]]
) -> list[list[NamedParameter]]:
    left = {id(entry.parameter): entry for entry in known}
    depths = []
    for rules in order.values() if isinstance(order, Mapping) else [order]:
        layers = []
        for rule in map(selector, rules):
            layer = [entry for entry in chosen(rule, known) if left.pop(id(entry.parameter), None)]
            if not layer:
                raise ValueError(f"{rule} in order matches only parameters of the layers before it")
            layers.append(layer)
        depths.append(layers)
    if left:
        raise ValueError(f"order leaves out {' '.join(fold(entry.name for entry in left.values()))}")
    return side_by_side(depths)


def side_by_side(depths: Sequence[Sequence[Sequence[NamedParameter]]]) -> list[list[NamedParameter]]:
    """Several depths as one list of layers, the last of each in the last."""
    most = max(map(len, depths), default=0)
    padded = [[()] * (most - len(layers)) + list(layers) for layers in depths]
    return [list(chain.from_iterable(same)) for same in zip(*padded, strict=True)]


def found_layers(model: nn.Module, known: Sequence[NamedParameter]) -> list[list[NamedParameter]]:
    """The layers of a module of which the entries are ``known``, the lowest first."""
    names, whole = dict(model.named_children()), model
    towers = {name: child for name, child in names.items() if is_tower(child)}
    while len(towers) == 1 and not any(is_stack(c, block_classes(whole)) for c in whole.children()):
        (whole,) = towers.values()
        towers = {name: child for name, child in whole.named_children() if is_tower(child)}
    if len(towers) < 2:
        towers = twin_stacks(whole)
        if len({any(p.requires_grad for p in tower.parameters()) for tower in towers.values()}) < 2:
            if towers:
                warnings.warn(
                    f"{' and '.join(towers)} of {type(whole).__name__} are alike: they are taken to follow each other. "
                    "If they stand side by side, order= takes a mapping of lists of layers: several depths",
                    stacklevel=4,
                )
            return chained_layers(model, known)
    if are_stages(list(towers.values())):
        return chained_layers(model, known)
    if len(set(map(type, towers.values()))) > 1:
        warnings.warn(
            f"{type(whole).__name__} holds blocks in {', '.join(towers)}: each is taken to have a depth of its own. If "
            "one stands on another, order=[...] gives the layers, the lowest first; a mapping of such lists gives "
            "several depths",
            stacklevel=4,
        )
    left = {id(entry.parameter): entry for entry in known}
    depths = []
    for tower in towers.values():
        own = [entry for p in tower.parameters() if (entry := left.pop(id(p), None)) is not None]
        depths.append(found_layers(tower, own) if own else [])
    layers = side_by_side(depths)
    first = {id(p) for name, child in until(whole, towers) for p in child.parameters()}
    below = [entry for key, entry in left.items() if key in first]
    layers[-1].extend(entry for key, entry in left.items() if key not in first)
    return [below, *layers] if below else layers


def until(whole: nn.Module, towers: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """The children that stand before all towers."""
    return itertools.takewhile(lambda child: child[0] not in towers, whole.named_children())


def twin_stacks(whole: nn.Module) -> dict[str, nn.Module]:
    """Modules beside each other, of one class and of the same sizes, that hold blocks and are none."""
    classes = block_classes(whole)
    stacks = {name: child for name, child in whole.named_children() if has_stack(child, classes)}
    found = {name: c for name, c in stacks.items() if isinstance(c, CONTAINERS) or type(c) not in classes}
    kinds = {(type(child), tuple(p.shape for p in child.parameters())) for child in found.values()}
    return found if len(found) > 1 and len(kinds) == 1 else {}


def is_tower(module: nn.Module) -> bool:
    """Whether a module is a network by itself: no container, with blocks in a container somewhere in it."""
    return not isinstance(module, CONTAINERS) and has_stack(module, block_classes(module))


def are_stages(modules: Sequence[nn.Module]) -> bool:
    """Whether modules side by side follow each other: of one class and of different sizes."""
    sizes = {tuple(p.shape for p in module.parameters()) for module in modules}
    return len(set(map(type, modules))) == 1 and len(sizes) > 1


def chained_layers(model: nn.Module, known: Sequence[NamedParameter]) -> list[list[NamedParameter]]:
    left = {id(entry.parameter): entry for entry in known}
    stem: list[NamedParameter] = []
    head: list[NamedParameter] = []
    blocks: list[list[NamedParameter]] = []
    for is_block, params in units(model, block_classes(model)):
        unit = [left.pop(id(parameter)) for parameter in params if id(parameter) in left]
        if is_block:
            if head:
                blocks[-1].extend(head)
                head = []
            blocks.append(unit)
        else:
            for entry in unit:
                (head if blocks and not embeddings.test(entry) else stem).append(entry)
    layers = [layer for layer in (stem, *blocks, head) if layer]
    if len(layers) < 2:
        raise ValueError(
            f"no ModuleList or Sequential of blocks was found in {type(model).__name__}: "
            f"give the layers with order=[...], the lowest first"
        )
    return layers


def block_classes(model: nn.Module) -> Classes:
    containers = [module for module in model.modules() if isinstance(module, CONTAINERS)]
    children = [child for container in containers for child in container.children()]
    if blocks := repeated(child for child in children if is_composite(child)):
        return blocks
    flat = all(isinstance(child, CONTAINERS) or not is_composite(child) for child in model.children())
    return repeated(child for child in children if has_matrix(child)) if flat else set()


def repeated(modules: Iterable[nn.Module]) -> Classes:
    return {kind for kind, count in Counter(map(type, modules)).items() if count > 1}


def is_composite(module: nn.Module) -> bool:
    return any(any(True for _ in child.parameters()) for child in module.children())


def has_matrix(module: nn.Module) -> bool:
    return any(dimensions(name, parameter) > 1 for name, parameter in module.named_parameters())


def units(module: nn.Module, classes: Classes) -> Iterator[tuple[bool, list[nn.Parameter]]]:
    stack = is_stack(module, classes)
    yield False, list(module.parameters(recurse=False))
    if stack and are_heads(module):
        yield True, list(module.parameters())
        return
    for child in module.children():
        is_block = stack and type(child) in classes
        if (not is_block or isinstance(child, CONTAINERS)) and has_stack(child, classes):
            yield from units(child, classes)
        else:
            yield is_block, list(child.parameters())


def are_heads(module: nn.Module) -> bool:
    """Whether a list's layers stand side by side, for one does not take what another gives: heads of several tasks."""
    layers = list(module.children())
    linear = isinstance(module, nn.ModuleList) and all(isinstance(layer, nn.Linear) for layer in layers)
    ways: Any = pairwise(layers) if linear else ()
    return any(one.out_features != other.in_features for one, other in ways)


def is_stack(module: nn.Module, classes: Classes) -> bool:
    return isinstance(module, CONTAINERS) and any(type(child) in classes for child in module.children())


def has_stack(module: nn.Module, classes: Classes) -> bool:
    return any(is_stack(part, classes) for part in module.modules())
