"""Memory that is not what it was, not there, not to be written, or shared: found before anything is touched."""

from __future__ import annotations

import ctypes
import mmap
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inside import launches
from kernel_cases import COMPILED, leaf, normal, optimizer_of
from torch import Tensor, nn
from torch._C._functorch import _add_batch_dim
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map

import steprule
from steprule.kernels.overlaps import fault, writable


def trained(steps: int = 1, backend: str = "auto", size: int = 4) -> tuple[steprule.AdamW, nn.Parameter]:
    """An optimizer that has taken steps over a square matrix."""
    p = nn.Parameter(normal(size, size, seed=1))
    optimizer = steprule.AdamW([("weight", p)], lr=0.1, backend=backend)
    for step in range(steps):
        p.grad = normal(size, size, seed=2 + step)
        optimizer.step()
    return optimizer, p


def emptied(tensor: Tensor) -> Tensor:
    """A tensor that has lost its memory."""
    found = tensor.clone()
    found.untyped_storage().resize_(0)
    return found


def transpose(slot: Tensor) -> None:
    slot.t_()


def transpose_by_data(slot: Tensor) -> None:
    slot.data = slot.data.t()


def negate(slot: Tensor) -> None:
    slot.data = torch.complex(torch.zeros_like(slot), -slot).conj().imag


def narrow_dtype(slot: Tensor) -> None:
    slot.data = slot.data.to(torch.bfloat16)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("change", [transpose, transpose_by_data, negate, narrow_dtype])
def test_a_slot_changed_in_place_counts_as_it_is_now(change: Callable[[Tensor], None], backend: str) -> None:
    (changed, p), (replaced, q) = (trained(2, backend) for _ in range(2))
    change(changed.state[p]["exp_avg"])
    replaced.state[q]["exp_avg"] = changed.state[p]["exp_avg"].clone().contiguous()

    for optimizer, param in ((changed, p), (replaced, q)):
        param.grad = normal(4, 4, seed=9)
        optimizer.step()

    assert torch.equal(p, q)
    assert torch.equal(changed.state[p]["exp_avg"], replaced.state[q]["exp_avg"])


@pytest.mark.parametrize("backend", COMPILED)
def test_a_count_changed_in_place_counts_as_it_is_now(backend: str) -> None:
    (changed, p), (replaced, q) = (trained(2, backend) for _ in range(2))
    step = changed.state[p]["step"]
    step.data = step.data.view(torch.int32)
    replaced.state[q]["step"] = step.clone()
    for optimizer, param in ((changed, p), (replaced, q)):
        param.grad = normal(4, 4, seed=9)
        optimizer.step()
        assert optimizer.state[param]["step"].dtype == torch.float32
    assert torch.equal(p, q)
    assert changed.state[p]["step"] == replaced.state[q]["step"]


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool], ids=str)
def test_state_of_whole_numbers_is_refused_by_name(dtype: torch.dtype, steps: int) -> None:
    optimizer, p = trained(steps)
    p.grad = normal(4, 4, seed=9)
    optimizer.state[p]["exp_avg"] = torch.zeros(4, 4, dtype=dtype)
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match=rf"state 'exp_avg' of parameter 'weight' is {dtype}"):
        optimizer.step()
    assert torch.equal(p, before)


def test_a_slot_viewed_as_whole_numbers_or_resized_is_refused_by_name() -> None:
    for change, found in (
        (lambda s: setattr(s, "data", s.data.view(torch.int32)), "torch.int32"),
        (lambda s: s.resize_(2), r"\(2,\)"),
    ):
        optimizer, p = trained()
        change(optimizer.state[p]["exp_avg"])
        with pytest.raises(RuntimeError, match=f"state 'exp_avg' of parameter 'weight' is {found}"):
            optimizer.step()


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize(
    ("which", "called"),
    [
        ("param", "the parameter 'weight'"),
        ("grad", "gradient of parameter 'weight'"),
        ("exp_avg", "state 'exp_avg' of"),
    ],
)
def test_memory_that_is_gone_is_refused_by_name(which: str, called: str, steps: int, backend: str) -> None:
    optimizer, p = trained(steps, backend)
    p.grad = normal(4, 4, seed=9)
    optimizer.state[p].setdefault("exp_avg", torch.zeros(4, 4))
    tensor = {"param": p, "grad": p.grad, "exp_avg": optimizer.state[p]["exp_avg"]}[which]
    tensor.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=rf"{called}.* needs 64 bytes of a storage that holds 0"):
        optimizer.step()
    assert optimizer.steps_taken == steps


