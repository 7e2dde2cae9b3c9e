"""Where the scalar twin of each type's dequantisation is; importing this does not import Numba.

A twin is a plain Python function ``f(blocks u8 [n_block, block_bytes], out f32 [n_block, n_weight])`` for Numba to
compile: it gives the bits of ``dequantize``, allocates nothing, raises nothing and calls no library.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from ..formats.ggml_types import GgmlType
from .floats import F32, U8

_MODULES = {
    "twin_legacy": "F32 F16 BF16 Q1_0 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q8_1",
    "twin_k_quants": "Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K",
    "twin_iq_quants": "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S",
    "twin_small": "IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4 NVFP4",
}
TWINS: dict[GgmlType, tuple[str, str]] = {
    GgmlType[name]: (module, name.lower()) for module, names in _MODULES.items() for name in names.split()
}
"""Module in this package and function, by type."""


def twin(ggml_type: GgmlType) -> Callable[[U8, F32], None]:
    """Return the scalar function of a type of weights; imports Numba.

    Raises:
        KeyError: the type is not one of weights.
    """
    module, name = TWINS[ggml_type]
    function: Callable[[U8, F32], None] = getattr(import_module(f".{module}", __package__), name)
    return function
