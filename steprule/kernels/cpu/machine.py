"""Machine code of Programs: compiled once for each combination of dtypes, and freed with the last that runs it."""

from __future__ import annotations

import ctypes
import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from steprule.portability.forking import at_fork
from steprule.rule.program import Program

from .kept_code import keep_code, kept
from .source import assembly

__all__ = ["COMPILING", "RECENT", "Code", "Machine", "code_of", "forget", "living", "machine"]

COMPILING = threading.RLock()
# a child that is forked by another thread meanwhile would find the compiler half way through something; one that a
# signal's handler forks in the thread that compiles goes on where that thread was
at_fork(before=COMPILING.acquire, after_in_parent=COMPILING.release, after_in_child=COMPILING.release)

EMITTED = 1
"""To be counted up with any change of :meth:`Machine.emitted`: code that was kept before is not taken then."""
RECENT = 32
"""How much code is kept that nobody runs any more: as many Programs may come in turns."""

Key = tuple[Program, tuple[str, ...], str]


class Code:
    """What was compiled of a Program, with the engine that owns it: whoever runs a pass holds this.

    Attributes:
        passes: a function of a frame's address for each pass.
    """

    def __init__(self, engine: Any, addresses: Sequence[int]) -> None:
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        self.passes: list[Callable[[int], None]] = [prototype(address) for address in addresses]
        weakref.finalize(self, retire, engine).atexit = False


LARGE = 4000
"""Lines from which on a source is compiled to work on single numbers: vectors take LLVM time with the square of a
loop's length, ten seconds for 5,000 lines. The largest rule here has 750."""

LEFT: list[Any] = []
"""Engines whose code nobody runs, to be closed."""


def retire(engine: Any) -> None:
    """Close an engine; where another thread compiles it is left for later, for a child forked meanwhile would find LLVM
    half way through it."""
    LEFT.append(engine)
    if COMPILING.acquire(blocking=False):
        try:
            close_left()
        finally:
            COMPILING.release()


def close_left() -> None:
    while LEFT:
        LEFT.pop().close()


class Machine:
    """The compiler for this processor. Its owner holds :data:`COMPILING`."""

    def __init__(self) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self.cpu, self.features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
        self.target = self.target_machine()

    def target_machine(self) -> Any:
        target = llvm.Target.from_default_triple()
        return target.create_target_machine(cpu=self.cpu, features=self.features, opt=3, jit=True)

    def compile(self, program: Program, operands: Sequence[str], kind: str) -> Code:
        """A Program's machine code: what another process has compiled, if there is such, or compiled now."""
        source = assembly(program, operands, kind, "steprule")
        key = self.key(source)
        known = kept(key)
        if known is None:
            known = self.emitted(source)
            keep_code(key, known)
        return self.loaded(known, len(program.phases))

    def key(self, source: str) -> str:
        """A hash of all that the machine code of a source depends on."""
        versions = (EMITTED, llvmlite.__version__, llvm.llvm_version_info, llvm.get_process_triple())
        return hashlib.sha256("\n".join(map(str, (*versions, self.cpu, self.features, source))).encode()).hexdigest()

    def emitted(self, source: str) -> bytes:
        """A source as an object file."""
        module = llvm.parse_assembly(source, llvm.create_context())
        module.triple = llvm.get_process_triple()
        module.data_layout = str(self.target.target_data)
        module.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=3)
        options.loop_vectorization = options.loop_interleaving = source.count("\n") < LARGE
        builder = llvm.create_pass_builder(self.target, options)
        builder.getModulePassManager().run(module, builder)
        code: bytes = self.target.emit_object(module)
        return code

    def loaded(self, code: bytes, passes: int) -> Code:
        """An object file, in an engine of its own: engines are freed whole."""
        nothing = llvm.parse_assembly("", llvm.create_context())
        engine = llvm.create_mcjit_compiler(nothing, self.target_machine())  # two engines on one would crash
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        return Code(engine, [engine.get_function_address(f"steprule{i}") for i in range(passes)])


@lru_cache(maxsize=1)
def machine() -> Machine:
    return Machine()


KNOWN: weakref.WeakValueDictionary[Key, Code] = weakref.WeakValueDictionary()
LAST: OrderedDict[Key, Code] = OrderedDict()
"""The last that were asked for, the latest at the end."""


def code_of(program: Program, operands: tuple[str, ...], kind: str) -> Code:
    """The code of a Program for operands of some types and an arithmetic."""
    key = program, operands, kind
    with COMPILING:
        close_left()
        code = KNOWN.get(key)
        if code is None:
            KNOWN[key] = code = machine().compile(*key)
        LAST[key] = code
        LAST.move_to_end(key)
        if len(LAST) > RECENT:
            LAST.popitem(last=False)
        return code


def living() -> int:
    """How many Programs' code is in memory."""
    return len(KNOWN)


def forget() -> None:
    """Keep nothing that nobody runs, and compile anew what is asked for next."""
    with COMPILING:
        LAST.clear()
        KNOWN.clear()
        machine.cache_clear()