def test_a_storage_that_is_too_small_is_refused() -> None:
    p = leaf(torch.ones(8), torch.ones(8))
    p.untyped_storage().resize_(31)
    with pytest.raises(RuntimeError, match="needs 32 bytes of a storage that holds 31"):
        steprule.SGD([p]).step()


def test_rows_codes_and_scales_that_are_gone_are_refused_by_name() -> None:
    p = nn.Parameter(torch.zeros(40, 40))
    optimizer = steprule.SGD([("weight", p)], lr=0.1)
    values = torch.ones(3, 40)
    for gone in (False, True):
        p.grad = torch.sparse_coo_tensor(
            torch.tensor([[0, 1, 2]]), values, (40, 40), is_coalesced=True, check_invariants=False
        )
        if not gone:
            optimizer.step()
    values.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="gradient of parameter 'weight' needs 480 bytes of a storage that holds 0"):
        optimizer.step()

    for slot in ("exp_avg", "exp_avg::scale"):
        q = leaf(normal(100, 100, seed=1), normal(100, 100, seed=2))
        coded = steprule.AdamW([("weight", q)], state_dtype="8bit")
        coded.step()
        coded.state[q][slot].untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match=f"state '{slot}' of parameter 'weight' needs .* of a storage that hol"):
            coded.step()


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_lbfgs_refuses_memory_that_is_gone_or_can_only_be_read(tmp_path: Path) -> None:
    p = leaf(torch.ones(16), torch.ones(16))
    p.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="the parameter 'weight' needs 64 bytes of a storage that holds 0"):
        steprule.LBFGS([("weight", p)]).step(lambda: torch.ones(()))
    np.ones(2000, np.float32).tofile(tmp_path / "numbers")
    q = nn.Parameter(torch.from_numpy(np.memmap(tmp_path / "numbers", np.float32, "r")))
    with pytest.raises(RuntimeError, match="the parameter '0' lies in memory that can only be read"):
        steprule.LBFGS([q]).step(lambda: torch.ones(()))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mprotect"), reason="memory is protected in another way here")
def test_memory_whose_end_can_only_be_read_is_refused() -> None:
    pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    p = nn.Parameter(torch.frombuffer(pages, dtype=torch.float32))
    p.grad = torch.ones_like(p)
    second = ctypes.c_void_p(p.data_ptr() + mmap.PAGESIZE)
    assert ctypes.CDLL(None).mprotect(second, ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ) == 0
    with pytest.raises(RuntimeError, match="parameter 0 of group 0 lies in memory that can only be read"):
        steprule.SGD([p]).step()


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_memory_that_can_only_be_read_is_refused_by_name(tmp_path: Path, backend: str) -> None:
    np.ones(2000, np.float32).tofile(tmp_path / "numbers")
    mapped = {mode: np.memmap(tmp_path / "numbers", np.float32, mode) for mode in ("r", "c", "r+")}
    tensors = {mode: torch.from_numpy(array) for mode, array in mapped.items()}
    assert [writable(t.data_ptr()) for t in tensors.values()] == [False, True, True]

    p = leaf(tensors["r"], torch.ones(2000))
    with pytest.raises(RuntimeError, match="parameter 0 of group 0 lies in memory that can only be read"):
        steprule.SGD([p], backend=backend).step()
    q = leaf(torch.zeros(2000), tensors["r"])  # a gradient is only read
    optimizer = steprule.SGD([q], lr=0.5, momentum=0.9, backend=backend)
    optimizer.step()
    assert q.unique().tolist() == [-0.5]
    optimizer.state[q]["momentum_buffer"] = tensors["r"]
    with pytest.raises(RuntimeError, match="state 'momentum_buffer' of parameter 0 of group 0 lies in memory that"):
        optimizer.step()
    for mode in ("c", "r+"):
        r = leaf(tensors[mode], torch.ones(2000))
        steprule.SGD([r], lr=0.5, backend=backend).step()
        assert r.unique().tolist() == [0.5]
    assert np.fromfile(tmp_path / "numbers", np.float32)[0] == 0.5


