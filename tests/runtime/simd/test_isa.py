"""Which target is chosen, and that its machine code really uses what the target is for."""

import re

import pytest

from llmrun.formats.errors import ConfigError
from llmrun.runtime.simd import isa
from llmrun.runtime.simd.isa import TARGETS, check_cpu, choose_target, supported_targets

V2 = {"sse4.2", "ssse3", "popcnt", "cx16"}
V3 = V2 | {"avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt", "movbe"}
V4 = V3 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}


@pytest.fixture
def cpu(monkeypatch):
    """Pretend to be a machine of a family with some features."""

    def pretend(family, features):
        monkeypatch.setattr(isa, "family", lambda: family)
        monkeypatch.setattr(isa, "cpu_features", lambda: frozenset(features))

    return pretend


@pytest.mark.parametrize(
    ("family", "features", "names"),
    [
        ("x86", V4 | {"avx512vnni", "avxvnni"}, ["avx512-vnni", "avx-vnni", "avx2", "x86-v2"]),
        ("x86", V4 | {"avx512vnni"}, ["avx512-vnni", "avx2", "x86-v2"]),
        ("x86", V4, ["avx2", "x86-v2"]),
        ("x86", V3 | {"avxvnni"}, ["avx-vnni", "avx2", "x86-v2"]),
        ("x86", V3, ["avx2", "x86-v2"]),
        ("x86", V3 - {"f16c"}, ["x86-v2"]),
        ("x86", V2, ["x86-v2"]),
        ("x86", V2 - {"ssse3"}, []),
        ("arm", {"dotprod", "lse"}, ["neon-dotprod", "neon"]),
        ("arm", {"dotprod"}, ["neon"]),
        ("arm", set(), ["neon"]),
        ("mac", {"dotprod", "lse"}, ["neon-dotprod-macos"]),
        ("riscv64", {"v"}, []),
    ],
)
def test_targets_of_a_machine(cpu, family, features, names):
    cpu(family, features)
    assert [t.name for t in supported_targets()] == names
    if names:
        assert choose_target().name == names[0]
    else:
        with pytest.raises(ConfigError, match="is not supported: llmrun needs x86-64-v2 or 64-bit Arm"):
            choose_target()


def test_a_forced_target(cpu, monkeypatch):
    cpu("x86", V3)
    monkeypatch.setenv("LLMRUN_ISA", "x86-v2")
    assert choose_target().name == "x86-v2"
    for name in ("avx512-vnni", "neon", "AVX2", " "):
        monkeypatch.setenv("LLMRUN_ISA", name)
        with pytest.raises(ConfigError) as caught:
            choose_target()
        assert str(caught.value) == f"LLMRUN_ISA is {name!r}, but this CPU runs: avx2, x86-v2"
    monkeypatch.setenv("LLMRUN_ISA", "")
    assert choose_target().name == "avx2"


def test_this_machine_is_supported():
    assert choose_target() == supported_targets()[0]
    check_cpu()


def test_a_cpu_below_the_least_one_is_named(monkeypatch):
    monkeypatch.setattr(isa, "family", lambda: "x86")
    monkeypatch.setattr(isa, "_x86_v2_features", lambda: {"ssse3", "cx16", "popcnt"})
    with pytest.raises(ConfigError, match=r"this CPU lacks sse4\.1, sse4\.2: llmrun needs at least x86-64-v2"):
        check_cpu()
    monkeypatch.setattr(isa, "_x86_v2_features", lambda: set(isa._X86_V2))
    check_cpu()
    monkeypatch.setattr(isa, "family", lambda: "arm")
    monkeypatch.setattr(isa, "_x86_v2_features", set)
    check_cpu()


@pytest.mark.skipif(isa.family() != "x86", reason="asks an x86 CPU")
def test_the_least_features_are_what_llvm_says():
    assert isa._x86_v2_features() == set(isa._X86_V2) & isa.cpu_features()


