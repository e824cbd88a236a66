"""Compiles kernels of the Arm column on a machine of another kind, for test_arm.py, in a process of its own.

    python tests/arm.py OUT        with the environment of compiling.environment; writes OUT.o and OUT.s

Numba compiles each kernel for this machine first, which knows no Arm instruction: until all is joined, those are called
by names that mean nothing.
"""

import sys
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

TRIPLE = "aarch64-unknown-linux-gnu"
PREFIX = "until_joined."


def main() -> None:
    from gemma_np.kernels import simd

    original = simd.emit_call

    def emit_call(b: Any, name: str, result: Any, *values: Any) -> Any:
        if name.startswith("llvm.aarch64."):
            name = PREFIX + name
            llvm.add_symbol(name, 1)  # never called
        return original(b, name, result, *values)

    simd.emit_call = emit_call

    from exported import entries
    from gemma_np.kernels import build
    from gemma_np.kernels.columns import BY_NAME

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = build.machine_of(BY_NAME["neon"], TRIPLE)
    found = entries()
    joined = str(build.join(found, machine, TRIPLE))
    module = build.optimise(llvm.parse_assembly(joined.replace(PREFIX, "")), found, machine)
    out = Path(sys.argv[1])
    out.with_suffix(".s").write_text(machine.emit_assembly(module))
    out.with_suffix(".o").write_bytes(machine.emit_object(module))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