def test_what_torch_allocates_has_no_fault() -> None:
    base = torch.zeros(10, 10)
    for tensor in (base, base[2:, 3:], base[:, ::2], base[3, 4], base[:0], torch.zeros(()), base.to_sparse()):
        assert fault(tensor) is None
    assert fault(torch.zeros(3).share_memory_()) is None


def alike(make: Callable[[], list[Tensor]], **hyper: Any) -> None:
    """torch's SGD and ours do the same to tensors that overlap."""
    found = []
    for module in (torch.optim, steprule):
        params = make()
        optimizer = module.SGD(params, lr=0.25, momentum=0.5, **hyper)
        for _ in range(3):
            optimizer.step()
        found.append([p.detach().clone() for p in params])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [7, 300_000])
@pytest.mark.parametrize("clip", [False, True])
def test_parameters_that_share_memory_are_updated_one_after_the_other(size: int, clip: bool) -> None:
    def whole() -> list[Tensor]:
        a = leaf(normal(size, seed=1), normal(size, seed=2))
        return [a, leaf(a.data, normal(size, seed=3)), leaf(normal(size, seed=4), normal(size, seed=5))]

    def shifted() -> list[Tensor]:
        buffer = normal(size + 3, seed=1)
        return [leaf(buffer[:size], normal(size, seed=2)), leaf(buffer[3:], normal(size, seed=3))]

    alike(whole)
    alike(shifted)
    params = whole()
    optimizer = steprule.AdamW(params, clip_norm=0.5 if clip else None)
    optimizer.step()
    assert "overlaps that of another parameter" in optimizer.explain()
    assert optimizer.explain().count("llvm") == 1


@pytest.mark.parametrize("shift", [0, 1, 5])
def test_a_gradient_that_overlaps_its_parameter_is_read_before_that_is_written(shift: int) -> None:
    buffer = normal(300_000 + shift, seed=1)
    p = leaf(buffer[: len(buffer) - shift], buffer[shift:])
    expected = p.detach() - 0.25 * buffer[shift:]
    steprule.SGD([p], lr=0.25).step()
    assert torch.equal(p, expected)


def test_a_gradient_that_is_another_parameter_is_what_that_is_by_then() -> None:
    def made() -> list[Tensor]:
        a = leaf(normal(9, seed=1), normal(9, seed=2))
        return [a, leaf(normal(9, seed=3), a.data)]

    alike(made)


def test_neighbours_in_one_buffer_and_shared_gradients_stay_in_one_launch() -> None:
    buffer, grad = torch.zeros(20), torch.ones(10)
    params = [leaf(buffer[:10], grad), leaf(buffer[10:], grad)]
    optimizer = steprule.SGD(params)
    optimizer.step()
    assert [launch.backend for launch in launches(optimizer)] == ["llvm"]


@pytest.mark.parametrize("backend", COMPILED)
def test_a_parameter_that_overlaps_itself_is_refused_in_torchs_words(backend: str) -> None:
    p = leaf(torch.ones(1).expand(4), torch.ones(4))
    optimizer = steprule.AdamW([("weight", p)], backend=backend)
    with pytest.raises(
        RuntimeError, match="more than one element of the written-to tensor, parameter 'weight', refers"
    ):
        optimizer.step()
    assert not optimizer.state


@pytest.mark.parametrize("backend", COMPILED)
def test_a_parameter_whose_rows_overlap_is_refused_and_one_that_only_looks_so_is_served(backend: str) -> None:
    p = leaf(torch.zeros(20).as_strided((6, 6), (1, 1)), torch.ones(6, 6))
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor, parameter 'weight', refer"):
        steprule.SGD([("weight", p)], backend="eager" if backend == "llvm" else "auto").step()
    q = leaf(torch.zeros(20).as_strided((3, 2), (2, 3)), torch.ones(3, 2))  # places 0 3 2 5 4 7
    steprule.SGD([q], lr=0.5).step()
    assert q.unique().tolist() == [-0.5]