def test_features_of_arm_come_from_the_auxiliary_vector(monkeypatch):
    """HWCAP bits 8 (atomics), 10 (half arithmetic), 20 (dot product); HWCAP2 bit 13 (i8mm)."""

    class Getauxval:
        def __call__(self, number):
            return {16: 1 << 8 | 1 << 20, 26: 1 << 13}[number]

    class Libc:
        getauxval = Getauxval()

    monkeypatch.setattr(isa, "family", lambda: "arm")
    monkeypatch.setattr(isa.ctypes, "CDLL", lambda _: Libc)
    assert isa.cpu_features() == {"lse", "dotprod", "i8mm"}
    assert [t.name for t in supported_targets()] == ["neon-dotprod", "neon"]


# ---- the real instruction ---------------------------------------------------------------------

# Of an 8-bit dot product, and of what x86-v2 must do without (test_build_objects.py looks for Arm's sdot).
INSTRUCTIONS = [
    ("avx512-vnni", "matmul_q8_0", {"vpdpbusd", "vcvtph2ps", "vfmadd"}, {"vpmaddubsw"}),
    ("avx-vnni", "matmul_q8_0", {"vpdpbusd", "vcvtph2ps", "vfmadd"}, {"vpmaddubsw", "zmm"}),
    ("avx2", "matmul_q8_0", {"vpmaddubsw", "vpmaddwd", "vcvtph2ps", "vfmadd"}, {"vpdpbusd", "zmm"}),
    ("x86-v2", "matmul_q8_0", {"pmaddubsw", "pmaddwd"}, {"vpmaddubsw", "vcvtph2ps", "vfmadd", "ymm"}),
]


@pytest.mark.parametrize(("target_name", "kernel", "present", "absent"), INSTRUCTIONS)
def test_the_target_uses_its_instructions(target_name, kernel, present, absent):
    from llmrun.runtime.kernels.registry import build_kernel
    from llmrun.runtime.simd.compiler import compile_assembly

    target = TARGETS[target_name]
    text = compile_assembly(build_kernel(kernel, target), target)
    words = set(re.findall(r"[a-z][a-z0-9.]+", text))
    for name in present:
        assert any(word.startswith(name) for word in words), name
    for name in absent:
        assert not any(word.startswith(name) for word in words), name


def test_the_widest_vectors_stay_in_registers():
    """A tile of one token spills nothing: its loops touch the stack in no vector instruction."""
    from llmrun.runtime.kernels.registry import build_kernel
    from llmrun.runtime.simd.compiler import compile_assembly

    target = TARGETS["avx512-vnni"]
    lines = compile_assembly(build_kernel("matmul_q4_0", target), target).splitlines()
    dots = [line for line in lines if "vpdpbusd" in line]
    assert len(dots) >= 8 * sum(target.widths)  # eight vectors of weights for every token of every tile
    assert not [line for line in dots if "(%rsp)" in line]


@pytest.mark.parametrize("target_name", ["avx2", "avx-vnni", "avx512-vnni"])
def test_vectors_on_the_stack_lie_in_one_cache_line(target_name):
    """Tiles that LLVM makes functions of their own would have a stack aligned to 16 bytes."""
    from llmrun.runtime.kernels.registry import build_kernel
    from llmrun.runtime.simd.compiler import compile_assembly

    target = TARGETS[target_name]
    lines = compile_assembly(build_kernel("matmul_q4_k", target), target).splitlines()
    on_stack = [line for line in lines if "(%rsp)" in line and re.search("%[yz]mm", line)]
    assert on_stack
    assert not [line for line in on_stack if re.match(r"\tvmov(dqu|ups)", line)]


def test_a_start_without_compiling_imports_nothing_heavy():
    """isa and the cache run before NumPy is imported, which dies on old CPUs; they import neither it nor Numba."""
    import subprocess
    import sys

    code = (
        "import sys; from llmrun.runtime.simd import isa, source_hash; isa.check_cpu(); isa.choose_target();"
        "source_hash.all_kernels_hash(); print(sorted({'numpy', 'numba', 'psutil'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_windows_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(isa.sys, "platform", "win32")
    with pytest.raises(ConfigError, match="Windows is not supported yet"):
        isa.choose_target()
