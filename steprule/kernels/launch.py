"""A launch: the parameters that one kernel updates together, and what it has to know about them at each step."""

from __future__ import annotations

import math
import operator
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import nullcontext
from itertools import chain, repeat, zip_longest
from typing import Any

import torch

from steprule.portability.torch_private import FakeTensor
from steprule.rule.master import MASTER
from steprule.rule.program import FIRST_SLOT, OF_ITS_OWN, Matrix, Program, Store
from steprule.rule.slot import Slot

from .coding import CODES, scale_name
from .entry import NO_GRAD, Entry, Group, State
from .layout import like, materialized
from .matrices import Matrices
from .overlaps import fault
from .row_tables import Lines
from .shared_numbers import SharedNumbers
from .slots import array_slots, computed_in, first_number, kept_in, lacks, scalar_dtype, slot_tensor
from .tensor_guards import still

__all__ = ["NO_MODE", "Launch"]

NO_MODE = nullcontext()
"""What real tensors have in the place of a FakeTensorMode."""


class Launch:
    """The tensors of one launch and their numbers; a subclass for each kernel says how it runs.

    Making one allocates the state that is missing, and changes nothing yet. :meth:`refresh` looks every tensor up
    again, as each step must; when it returns False something has changed that a new launch has to be made for.

    Args:
        program: what to run.
        entries: the parameters, all of one kind as :func:`steprule.kernels.choose.launches` says.
        groups: the parameter groups that ``Entry.group`` counts.
        reason: why this kernel serves them, for a person to read.
    """

    backend = ""
    asynchronous = False
    """Whether a step can be captured in a CUDA graph, and takes a found-infinite flag without waiting for it."""
    found_inf: torch.Tensor | None = None
    """On the device: not zero where the step is to leave everything as it is."""
    patient = False
    """Whether some of its parameters may have no gradient in a step."""
    differentiable = False
    """Whether autograd is to follow the step."""
    valueless = False
    """Whether its tensors have sizes alone, so that there is nothing to compute."""

    def __init__(self, program: Program, entries: Sequence[Entry], groups: Sequence[Group], reason: str) -> None:
        self.program = program
        self.entries = entries
        self.reason = reason
        self.params = [e.param for e in entries]
        self.owners = [e.owner for e in entries]
        self.shares = [e.part for e in entries if e.part is not None]
        self.states = [e.state for e in entries]
        given = next((e.grad for e in entries if e.grad is not NO_GRAD), NO_GRAD)
        self.sparse, self.grad_dtype = given.layout == torch.sparse_coo, given.dtype
        counted = [*(["step"] if program.uses_step else []), *(s.name for s in program.scalar_slots)]
        own = (*program.slots, *program.line_slots, *program.tables, *program.reduced_slots)
        used = [s.name for s in own] + counted
        self.new = [lacks(e.state, used) if e.is_new is None else e.is_new for e in entries]
        """Whether the first step is an entry's first update."""
        self.done = 0
        """How many steps this has done that no ``step`` counts, and that the entries don't know of yet."""
        self.missed: Any = None
        """Of how many of these each entry had no part."""
        self.fresh: Any = None
        """Which entries have had no update, where not all of them were updated in each step; ``rows`` are not kept up
        then."""
        self.slot_names: Sequence[str] = [s.name for s in program.slots]
        for e in entries:
            if e.slots is None:
                self.adopt_arrays(e, groups[e.group])
        columns = [list(column) for column in zip(*(e.slots for e in entries), strict=True)]
        self.slots, self.scales = columns[: len(program.slots)], columns[len(program.slots) :]
        self.coded = [
            k for k, slot in enumerate(program.slots) if slot.beside is None and self.slots[k][0].dtype in CODES
        ]
        """The slots that are held in codes; ``scales`` has theirs, in this order."""
        self.slot_names = [*self.slot_names, *(scale_name(program.slots[k].name) for k in self.coded)]
        self.adopt_lines(groups)
        self.small: dict[Any, Any] = {}
        """What was computed between the passes of a step under way."""
        self.counted = counted
        self.count_in(self.adopt_counters(groups))
        self.alike: Sequence[int] | None = None
        self.firsts = [e.group for e in entries]
        """For each entry, the first of the groups that are known to have the same numbers as its own."""
        self.rows = self.classify(self.new)
        self.updated = [i for i, u in enumerate(program.updates) if u is not None]
        written = FIRST_SLOT + len(program.slots)
        self.changes = [any(operand < written for operand, _ in phase.stores) for phase in program.phases]
        """Whether each pass writes to parameters or slots; others write what matrix functions are given alone."""
        self.inputs: dict[str, Any] = {}
        self.grads = self.given = [e.grad for e in entries]
        self.matrix_tables = self.adopt_tables(groups)
        names, kind = [e.name for e in entries], computed_in(self.params[0].dtype)
        self.matrices = Matrices(program, self.params, names, self.matrix_tables, kind)
        self.remember()

    # -- state ---------------------------------------------------------------------------------------------------

    def adopt_arrays(self, entry: Entry, group: Group) -> None:
        """A parameter's array slots, which its entry keeps from plan to plan."""
        with self.mode:
            entry.adopted(*array_slots(self.program.slots, entry, group))

    @property
    def master_operand(self) -> int | None:
        """The operand that stands beside the parameter, if one does."""
        found = (k for k, slot in enumerate(self.program.slots, FIRST_SLOT) if slot.beside is not None)
        return next(found, None)

    @property
    def whole_operand(self) -> int | None:
        """That operand if it holds whole numbers."""
        operand = self.master_operand
        floats = operand is None or self.slots[operand - FIRST_SLOT][0].is_floating_point()
        return None if floats else operand

    def adopt_tables(self, groups: Sequence[Group]) -> list[list[torch.Tensor]]:
        """The slots for matrix functions."""
        return [[slot_tensor(slot, e, groups[e.group]) for e in self.entries] for slot in self.program.tables]

    def adopt_lines(self, groups: Sequence[Group]) -> None:
        """The slots of rows and columns as tables over all tensors, whose parts become the states' entries."""
        self.line_views: list[list[torch.Tensor]] = []
        if self.program.by_lines:
            slots, dtype = self.program.line_slots, computed_in(self.params[0].dtype)
            dtypes = [kept_in(slot, self.entries[0]) for slot in slots]
            self.lines = Lines(self.program, self.params, dtypes, dtype)
            self.line_views = self.lines.views
        for slot, views in zip(self.program.line_slots, self.line_views, strict=True):
            for entry, view in zip(self.entries, views, strict=True):
                view.copy_(slot_tensor(slot, entry, groups[entry.group]))

    def adopt_counters(self, groups: Sequence[Group]) -> torch.Tensor:
        """``step`` and the scalar slots of all tensors as one table, whose elements become the states' entries."""
        declared = {s.name: s for s in self.program.scalar_slots}
        slots = [declared.get(name, Slot("scalar", name=name)) for name in self.counted]
        table = [[self.number(first_number(slot, entry, groups)) for entry in self.entries] for slot in slots]
        if self.program.uses_step:
            table[0] = [step + entry.uncounted for step, entry in zip(table[0], self.entries, strict=True)]
        shape = len(self.counted), len(self.entries)
        return torch.tensor(table, dtype=scalar_dtype(), device="cpu").reshape(shape)

    def count_in(self, table: torch.Tensor) -> None:
        """Let a table be that of step counts and scalar slots."""
        self.counters, self.numbers = table, table.numpy()
        self.counter_views = [list(views) for views in table]

    def adopt_reduced(self, table: torch.Tensor, groups: Sequence[Group]) -> None:
        """Let the last rows of the reduced table be the slots that hold reductions, as they stand in the states."""
        self.kept_rows = table[len(table) - len(self.program.reduced_slots) :]
        self.kept_views = [list(row) for row in self.kept_rows]
        for slot, row in zip(self.program.reduced_slots, self.kept_rows, strict=True):
            values = [
                torch.as_tensor(first_number(slot, entry, groups), dtype=row.dtype, device=row.device)
                for entry in self.entries
            ]
            row.copy_(torch.stack([v.detach().reshape(()) for v in values]))

    def own_numbers(self, name: str) -> list[float]:
        """What each parameter has of its own, whatever others there are."""
        if name == "key":
            return [float(zlib.crc32(entry.name.encode())) for entry in self.entries]
        return [float(entry.origin) for entry in self.entries]

    @property
    def mode(self) -> Any:
        """The FakeTensorMode that the tensors are of; for others, something that does nothing."""
        return getattr(self.params[0], "fake_mode", NO_MODE)

    def number(self, value: Any) -> float:
        """A step count or scalar slot of a state; 0 for one that nobody knows, of a fake tensor."""
        if isinstance(value, FakeTensor) and isinstance(self.params[0], FakeTensor):
            return 0.0
        return float(value.detach() if isinstance(value, torch.Tensor) else value)

    def install(self, state: MutableMapping[torch.Tensor, State]) -> None:
        """Let the optimizer's state be what this launch works on; done when its first step has succeeded."""
        others = [s.name for s in (*self.program.reduced_slots, *self.program.line_slots, *self.program.tables)]
        names = [*self.slot_names, *self.counted, *others]
        columns = [
            *self.slots,
            *self.scales,
            *self.counter_views,
            *self.kept_views,
            *self.line_views,
            *self.matrix_tables,
        ]
        if self.shares:
            columns = self.joined(columns)
        for name, tensors in zip(names, columns, strict=True):
            for own, tensor in zip(self.states, tensors, strict=True):
                own[name] = tensor
        for slot in self.program.slots:
            if scale_name(slot.name) not in names:  # what was held in codes before is held in full
                for own in self.states:
                    own.pop(scale_name(slot.name), None)
        if self.program.master is None and MASTER not in names:
            for own in self.states:
                own.pop(MASTER, None)  # it no longer belongs to the weights
        if names:
            state.update(zip(self.owners, self.states, strict=True))
        for entry in self.entries:
            entry.grad = NO_GRAD  # a launch outlives its step, and must not keep gradients alive
            entry.is_new = None
            if self.program.uses_step:
                entry.uncounted = 0
        self.kept = list(chain.from_iterable(zip(*columns, strict=True)))
        self.kept_of = operator.itemgetter(*names) if names else dict
        self.installed = True
        counting: list[torch.Tensor] = list(chain.from_iterable((*self.counter_views, *self.kept_views)))
        self.hold(counting, list(map(torch.Tensor.data_ptr, counting)))
        self.counting = counting
        self.counts: Callable[..., bool] | None = still(counting) if counting else None
        """Whether what counts, as it stands in the states, still looks so."""

    def joined(self, columns: Sequence[Sequence[torch.Tensor]]) -> list[list[torch.Tensor]]:
        """What stands in the states of parameters that several processes hold: tensors spread as they are, where a
        slot is not one number."""
        slots = self.program.slots
        tail = len(columns) - len(self.line_views)
        own: list[list[torch.Tensor]] = [list(column) for column in columns]
        for k, slot in (*enumerate(slots), *enumerate(self.program.line_slots, tail)):
            known = [state.get(slot.name) for state in self.states]
            own[k] = [s.joined(t, slot, old) for s, t, old in zip(self.shares, columns[k], known, strict=True)]
        for i, entry in enumerate(self.entries):
            entry.kept = [own[k][i] for k in range(len(slots))]
        return own

    def classify(self, new: Sequence[bool], numbers: Any = None) -> list[SharedNumbers]:
        """Which entries share their numbers, by the table of counters or what takes its place."""
        shapes = [e.shape for e in self.entries] if self.program.uses_size else repeat(())
        columns: Any = (self.numbers if numbers is None else numbers).tolist()
        steps, *slots = columns if self.program.uses_step else [repeat(0.0), *columns]
        return self.rows_of(zip(self.firsts, steps, new, shapes, *slots, strict=False))

    def share_numbers(self, alike: Sequence[int]) -> None:
        """Let groups that have the same numbers share rows.

        Args:
            alike: for each group, the first of those that have its numbers.
        """
        self.alike = alike
        firsts = [alike[e.group] for e in self.entries]
        if firsts == self.firsts or self.asynchronous:  # whose tables on the device have a line for each row
            return
        self.firsts = firsts
        if self.fresh is not None:
            return
        known: list[tuple[Any, ...]] = [()] * len(self.entries)
        for row in self.rows:
            for i in row.members:
                known[i] = (firsts[i], row.step, row.is_new, row.shape, *row.slots)
        self.rows = self.rows_of(known)
        self.sort_rows()

    def rows_of(self, keys: Iterable[tuple[Any, ...]]) -> list[SharedNumbers]:
        """Tensors that share their numbers, each told by its group, step, newness, shape and slots."""
        members: dict[tuple[tuple[Any, ...], tuple[float, ...]], list[int]] = {}
        for i, key in enumerate(keys):
            signs = tuple([math.copysign(1.0, value) for value in key[4:]])  # 0.0 is equal to -0.0
            members.setdefault((key, signs), []).append(i)
        dtype = self.params[0].dtype
        return [
            SharedNumbers(key[0], own, key[1], key[2], list(key[4:]), key[3], dtype)
            for (key, _), own in members.items()
        ]

    # -- every step ----------------------------------------------------------------------------------------------

    def remember(self) -> None:
        """Note how everything looked when the launch was made, for :meth:`refresh` to compare."""
        self.expected = self.numbers.tobytes()
        self.installed = False
        self.param_pointers = list(map(torch.Tensor.data_ptr, self.params))
        self.slot_pointers = [list(map(torch.Tensor.data_ptr, slot)) for slot in self.slots]
        self.held = [
            *self.params,
            *chain.from_iterable((*self.slots, *self.scales, *self.line_views, *self.matrix_tables)),
        ]
        self.held_pointers = list(map(torch.Tensor.data_ptr, self.held))
        self.arrays = len(self.held)
        """How many of those are what passes work on; what counts comes behind, once it stands in the states."""
        self.every_slot = list(chain.from_iterable((*self.slots, *self.scales)))
        self.implicit = any([e.implicit for e in self.entries])  # noqa: C419 (a list is faster)
        self.looks = [e.still for e in self.entries]
        self.unchanged: Callable[..., bool] | None = None
        self.counting = []
        self.counts = None

    def hold(self, counting: Sequence[torch.Tensor], pointers: Sequence[int]) -> None:
        """Let what counts have to stay where it lies too; of arrays it is where they lay when the launch was made."""
        self.held[self.arrays :], self.held_pointers[self.arrays :] = counting, pointers

    def as_planned(self, *tensors: Any) -> bool:
        """Whether parameters, gradients and slots look as they did; if so they are asked together from now on, not one
        by one, which is faster and not worth its preparation for a launch of one step."""
        count = len(self.looks)
        columns = [tensors[k : k + count] for k in range(0, len(tensors), count)]
        if not all(same(*own) for same, *own in zip(self.looks, *columns, strict=True)):
            return False
        self.unchanged = still(tensors)
        return True

    def refresh(self) -> bool:
        """Look up parameters, gradients and state again; False if anything but gradients' addresses has changed."""
        if self.shares:
            params, grads, held = self.looked_up()
        else:  # without another call
            params, grads, held = self.params, [p.grad for p in self.params], self.held
        if not self.stands(held, *params, *grads, *self.every_slot):
            return False
        self.grads = grads  # type: ignore[assignment]
        if self.fresh is not None:  # all are updated again
            self.rows, self.fresh = self.classify(self.fresh.tolist()), None
            self.sort_rows()
        return True

    def stands(self, held: Sequence[torch.Tensor], *looks: Any) -> bool:
        """Whether nobody else has changed anything: how tensors look, what the states hold, where it lies, and counts.

        Args:
            held: all that must lie where it did.
            *looks: what must look as it did.
        """
        return (
            (self.unchanged or self.as_planned)(*looks)
            and self.states_are_kept()
            and list(map(torch.Tensor.data_ptr, held)) == self.held_pointers
            and bool(self.numbers.tobytes() == self.expected)
        )

    def goes_on(self, before: Launch) -> bool:
        """Go on with the very counters of the launch that ran before, over the same parameters and arrays; False if it
        has others."""
        if self.fresh is not None or before.fresh is not None:
            return False
        if not (self.numbers is before.numbers or self.shares_counters(before)):
            return False
        self.expected = before.expected
        rows = list(zip(self.rows, before.rows, strict=False))
        if len(self.rows) != len(before.rows) or any(own.members != other.members for own, other in rows):
            return False
        if not self.refresh():
            return False
        for own, other in rows:
            own.step, own.is_new, own.slots = other.step, other.is_new, list(other.slots)
        return True

    def shares_counters(self, before: Launch) -> bool:
        """Take over the counters of another launch, if what the two keep of each parameter is the same."""

        def arrays(launch: Launch) -> Iterator[torch.Tensor]:
            return chain.from_iterable((*launch.slots, *launch.scales, *launch.matrix_tables))

        same = (
            type(self) is type(before)
            and not self.asynchronous  # whose numbers may live on the device
            and before.installed
            and not (self.shares or self.sparse or self.program.line_slots or self.program.reduced_slots)
            and not (before.program.line_slots or before.program.reduced_slots)
            and (self.slot_names, self.counted) == (before.slot_names, before.counted)
            and len(self.entries) == len(before.entries)
            and all(map(operator.is_, self.entries, before.entries))
            and all(map(operator.is_, self.states, before.states))
            and all(one is other for one, other in zip_longest(arrays(self), arrays(before)))
        )
        if same:
            self.counters, self.numbers, self.counter_views = before.counters, before.numbers, before.counter_views
            self.kept, self.kept_of, self.installed = before.kept, before.kept_of, True
            self.hold(before.held[before.arrays :], before.held_pointers[before.arrays :])
            self.counting, self.counts = before.counting, before.counts
        return same

    def take_up(self, groups: Sequence[Group]) -> bool:
        """Go on with the state as other launches have left it, which had the same arrays; False if they are others, or
        if this kernel can't."""
        program = self.program
        params, grads, held = self.looked_up()
        grads = list(self.filled(grads))
        if (
            self.shares
            or self.sparse
            or program.line_slots
            or not (self.unchanged or self.as_planned)(*params, *grads, *self.every_slot)
            or list(map(torch.Tensor.data_ptr, held)) != self.held_pointers
        ):
            return False
        if not self.arrays_are_kept():
            return False
        used = [s.name for s in (*program.slots, *program.tables, *program.reduced_slots)] + self.counted
        new = [lacks(own, used) for own in self.states]
        self.count_in(self.counters.clone())  # others may count in these
        try:
            for line, name in zip(self.numbers, self.counted, strict=True):
                line[:] = torch.stack([own[name] for own in self.states]).detach().numpy()
            if program.uses_step:
                self.numbers[0] += [entry.uncounted for entry in self.entries]
        except (KeyError, TypeError, ValueError, RuntimeError):
            return False  # a new launch says what is wrong with them
        self.expected, self.installed = self.numbers.tobytes(), False
        self.rows, self.fresh = self.classify(new), None
        self.grads = grads  # type: ignore[assignment]
        return True

    def filled(self, grads: Sequence[Any]) -> Sequence[Any]:
        """Gradients, and where there are none that may be left out, what looks as they did."""
        return grads

    def looked_up(self) -> tuple[list[torch.Tensor], list[torch.Tensor | None], list[torch.Tensor]]:
        """Parameters and gradients as they are now, and all tensors that must lie where they did."""
        if not self.shares:
            return self.params, [p.grad for p in self.params], self.held
        params = [part.param for part in self.shares]
        return params, [part.grad for part in self.shares], params + self.held[len(params) :]

    def arrays_are_kept(self) -> bool:
        """Whether the states hold the very arrays that this launch works on, whoever counts in them."""
        names = *self.slot_names, *(table.name for table in self.program.tables)
        arrays = zip(names, (*self.slots, *self.scales, *self.matrix_tables), strict=True)
        return all(
            own.get(name) is tensor
            for name, tensors in arrays
            for own, tensor in zip(self.states, tensors, strict=True)
        )

    def states_are_kept(self) -> bool:
        """Whether the states hold the very tensors that this launch works on, and those that count look as they did."""
        if not self.kept:
            return True
        if self.counts is not None and not self.counts(*self.counting):
            return False
        try:
            found: Any = map(self.kept_of, self.states)
            one_each = len(self.kept) == len(self.states)
            return all(map(operator.is_, found if one_each else chain.from_iterable(found), self.kept))
        except KeyError:
            return False

    def let_go(self) -> None:
        """Hold no gradients, which may be freed before the next step."""
        self.grads = self.given = []
        for share in self.shares:
            share.grad = None

    def strange_grads(self) -> list[int]:
        """The gradients that lie in memory in another way than their parameters: they are copied at each step."""
        return [i for i, e in enumerate(self.entries) if e.strange]

    def grad_pointers(self, strange: Sequence[int]) -> list[int]:
        """Where the gradients lie, once those that don't lie as their values and parameters do are copied."""
        if strange or self.implicit:
            self.refuse_grads_without_memory()
            self.grads = self.laid_out_grads(strange)
        return list(map(torch.Tensor.data_ptr, self.grads))

    def refuse_grads_without_memory(self) -> None:
        """Nothing has changed yet.

        Raises:
            RuntimeError: naming the parameter.
        """
        for entry, grad in zip(self.entries, self.grads, strict=True):
            wrong = fault(grad, written=False)
            if wrong is not None:
                raise RuntimeError(
                    f"the gradient of parameter {entry.name} {wrong}; replace it with a tensor that has memory of its "
                    "own"
                )

    def laid_out_grads(self, strange: Sequence[int]) -> list[torch.Tensor]:
        """The gradients as they lie in memory, those that are ``strange`` brought to their parameters' layout."""
        grads = list(map(materialized, self.grads))
        for i in strange:
            grads[i] = like(grads[i], self.params[i])
        return grads

    def start_anew(self) -> None:
        """Let nothing stand beside parameters that somebody has written to since they were updated, as their versions
        say: it was of other weights."""
        written = [e for e in self.entries if e.version is not None and e.version != e.version_now]
        for entry in written:
            entry.version = None
            with torch.no_grad():
                held = entry.slots[self.master_operand - FIRST_SLOT]  # type: ignore[index, operator]
                held.copy_(entry.param) if held.is_floating_point() else held.zero_()
        if written:
            names = ", ".join(e.name for e in written)
            warnings.warn(
                f"parameter {names} was written to since the last step: master={self.program.master.kind!r} "  # type: ignore[union-attr]
                "starts anew from what it holds now",
                stacklevel=2,
            )

    def note_versions(self) -> None:
        """The parameters have been updated, and count as written to; who writes to them from here on is another."""
        for entry in self.entries if self.program.master is not None else ():
            entry.note_version()

    def advance(self, groups: Sequence[Group]) -> None:
        """Compute this step's scalars on the host."""
        if self.program.master is not None and not self.valueless:
            self.start_anew()
        count, host, stored = len(self.program.scalars), self.program.host, self.stored
        for row in self.rows:
            values = host(groups[row.group], row.step + 1.0, row.is_new, row.slots, row.size, stored)
            row.scalars, row.updates = (values[:count], values[count:]) if self.updated else (values, ())

    def sort_rows(self) -> None:
        """Other tensors share their numbers than before; where a kernel lays these out by rows, it does so anew."""

    def stored(self, value: float) -> float:
        """A number as the table of counters holds it."""
        return float(self.numbers.dtype.type(value))

    def commit(self) -> None:
        """The step is done: count it."""
        rows = self.rows
        for row in rows:
            row.step += 1.0
            row.is_new = False
        if self.counted:
            if self.program.uses_step:
                steps = self.numbers[0]
                if len(rows) == 1:
                    steps.fill(rows[0].step)  # which takes a tenth of the time
                else:
                    steps += 1.0
            for row in rows if self.updated else ():
                self.store_updates(row)
            self.expected = self.numbers.tobytes()
        if not self.program.uses_step:
            self.done += 1

    def tell(self) -> None:
        """Count this launch's updates where its rule did not: in states that hold ``step``, or in the entries."""
        if self.done:
            counts = repeat(self.done) if self.missed is None else (self.done - self.missed).tolist()
            for entry, count in zip(self.entries, counts, strict=False):
                entry.count(count)
            self.done = 0
        self.missed = None

    def store_updates(self, row: SharedNumbers) -> None:
        first = 1 if self.program.uses_step else 0
        members = self.places_of(row)
        for index, value in zip(self.updated, row.updates, strict=True):
            self.numbers[first + index, members] = value
            row.slots[index] = float(self.numbers[first + index, members[0]])

    def places_of(self, row: SharedNumbers) -> Any:
        """Where the numbers of some entries stand in the table of counters."""
        return row.members

    @property
    def source(self) -> str | None:
        """The code that runs, where the kernel generates any."""
        return None

    @staticmethod
    def may_leave_out(program: Program, first: Entry) -> bool:
        """Whether parameters that are as this one may be left out of a launch's step, where they have no gradient."""
        return False

    # -- what a kernel does --------------------------------------------------------------------------------------

    def run(self, stage: int) -> None:
        """Do one pass."""
        raise NotImplementedError

    def imagine(self) -> None:
        """Do what of a step can be done without values."""
        raise NotImplementedError

    def total(self, row: int) -> Any:
        """The value of a reduction over all tensors of the launch, after the pass that computes it."""
        raise NotImplementedError

    def put(self, row: int, value: Any) -> None:
        """Set a row of the reduced table to one number for all tensors."""
        raise NotImplementedError

    def put_each(self, row: int, values: torch.Tensor) -> None:
        """Set a row of the reduced table to one number for each tensor."""
        raise NotImplementedError

    def reduced(self, row: int) -> Any:
        """A row of the reduced table: one number for each tensor."""
        raise NotImplementedError

    def column(self, index: int) -> torch.Tensor:
        """A scalar of this step: one float64 for each tensor, where the tensors are."""
        raise NotImplementedError

    def place_of(self, store: Store) -> torch.Tensor:
        """Where a value goes that was computed between passes."""
        if store.table == "reduced":
            return self.kept_rows[store.index - self.program.table_rows + len(self.program.reduced_slots)]
        return (self.lines.read if store.table == "line" else self.lines.kept)[store.index]

    def keep(self, stores: Sequence[tuple[Store, Any]]) -> None:
        """Store what was computed between passes: plain numbers, or float64 tensors that expand to their place."""
        for store, value in stores:
            place = self.place_of(store)
            if not isinstance(value, torch.Tensor):
                place.fill_(value)
            else:
                place.copy_(value)

    def take_given(self) -> None:
        """Look up what the step is given beside gradients; nothing has changed yet.

        Raises:
            RuntimeError: it is missing, or unfit; naming the parameter.
        """
        for key in self.program.inputs:
            if key not in OF_ITS_OWN and key not in self.inputs:
                raise RuntimeError(f"the rule of {self.program.name} reads {key}: call step(inputs={{...}}) with it")
        for name, operand in self.program.given:
            found = self.inputs.get(name)
            tensors = self.operand_tensors(operand)
            for i, entry in enumerate(self.entries):
                value = found.get(entry.owner) if isinstance(found, Mapping) else None
                p = self.params[i]
                what = f"inputs[{name!r}] of parameter {entry.name}"
                if value is None:
                    raise RuntimeError(
                        f"the rule of {self.program.name} reads {what}, which step() was not given: call "
                        f"step(inputs={{{name!r}: {{parameter: tensor}}}})"
                    )
                if self.shares or p.is_complex():
                    raise RuntimeError(
                        f"{what} can't be read: the parameter is {'sharded' if self.shares else p.dtype}"
                    )
                if not isinstance(value, torch.Tensor) or value.shape != p.shape or value.device != p.device:
                    shown = (
                        f"{tuple(value.shape)} on {value.device}" if isinstance(value, torch.Tensor) else repr(value)
                    )
                    raise RuntimeError(f"{what} is {shown:.60}, but the parameter is {tuple(p.shape)} on {p.device}")
                tensors[i] = like(materialized(value.detach().to(self.matrices.dtype)), p)

    def run_stage(self, stage: int) -> None:
        """Do one pass, and the matrix functions that stand behind it."""
        steps = self.program.phases[stage].matrices
        for step in steps:
            self.matrices.make_room(step)
        self.run(stage)
        for step in steps if not self.shares else ():  # of which no process has whole matrices
            self.matrices.run(step, self.matrix_numbers)

    @property
    def temporaries(self) -> list[list[torch.Tensor]]:
        """For each operand of a matrix function, the parameters' matrices."""
        return list(self.matrices.operands.values())

    def operand_tensors(self, operand: int) -> list[torch.Tensor]:
        """An operand of a matrix function, tensor by tensor."""
        return self.matrices.operands[operand]

    def drop_temporaries(self) -> None:
        """Let go of what stands between passes; where a step is done, its tables are kept."""
        self.matrices.drop()

    def matrix_numbers(self, step: Matrix) -> dict[int, tuple[float, ...]]:
        """The numbers that a matrix function is given with each tensor."""
        return {i: tuple(row.scalars[n] for n in step.numbers) for row in self.rows for i in row.members}
