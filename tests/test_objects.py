"""Object code that does not load here is an error with its reason, never a jump into another processor's code."""

import llvmlite.binding as llvm
import pytest
from gemma_np.kernels.choice import choose
from gemma_np.kernels.objects import BuildError, opened, places
from gemma_np.kernels.plan import ENCODE, FORWARD

COLUMN = choose().column

pytestmark = pytest.mark.skipif(COLUMN is None, reason="no kernels run on this machine")


def foreign() -> bytes:
    """An object with the right entries for a processor that this one is not."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple = "aarch64-linux-gnu" if COLUMN is None or "aarch64" not in COLUMN.machine else "x86_64-linux-gnu"
    text = f'target triple="{triple}"\ndefine void @{FORWARD}(i64 %a, i64 %b) {{ ret void }}'
    text += f"\ndefine void @{ENCODE}(i64 %a) {{ ret void }}"
    code: bytes = llvm.Target.from_triple(triple).create_target_machine().emit_object(llvm.parse_assembly(text))
    return code


def test_an_object_for_another_processor_is_refused() -> None:
    with pytest.raises(BuildError, match="they are for another processor or system"):
        opened(foreign())


@pytest.mark.parametrize("code", [b"", b"\x7fELF", bytes(2000)], ids=["empty", "its first bytes", "zeros"])
def test_what_is_no_object_is_refused(code: bytes) -> None:
    with pytest.raises(BuildError):
        opened(code)


def test_an_object_without_an_entry_is_refused() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    code = machine.emit_object(llvm.parse_assembly("define void @another() { ret void }"))
    assert list(places(code, ["another"])) == ["another"]
    with pytest.raises(BuildError, match="have no entry"):
        opened(code)
