"""Logical vectors for Numba, and the only place that knows instruction sets.

    isa.py           the targets, and which of them fits this machine (no Numba, no NumPy)
    lower.py         LLVM IR of the vector operations that differ between instruction sets
    vector.py        vector types and operations as Numba code sees them
    scalar.py        single numbers in memory, atomics, calls through addresses
    weight_bytes.py  unpacking of packed weights into bytes
    tile.py          operations on a tile: one weight vector group against several tokens
    compiler.py      Numba front end -> LLVM -> object file, for any target from any machine
    object_file.py   symbols of ELF and Mach-O objects (an object must need none from outside)
    source_hash.py   what a kernel is made from, as a hash
    object_cache.py  where objects lie on disk, and what is done when they cannot lie anywhere
    loader.py        objects -> callable addresses, through llvmlite alone

A start that finds its objects imports ``isa``, ``source_hash``, ``object_cache`` and ``loader`` only.
"""
