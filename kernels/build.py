"""Compile kernels for one column to an object file, in a process of its own: Numba and its memory stay out of the
program that uses them.

compiling.py starts the process and sets its environment: column, formats, Numba's processor.

Numba makes LLVM's code of every kernel; here they become one module in which the entries alone are visible. It is
optimised as a whole, so that nothing of Python's or Numba's libraries is left: the object asks for the C library alone.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import llvmlite.binding as llvm
from numba import types

from .columns import Column
from .plan import ENCODE, FORWARD
from .target import COLUMN

Entries = Mapping[str, tuple[Any, tuple[Any, ...]]]  # the name in the object -> a kernel and its arguments' types
# LLVM spills vectors at multiples of 16 bytes, counted from wherever the caller's stack ends. Some then lie across two
# cache lines, and a pass of AVX2 took up to half as long again, by the thread that ran it. Now stacks begin at a line.
STACK = re.compile(r"^(define .*\)(?: local_unnamed_addr| unnamed_addr)?)(.*) \{$", re.MULTILINE)
LLVM_NAMES = {types.int64: "i64", types.float32: "float"}


def shipped() -> Entries:
    """What gemma_np itself calls: void(int64 plan, int64 thread), and void(int64 call) for texts."""
    from .bpe import encode_texts
    from .forward import forward

    return {FORWARD: (forward, (types.int64, types.int64)), ENCODE: (encode_texts, (types.int64,))}


def machine_of(column: Column, triple: str) -> Any:
    """LLVM's description of a column's processors."""
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=column.cpu, features=column.features, opt=3, reloc="pic", codemodel="default"
    )


def module_of(name: str, kernel: Any, arguments: tuple[Any, ...]) -> Any:
    """A kernel with all that it calls, and a C function `name` that calls it, in LLVM's terms."""
    kernel.compile(arguments)
    inner = kernel.overloads[arguments].fndesc.llvm_func_name
    values = ", ".join(f"{LLVM_NAMES[kind]} %argument.{i}" for i, kind in enumerate(arguments))
    return llvm.parse_assembly(
        f"""{kernel.inspect_llvm(arguments)}
define void @{name}({values}) {{
  %result = alloca ptr
  %error = alloca ptr
  %status = call i32 @"{inner}"(ptr %result, ptr %error, {values})
  ret void
}}
"""
    )


def join(entries: Entries, machine: Any, triple: str) -> Any:
    """One module with all entries in it."""
    whole = llvm.parse_assembly("")
    whole.triple, whole.data_layout = triple, str(machine.target_data)
    for name, (kernel, arguments) in entries.items():
        module = module_of(name, kernel, arguments)
        module.triple, module.data_layout = whole.triple, whole.data_layout
        whole.link_in(module)
    return llvm.parse_assembly(STACK.sub(r"\1 alignstack(64)\2 {", str(whole)))


def optimise(module: Any, entries: Entries, machine: Any) -> Any:
    """The same module with nothing but the entries in sight, optimised for a machine."""
    for item in (*module.functions, *module.global_variables):
        if not item.is_declaration and item.name not in entries:
            item.linkage = "internal"
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    passes = llvm.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(module, passes)
    return module


def build(entries: Entries) -> bytes:
    """The object code of some kernels for this machine, in the column of target.py."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    triple = llvm.get_process_triple()
    machine = machine_of(COLUMN, triple)
    code: bytes = machine.emit_object(optimise(join(entries, machine, triple), entries, machine))
    return code


def deliver() -> None:
    """Write the object to stdout; what anything else prints goes to stderr."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        out.write(build(shipped()))
