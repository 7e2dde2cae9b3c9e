"""Instruction-set targets: what each can do, and which one fits this machine.

Imports nothing heavy: it runs before NumPy is imported, because NumPy itself dies with an illegal
instruction on x86 CPUs below x86-64-v2.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import lru_cache

from ...formats.errors import ConfigError
from ...formats.record import Record

_UP_TO_8 = (8, 7, 6, 5, 4, 3, 2, 1)


class Target(Record, kw_only=True):
    """One build of every kernel.

    ``dot`` names the lowering of the byte dot product; ``widths`` are the numbers of tokens for
    which a matmul tile is generated, ``column_widths`` the numbers of columns for which one of attention is,
    widest first. The latter, and the probe of the int8 peak with the widest, keep all sums in registers.
    """

    name: str  # what the user sees and LLMRUN_ISA takes
    family: str  # "x86", "arm" or "mac": objects of one family never load on another
    triple: str
    cpu: str
    features: str  # LLVM feature string, on top of the CPU's
    dot: str  # "vnni512", "vnni256", "avx2", "ssse3", "sdot" or "smull"
    has_fma: bool = True
    has_f16: bool = True
    widths: tuple[int, ...] = (16, *_UP_TO_8)
    column_widths: tuple[int, ...] = (4, 3, 2, 1)
    needs: frozenset[str] = frozenset()  # LLVM feature names that the CPU must report

    @property
    def is_arm(self) -> bool:
        """Whether this is a 64-bit Arm target."""
        return self.family != "x86"

    @property
    def lowering(self) -> tuple[object, ...]:
        """What LLVM text depends on: targets that are equal here share it."""
        return self.is_arm, self.dot, self.has_fma, self.has_f16, self.widths, self.column_widths


_X86 = "x86_64-unknown-linux-gnu"  # ELF objects; with this calling convention they also load on an Intel Mac
_ARM = "aarch64-unknown-linux-gnu"
_MAC = "arm64-apple-macosx11.0"
_V3 = frozenset({"avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt", "movbe"})

# Best first within a family.
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            name="avx512-vnni", family="x86", triple=_X86, cpu="x86-64-v4", features="+avx512vnni,-prefer-256-bit",
            dot="vnni512", column_widths=(16, 8, 6, 4, 3, 2, 1),
            needs=_V3 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "avx512vnni"},
        ),
        Target(
            name="avx-vnni", family="x86", triple=_X86, cpu="x86-64-v3", features="+avxvnni",
            dot="vnni256", needs=_V3 | {"avxvnni"},
        ),
        Target(name="avx2", family="x86", triple=_X86, cpu="x86-64-v3", features="", dot="avx2", needs=_V3),
        Target(
            name="x86-v2", family="x86", triple=_X86, cpu="x86-64-v2", features="", dot="ssse3",
            has_fma=False, has_f16=False, widths=(2, 1), column_widths=(2, 1),
            needs=frozenset({"sse4.2", "ssse3", "popcnt", "cx16"}),
        ),
        Target(
            name="neon-dotprod", family="arm", triple=_ARM, cpu="generic", features="+v8.2a,+dotprod,+lse",
            dot="sdot", widths=_UP_TO_8, column_widths=(8, 4, 2, 1), needs=frozenset({"dotprod", "lse"}),
        ),
        Target(
            name="neon", family="arm", triple=_ARM, cpu="generic", features="", dot="smull", widths=(4, 3, 2, 1)
        ),
        Target(
            name="neon-dotprod-macos", family="mac", triple=_MAC, cpu="apple-m1", features="",
            dot="sdot", widths=_UP_TO_8, column_widths=(8, 4, 2, 1), needs=frozenset({"dotprod"}),
        ),
    )
}  # fmt: skip


def family() -> str:
    """Return the object family of this machine: "x86", "arm", "mac", or the unknown machine's own name."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        return "x86"
    if machine in ("aarch64", "arm64"):
        return "mac" if sys.platform == "darwin" else "arm"
    return machine


def cpu_features() -> frozenset[str]:
    """Return LLVM's names of the features that this CPU and operating system offer."""
    kind = family()
    if kind == "mac":
        return _sysctl_features()
    if kind == "arm":
        return _auxv_features()
    import llvmlite.binding as llvm  # 0.05 s; CPUID and XGETBV: AVX-512 only when the system saves its state

    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


