"""What steprule uses of torch that torch does not promise to keep: every such name stands here, and nowhere else.

A name that a version of torch lacks is replaced, or what needs it is refused by name:

========================================== =========================================================================
``torch.``                                 where it is missing
========================================== =========================================================================
``_C._increment_version``                  ``torch.autograd.graph.increment_version``, which costs a little more
``_C._autograd._profiler_enabled``         profiles do not name the steps
``_compile._disable_dynamo``               ``torch.compiler.disable``
``_C._len_torch_dispatch_stack``           every step looks whether somebody records it, as if somebody might
``_C._get_dispatch_mode``                  a step under ``FakeTensorMode`` is refused, as of a tensor without values
``_C._current_graph_task_id``              ``step_in_backward`` raises NotImplementedError
``autograd.Variable._execution_engine``    likewise
``autograd.graph._engine_run_backward``    a backward inside of a backward is not noticed by ``step_in_backward``
``_C._dynamo.guards.TensorGuards``         the same is asked in Python, in ten times the time
``_C._cuda_getCurrentRawStream``           ``torch.cuda.current_stream``, in ten times the time
``_foreach_norm``, ``_foreach_zero_``,     tensor by tensor
``_foreach_add_``
``_subclasses.fake_tensor``                there are no fake tensors, and none is met
``_C._functorch.is_functorch_wrapped...``  such a tensor as state is refused in torch's words
``optim.optimizer._global_...``            hooks of all optimizers (``register_optimizer_step_pre_hook``) do not run
``optim.optimizer._get_capturable_...``,   the devices that torch 2.13 lists
``utils._foreach_utils._get_fused_...``
``distributed.tensor._utils``              parameters that are sharded, and draw random numbers, are refused
========================================== =========================================================================

:data:`OF_OPTIMIZERS` are attributes of ``torch.optim.Optimizer`` that ours relies on: a test says when a version no
longer has one, and a step raises AttributeError, naming it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

__all__ = [
    "FAKE",
    "OF_OPTIMIZERS",
    "DataDependentOutputException",
    "FakeTensor",
    "after_all",
    "before_all",
    "capturable_devices",
    "dispatch_mode",
    "dispatch_modes",
    "engine_run",
    "foreach_add",
    "foreach_norm",
    "foreach_zero",
    "fused_devices",
    "global_offset",
    "graph_task",
    "increment_version",
    "is_functorch_wrapped_tensor",
    "not_compiled",
    "profiling",
    "queue_callback",
    "raw_stream",
    "tensor_guards",
    "unset_fake_temporarily",
]

OF_OPTIMIZERS = (
    "_optimizer_step_code",
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_patch_step_function",
    "_zero_grad_profile_name",
)


def find(path: str, otherwise: Any = None) -> Any:
    """What stands under a name of torch, or something else."""
    module, _, name = path.rpartition(":")
    try:
        found: Any = import_module(module) if module else torch
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return otherwise
    return found


class Missing(torch.Tensor):
    """The class of tensors that there are none of."""


class NotRaisedError(Exception):
    """An error that nobody raises."""


@contextmanager
def as_it_is() -> Iterator[None]:
    yield


def refusing(name: str, what: str) -> Callable[..., Any]:
    def refuse(*_: Any) -> Any:
        raise NotImplementedError(f"{what} needs {name}, which torch {torch.__version__} has not")

    return refuse


def one_by_one(function: Callable[..., Any]) -> Callable[..., list[Any]]:
    def each(tensors: Sequence[torch.Tensor], *args: Any) -> list[Any]:
        return [function(t, *(a[i] if isinstance(a, list) else a for a in args)) for i, t in enumerate(tensors)]

    return each


if TYPE_CHECKING:
    from torch._compile import _disable_dynamo as not_compiled
else:
    not_compiled = find("torch._compile:_disable_dynamo", torch.compiler.disable)

# the name of a hook's dictionary is bound once, and torch changes it in place
Hooks = MutableMapping[int, Callable[..., Any]]

increment_version: Callable[[Any], None] = find("_C._increment_version", torch.autograd.graph.increment_version)
profiling: Callable[[], bool] = find("_C._autograd._profiler_enabled", lambda: False)
dispatch_modes: Callable[[], int] = find("_C._len_torch_dispatch_stack", lambda: 1)
graph_task: Callable[[], int] = find(
    "_C._current_graph_task_id", refusing("torch._C._current_graph_task_id", "step_in_backward")
)
queue_callback: Callable[[Callable[[], None]], None] = find(
    "autograd.Variable._execution_engine.queue_callback",
    refusing("torch.autograd.Variable._execution_engine", "step_in_backward"),
)
engine_run: Any = getattr(find("torch.autograd.graph:_engine_run_backward"), "__code__", None)
tensor_guards: Any = find("_C._dynamo.guards.TensorGuards")
raw_stream: Callable[[int], int] = find(
    "_C._cuda_getCurrentRawStream", lambda index: torch.cuda.current_stream(index).cuda_stream
)
foreach_norm: Callable[..., Sequence[torch.Tensor]] = find("_foreach_norm", one_by_one(torch.linalg.vector_norm))
foreach_zero: Callable[..., Any] = find("_foreach_zero_", one_by_one(torch.Tensor.zero_))
foreach_add: Callable[..., Any] = find("_foreach_add_", one_by_one(torch.Tensor.add_))
FakeTensor: Any = find("torch._subclasses.fake_tensor:FakeTensor", Missing)
DataDependentOutputException: Any = find("torch._subclasses.fake_tensor:DataDependentOutputException", NotRaisedError)
is_functorch_wrapped_tensor: Callable[[torch.Tensor], bool] = find(
    "_C._functorch.is_functorch_wrapped_tensor", lambda _: False
)
unset_fake_temporarily: Any = find("torch._subclasses.fake_tensor:unset_fake_temporarily", as_it_is)
before_all: Hooks = find("torch.optim.optimizer:_global_optimizer_pre_hooks", {})
after_all: Hooks = find("torch.optim.optimizer:_global_optimizer_post_hooks", {})
capturable_devices: Callable[[], list[str]] = find(
    "torch.optim.optimizer:_get_capturable_supported_devices", lambda: ["cuda", "xpu", "hpu", "privateuseone", "xla"]
)
fused_devices: Callable[[], list[str]] = find(
    "torch.utils._foreach_utils:_get_fused_kernels_supported_devices",
    lambda: ["mps", "cuda", "xpu", "hpu", "cpu", "mtia"],
)

dispatch_mode: Callable[[Any], object] = find("_C._get_dispatch_mode", lambda _: None)
FAKE: Any = find("_C._TorchDispatchModeKey.FAKE")


def global_offset(shape: Any, mesh: Any, placements: Any) -> Sequence[int]:
    """Where in the whole tensor what a process holds of it begins."""
    name = "compute_local_shape_and_global_offset"
    local = find(
        f"torch.distributed.tensor._utils:{name}",
        refusing(f"torch.distributed.tensor._utils.{name}", "a sharded parameter that draws random numbers"),
    )
    offset: Sequence[int] = local(shape, mesh, placements)[1]
    return offset
