"""Symbols of a relocatable object file: ELF64 or 64-bit Mach-O, little endian.

Used to prove that a kernel object needs no symbol from outside. A missing symbol is not an error at
load time but a jump to address zero at the first call, and library calls (``fmaf``, ``exp``,
``__extendhfsf2``) appear only during instruction selection, so the IR alone does not show them.
"""

from __future__ import annotations

import struct

ELF_MAGIC = b"\x7fELF"
MACHO_MAGIC = b"\xcf\xfa\xed\xfe"


def symbols(data: bytes) -> tuple[set[str], dict[str, int]]:
    """Return (undefined names, defined global names with their offsets in their section).

    Raises:
        ValueError: the data is neither kind of object.
    """
    if data[:4] == ELF_MAGIC:
        return _elf_symbols(data)
    if data[:4] == MACHO_MAGIC:
        return _macho_symbols(data)
    raise ValueError(f"not an ELF or Mach-O object (starts with {data[:4]!r})")


def _name(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode()


def _elf_symbols(data: bytes) -> tuple[set[str], dict[str, int]]:
    undefined: set[str] = set()
    defined: dict[str, int] = {}
    (table,) = struct.unpack_from("<Q", data, 40)
    (n_section,) = struct.unpack_from("<H", data, 60)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + 64 * i) for i in range(n_section)]
    for section in sections:
        if section[1] != 2:  # SHT_SYMTAB
            continue
        strings = sections[section[6]][4]
        for entry in range(section[4], section[4] + section[5], 24):
            name_offset, info, _, index, value, _ = struct.unpack_from("<IBBHQQ", data, entry)
            name = _name(data, strings + name_offset)
            if not name or info & 15 in (3, 4):  # sections and files
                continue
            if index == 0:
                undefined.add(name)
            elif info >> 4:  # not local
                defined[name] = value
    return undefined, defined


def _macho_symbols(data: bytes) -> tuple[set[str], dict[str, int]]:
    undefined: set[str] = set()
    defined: dict[str, int] = {}
    position = 32
    for _ in range(struct.unpack_from("<I", data, 16)[0]):
        command, size = struct.unpack_from("<II", data, position)
        if command == 2:  # LC_SYMTAB
            table, n_symbol, strings, _ = struct.unpack_from("<IIII", data, position + 8)
            for i in range(n_symbol):
                name_offset, kind, _, _, value = struct.unpack_from("<IBBHQ", data, table + 16 * i)
                if kind & 0xE0 or not kind & 1:  # debugging entries and local symbols
                    continue
                name = _name(data, strings + name_offset)
                if kind & 0xE == 0:
                    undefined.add(name)
                else:
                    defined[name] = value
        position += size
    return undefined, defined