@lru_cache(maxsize=1)
def zen_generation() -> int:
    """Return which generation of AMD's Zen cores this is, whose fetching ahead has ways of its own; 0: another CPU."""
    if family() != "x86":
        return 0
    import llvmlite.binding as llvm

    number = str(llvm.get_host_cpu_name()).removeprefix("znver")
    return int(number) if number.isdecimal() else 0


def _auxv_features() -> frozenset[str]:
    # Not LLVM: it reads /proc/cpuinfo, which is empty in some containers and under qemu.
    try:
        getauxval = ctypes.CDLL(None).getauxval
    except (AttributeError, OSError):
        return frozenset()
    getauxval.restype = ctypes.c_ulong
    getauxval.argtypes = [ctypes.c_ulong]
    hwcap, hwcap2 = getauxval(16), getauxval(26)
    bits = (("lse", hwcap, 8), ("fullfp16", hwcap, 10), ("dotprod", hwcap, 20), ("i8mm", hwcap2, 13))
    return frozenset(name for name, word, bit in bits if word >> bit & 1)


def _sysctl_features() -> frozenset[str]:
    libc = ctypes.CDLL(None)
    found = {"dotprod", "lse"}  # every Apple-Silicon Mac has them
    for name, key in (("i8mm", b"hw.optional.arm.FEAT_I8MM"), ("bf16", b"hw.optional.arm.FEAT_BF16")):
        value, size = ctypes.c_int(0), ctypes.c_size_t(4)
        if (
            libc.sysctlbyname(key, ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0)) == 0
            and value.value
        ):
            found.add(name)
    return frozenset(found)


def supported_targets() -> list[Target]:
    """Return the targets whose code this machine can run, best first."""
    kind, features = family(), cpu_features()
    return [t for t in TARGETS.values() if t.family == kind and t.needs <= features]


def choose_target() -> Target:
    """Return the best target for this machine, or the one that ``LLMRUN_ISA`` names.

    Raises:
        ConfigError: the machine fits no target, or ``LLMRUN_ISA`` names none that it can run.
    """
    if sys.platform == "win32":  # kernels are built for the System V calling convention: they would crash there
        raise ConfigError("Windows is not supported yet: run llmrun under WSL 2")
    usable = supported_targets()
    if not usable:
        raise ConfigError(f"this CPU ({platform.machine()}) is not supported: llmrun needs x86-64-v2 or 64-bit Arm")
    forced = os.environ.get("LLMRUN_ISA")
    if not forced:
        return usable[0]
    for target in usable:
        if target.name == forced:
            return target
    names = ", ".join(target.name for target in usable)
    raise ConfigError(f"LLMRUN_ISA is {forced!r}, but this CPU runs: {names}")


def check_cpu() -> None:
    """Refuse an x86 CPU below x86-64-v2 before NumPy is imported, which would crash there.

    Raises:
        ConfigError: with the instruction sets that are missing.
    """
    if family() != "x86" or sys.platform == "darwin":  # every Mac that runs a supported macOS has them
        return
    missing = sorted(_X86_V2.keys() - _x86_v2_features())
    if missing:
        raise ConfigError(f"this CPU lacks {', '.join(missing)}: llmrun needs at least x86-64-v2 (2009 or later)")


_X86_V2 = {"ssse3": 9, "cx16": 13, "sse4.1": 19, "sse4.2": 20, "popcnt": 23}  # LLVM's names; bits of CPUID 1, ECX


def _x86_v2_features() -> set[str]:
    """Return those of ``_X86_V2`` that the CPU has; /proc/cpuinfo may be missing, or another CPU's under emulation."""
    try:
        cpuid = ctypes.CDLL(None).__x86_get_cpuid_feature_leaf  # glibc 2.33 and newer, 20 us
    except (AttributeError, OSError, TypeError):
        return set(cpu_features())  # 50 ms
    cpuid.restype = ctypes.POINTER(ctypes.c_uint32 * 4)
    cpuid.argtypes = [ctypes.c_uint]
    ecx = cpuid(0).contents[2]
    return {name for name, bit in _X86_V2.items() if ecx >> bit & 1}
