"""Machine code of Programs, compiled once for each combination of dtypes."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import llvmlite.binding as llvm

from steprule.rule.program import Program

from .source import assembly

__all__ = ["COMPILING", "Machine", "compiled", "machine"]

COMPILING = threading.RLock()
# a child that is forked by another thread meanwhile would find the compiler half way through something; one that a
# signal's handler forks in the thread that compiles goes on where that thread was
os.register_at_fork(before=COMPILING.acquire, after_in_parent=COMPILING.release, after_in_child=COMPILING.release)


class Machine:
    """The one engine that owns all machine code of the process. Its owner holds :data:`COMPILING`."""

    def __init__(self) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self.target = self.target_machine()
        backing = llvm.parse_assembly("")
        self.engine = llvm.create_mcjit_compiler(backing, self.target_machine())
        self.count = 0

    @staticmethod
    def target_machine() -> Any:
        target = llvm.Target.from_default_triple()
        features = llvm.get_host_cpu_features().flatten()
        return target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True)

    def compile(self, program: Program, operands: Sequence[str], kind: str) -> list[Any]:
        """Callable addresses, one for each pass."""
        self.count += 1
        name = f"steprule{self.count}_"
        module = llvm.parse_assembly(assembly(program, operands, kind, name))
        module.triple = llvm.get_process_triple()
        module.data_layout = str(self.target.target_data)
        module.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=3)
        options.loop_vectorization = True
        options.loop_interleaving = True
        builder = llvm.create_pass_builder(self.target, options)
        builder.getModulePassManager().run(module, builder)
        self.engine.add_module(module)
        self.engine.finalize_object()
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        return [prototype(self.engine.get_function_address(f"{name}{index}")) for index in range(len(program.phases))]


@lru_cache(maxsize=1)
def machine() -> Machine:
    return Machine()


@lru_cache(maxsize=256)
def compiled(program: Program, operands: tuple[str, ...], kind: str) -> list[Any]:
    with COMPILING:
        return machine().compile(program, operands, kind)