@pytest.mark.parametrize("backend", COMPILED)
def test_state_in_the_memory_of_the_parameter_or_of_other_state_is_refused(backend: str) -> None:
    for slot, other, of in (
        ("exp_avg", lambda p, state: p.data, "the parameter"),
        ("exp_avg", lambda p, state: state["exp_avg_sq"], "state 'exp_avg'"),
    ):
        optimizer, p = trained(1, backend)
        optimizer.state[p][slot] = other(p, optimizer.state[p])
        p.grad = normal(4, 4, seed=9)
        before = p.detach().clone()
        with pytest.raises(RuntimeError, match=f"of parameter 'weight' lies in the memory of {of}, so that each"):
            optimizer.step()
        assert torch.equal(p, before)


class Wrapper(Tensor):
    """A tensor whose memory is another's."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: Tensor) -> None:
        self.held = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        args, kwargs = tree_map(lambda x: x.held if isinstance(x, Wrapper) else x, (args, kwargs or {}))
        return func(*args, **kwargs)


def test_a_tensor_subclass_as_state_is_served_by_torch_operations() -> None:
    (ours, p), (theirs, q) = trained(2), trained(2)
    ours.state[p]["exp_avg"] = Wrapper(ours.state[p]["exp_avg"])
    for optimizer, param in ((ours, p), (theirs, q)):
        for step in range(2):
            param.grad = normal(4, 4, seed=9 + step)
            optimizer.step()
    assert torch.equal(p, q)
    assert "state 'exp_avg' is a Wrapper, whose memory is not plain" in ours.explain()


NO_STATE: dict[str, Callable[[Tensor], Tensor]] = {
    "has the layout torch.sparse_coo": lambda t: t.to_sparse(),
    "has the layout torch.sparse_csr": lambda t: t.to_sparse_csr(),
    "has the layout torch._mkldnn": lambda t: t.to_mkldnn(),
    "is a nested tensor": lambda t: torch.nested.nested_tensor([t]),
    "is a FakeTensor, which holds no numbers": lambda t: FakeTensorMode().from_tensor(t),
    "belongs to a transform of torch.func": lambda t: _add_batch_dim(t[None], 0, 1),
    "on meta": lambda t: t.to("meta"),
    "is torch.qint8": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "of a storage that holds 0": emptied,
}
DOORS: dict[str, Callable[[Any, Tensor, str, Callable[[Tensor], Tensor]], None]] = {
    "assigned": lambda o, p, slot, change: o.state[p].update({slot: change(o.state[p][slot])}),
    "by a hook before the step": lambda o, p, slot, change: hooked(o.register_step_pre_hook, o, p, slot, change),
    "by a hook after loading": lambda o, p, slot, change: (
        hooked(o.register_load_state_dict_post_hook, o, p, slot, change) or o.load_state_dict(o.state_dict())
    ),
    "set": lambda o, p, slot, change: o.__setstate__({"state": {p: o.state[p] | {slot: change(o.state[p][slot])}}}),
}


def hooked(register: Any, optimizer: Any, p: Tensor, slot: str, change: Callable[[Tensor], Tensor]) -> None:
    register(lambda *_: optimizer.state[p].update({slot: change(torch.ones(4, 4))}))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrong", NO_STATE)
@pytest.mark.parametrize("door", DOORS)
def test_what_can_be_no_state_is_refused_by_name_through_every_door(door: str, wrong: str) -> None:
    optimizer, p = trained()
    before = p.detach().clone()
    DOORS[door](optimizer, p, "exp_avg", NO_STATE[wrong])
    for _ in range(2):
        with pytest.raises(RuntimeError, match=rf"state 'exp_avg' of parameter .*weight'? .*{re.escape(wrong)}"):
            optimizer.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("change", [emptied, lambda t: Wrapper(t.clone())], ids=["gone", "subclass"])
def test_scales_that_are_no_plain_memory_are_refused_by_name(change: Callable[[Tensor], Tensor]) -> None:
    p = leaf(torch.ones(64, 128), torch.ones(64, 128))
    optimizer = steprule.AdamW([("weight", p)], state_dtype="8bit")
    optimizer.step()
    optimizer.state[p]["exp_avg::scale"] = change(optimizer.state[p]["exp_avg::scale"])
    with pytest.raises(RuntimeError, match=r"state 'exp_avg::scale' of parameter .*weight'? "):
        optimizer.step()


@pytest.mark.parametrize("name", ["SOAP", "Shampoo"])
def test_a_table_of_a_subclass_is_refused_by_name(name: str) -> None:
    p = leaf(torch.ones(6, 4), normal(6, 4, seed=1))
    optimizer = getattr(steprule, name)([("weight", p)])
    optimizer.step()
    slot = next(key for key, value in optimizer.state[p].items() if value.shape == (6, 6))
    optimizer.state[p][slot] = Wrapper(optimizer.state[p][slot].clone())
    with pytest.raises(RuntimeError, match=rf"state '{slot}' of parameter .*weight'? is a Wrapper"):
        optimizer.step()


@pytest.mark.parametrize("eight", [False, True])
@pytest.mark.parametrize("slot", ["exp_avg", "exp_avg::scale"])
def test_state_whose_memory_is_gone_is_shown_and_copied_by_nobody(slot: str, eight: bool) -> None:
    p = leaf(torch.ones(64, 128), torch.ones(64, 128))
    how: dict[str, Any] = {"state_dtype": "8bit"} if eight else {}
    optimizer = steprule.AdamW([("weight", p)], **how)
    optimizer.step()
    if slot not in optimizer.state[p]:
        return
    optimizer.state[p][slot] = emptied(optimizer.state[p][slot])
    saved = optimizer.state_dict()
    assert saved["state"][0][slot] is optimizer.state[p][slot]
    assert "weight" in optimizer.explain()
    assert "AdamW" in repr(optimizer)
    other = steprule.AdamW([("weight", p)], **how)
    with pytest.raises(ValueError, match=f"weight: {slot} was saved as .*, where .*is needed"):
        other.load_state_dict(saved)
    assert not other.state


def test_threads_that_share_an_optimizer_lose_no_step() -> None:
    for _ in range(10):
        params = [leaf(torch.zeros(50), torch.ones(50)) for _ in range(5)]
        optimizer = steprule.SGD(params, lr=1.0, momentum=0.0)
        go = threading.Barrier(4)

        def steps(go: threading.Barrier = go, optimizer: Any = optimizer) -> None:
            go.wait()
            for _ in range(25):
                optimizer.step()

        threads = [threading.Thread(target=steps) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert optimizer.steps_taken == 100
        assert all(p.unique().tolist() == [-100.0] for p in params)


def test_loading_and_explaining_wait_for_the_step_of_another_thread() -> None:
    params = [leaf(torch.zeros(50, 50), torch.ones(50, 50)) for _ in range(5)]
    optimizer = steprule.AdamW(params, lr=1.0)
    failed: list[BaseException] = []
    done = threading.Event()

    def until_done(work: Callable[[], object]) -> None:
        try:
            while not done.is_set():
                work()
        except BaseException as error:
            failed.append(error)
            done.set()

    def load() -> None:
        optimizer.load_state_dict(optimizer.state_dict())
        assert "llvm" in optimizer.explain()

    threads = [threading.Thread(target=until_done, args=(work,)) for work in (*[optimizer.step] * 3, load)]
    for thread in threads:
        thread.start()
    done.wait(1.0)
    done.set()
    for thread in threads:
        thread.join()
    assert not failed
    assert len({optimizer.state[p]["step"].item() for p in params}) == 1


def test_modules_whose_tensors_are_swapped_go_on() -> None:
    model = nn.Linear(3, 2)
    optimizer = steprule.AdamW(model)
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.to(torch.float64)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    before = model.weight.detach().clone()
    model(torch.ones(3, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert model.weight.dtype == torch.float64
    assert not torch.equal(model.weight, before)
    assert optimizer.param_groups[0]["params"][0] is model.weight


def test_make_fx_records_torch_operations_and_refuses_kernels() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    def trace_step(backend: str) -> Any:
        p = leaf(torch.ones(3), torch.ones(3))
        optimizer = optimizer_of(lambda p, g, s, h: p - h.lr * g, [p], backend)
        return make_fx(lambda x: (optimizer.step(), x + 1)[1])(torch.ones(2))

    with pytest.raises(RuntimeError, match="make_fx can't record the step over parameter 0 of group 0: llvm serves it"):
        trace_step("auto")
    assert "copy_" in trace_step("eager").code
