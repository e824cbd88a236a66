"""Object code -> functions to call, loaded with llvmlite; Numba stays out."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import llvmlite.binding as llvm

from .plan import ENCODE, FORWARD


class BuildError(Exception):
    """Kernels cannot be compiled or loaded here; the message says why."""


@dataclass(frozen=True)
class Compiled:
    """The entries of a loaded object. They leave the GIL free while they run.

    forward  a pass, by plan and thread, see forward.py
    encode   a text's token ids, by call, see bpe.py
    """

    forward: Callable[[int, int], None]
    encode: Callable[[int], None]


def opened(code: bytes) -> Compiled:
    """Object code -> its entries. Raises BuildError."""
    found = places(code, [FORWARD, ENCODE])
    forward = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(found[FORWARD])
    return Compiled(forward, ctypes.CFUNCTYPE(None, ctypes.c_int64)(found[ENCODE]))


def places(code: bytes, names: Sequence[str]) -> dict[str, int]:
    """Object code, made ready to run -> the addresses of its entries."""
    try:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine()
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        if _kind(code) != _kind(machine.emit_object(llvm.parse_assembly(""))):
            raise BuildError("compiled kernels do not load: they are for another processor or system")
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        found = {name: engine.get_function_address(name) for name in names}
    except (RuntimeError, OSError) as error:
        raise BuildError(f"compiled kernels do not load: {error}") from None
    if not all(found.values()):
        raise BuildError("compiled kernels have no entry")
    engine.detach()  # never freed: a pass may still run while the interpreter ends
    return found


def _kind(code: bytes) -> bytes:
    """What an object is for: class, byte order and machine of ELF; the processor of Mach-O; the machine of COFF."""
    if code[:4] == b"\x7fELF":
        return code[:7] + code[18:20]
    return code[:8] if code[:4] == b"\xcf\xfa\xed\xfe" else code[:2]
