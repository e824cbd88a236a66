"""Compile the forward pass for one column to an object file, in a process of its own: Numba and its memory stay out of
the program that uses the kernels.

    python -m gemma_np.kernels.build OUT.o       cache.py sets the environment: column, formats, Numba's processor

Numba makes LLVM's code of every kernel; here they become one module with one visible function, which is optimised as a
whole, so that nothing of Python's or Numba's libraries is left in the object: it asks for the C library alone.
"""

import os
import sys
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
from numba import types

from .columns import BY_NAME, Column

ENTRY = "gemma_np_forward"  # void(int64 plan, int64 thread)


def kernels_module() -> tuple[str, str]:
    """LLVM's text of all kernels, and the name of the forward pass in it."""
    from .forward import forward

    signature = (types.int64, types.int64)
    forward.compile(signature)
    return forward.inspect_llvm(signature), forward.overloads[signature].fndesc.llvm_func_name


def machine_of(column: Column, triple: str) -> Any:
    """LLVM's description of a column's processors."""
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=column.cpu, features=column.features, opt=3, reloc="pic", codemodel="default"
    )


def link(text: str, name: str, machine: Any, triple: str) -> Any:
    """The module with ENTRY alone in sight, optimised for a machine."""
    text += f"""
define void @{ENTRY}(i64 %plan, i64 %thread) {{
  %result = alloca ptr
  %error = alloca ptr
  %status = call i32 @"{name}"(ptr %result, ptr %error, i64 %plan, i64 %thread)
  ret void
}}
"""
    module = llvm.parse_assembly(text)
    module.triple = triple
    module.data_layout = str(machine.target_data)
    for item in (*module.functions, *module.global_variables):
        if not item.is_declaration and item.name != ENTRY:
            item.linkage = "internal"
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    passes = llvm.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(module, passes)
    return module


def main() -> int:
    column = BY_NAME[os.environ["GEMMA_NP_BUILD"]]
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    triple = llvm.get_process_triple()
    machine = machine_of(column, triple)
    Path(sys.argv[1]).write_bytes(machine.emit_object(link(*kernels_module(), machine, triple)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
