"""Kernel objects to callable addresses, through llvmlite alone: no Numba in a start that finds its objects."""

from __future__ import annotations

import llvmlite.binding as llvm

from .isa import Target
from .object_file import ELF_MAGIC, MACHO_MAGIC


class KernelModule:
    """Loaded machine code. Keep it alive as long as any address is in use."""

    def __init__(self, target: Target) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        # One engine takes one object format; the empty module's triple decides which.
        triple = target.triple if target.family == "mac" else llvm.get_process_triple()
        if target.family == "x86" and "linux" not in triple:
            triple = target.triple  # ELF objects on Windows and macOS
        machine = llvm.Target.from_triple(triple).create_target_machine(jit=True)
        module = llvm.parse_assembly("")
        module.triple = triple
        module.data_layout = str(machine.target_data)
        # LLVM's own memory manager keeps code near its constants on every platform.
        self._engine = llvm.create_mcjit_compiler(module, machine, use_lmm=True)
        self._magic = MACHO_MAGIC if target.family == "mac" else ELF_MAGIC
        self._objects: list[llvm.ObjectFileRef] = []

    def add(self, data: bytes) -> None:
        """Load one object.

        Raises:
            ValueError: it is not of this machine's object format (LLVM would abort the process).
        """
        if data[:4] != self._magic:
            raise ValueError(f"kernel object starts with {data[:4]!r}, expected {self._magic!r}")
        reference = llvm.ObjectFileRef.from_data(data)
        self._engine.add_object_file(reference)
        self._objects.append(reference)

    def finalize(self) -> None:
        """Make everything that was added executable."""
        self._engine.finalize_object()

    def address(self, symbol: str) -> int:
        """Return the address of a function.

        Raises:
            KeyError: no object that was added defines it.
        """
        address = int(self._engine.get_function_address(symbol))
        if not address:
            raise KeyError(symbol)
        return address
