"""The columns: one set of kernels for each kind of processor, and what it asks of the machine. Data only."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """How kernels are compiled for one kind of processor.

    name      what GEMMA_NP_KERNELS, `gemma-np info` and the cache call it
    machine   platform.machine() of those processors; empty: any
    needs     LLVM's names of the features that the processor must have
    cpu       LLVM's processor to compile for
    features  LLVM's features to add to it
    dot       the instruction that multiplies bytes, see tiles.py
    tile      rows and vectors of 16 columns that a product of bytes keeps in registers
    few       rows of its smaller tile, for the rows that are left
    floats    the same for products of float32
    """

    name: str
    machine: tuple[str, ...]
    needs: tuple[str, ...]
    cpu: str
    features: str
    dot: str
    tile: tuple[int, int]
    few: int
    floats: tuple[int, int]


X86 = ("x86_64", "AMD64")
ARM = ("aarch64", "arm64")

# Fastest first. The tiles' sizes follow from the number of registers: 32 of 16 lanes with AVX-512, 16 of 8 with AVX2,
# 32 of 4 with Neon; half of them hold integer sums, the others float sums, weights and scales.
COLUMNS = (
    Column(
        name="avx512vnni",
        machine=X86,
        needs=("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni"),
        cpu="x86-64-v4",
        features="+avx512vnni",
        dot="vpdpbusd.512",
        tile=(6, 2),
        few=4,
        floats=(8, 2),
    ),
    Column(
        name="avxvnni",
        machine=X86,
        needs=("avx2", "fma", "f16c", "avxvnni"),
        cpu="x86-64-v3",
        features="+avxvnni",
        dot="vpdpbusd.256",
        tile=(4, 1),
        few=4,
        floats=(4, 1),
    ),
    Column(
        name="avx2",
        machine=X86,
        needs=("avx2", "fma", "f16c"),
        cpu="x86-64-v3",
        features="",
        dot="pmaddubsw",
        tile=(2, 1),
        few=2,
        floats=(4, 1),
    ),
    Column(
        name="neon",
        machine=ARM,
        needs=("dotprod", "neon"),
        cpu="generic",
        features="+dotprod,+neon",
        dot="sdot",
        tile=(4, 1),
        few=4,
        floats=(4, 1),
    ),
    Column(name="plain", machine=(), needs=(), cpu="", features="", dot="", tile=(1, 1), few=1, floats=(2, 1)),
)

BY_NAME = {column.name: column for column in COLUMNS}
