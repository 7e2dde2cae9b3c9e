"""Every kernel by name, and the source files whose change makes compiled objects stale."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...quant.twins import TWINS
from .layout import KV_HEAD_BYTES, PACK_FORMATS

if TYPE_CHECKING:
    from ..simd.compiler import Kernel
    from ..simd.isa import Target

MATMUL_FORMATS = (
    "Q3_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4",
    "F16", "BF16", "F32",
)  # fmt: skip
NARROW_FORMATS = ("Q3_0", "Q4_0")  # what weights of draft models become (``quant/narrow.py``)
EMBED_FORMATS = tuple(t.name for t in TWINS)
ROW_OPERATIONS = ("rms_norm", "add", "glu", "softcap", "scale", "select")
SEARCHES = ("search_offset", "search_symmetric", "search_iq4")  # of scales, when a file is quantised
OTHER = (
    "quantize", "norm_quantize", "concat", "rope_table", "rope", "lead", "work", "probe_read", "probe_dot",
)  # fmt: skip


def kernel_names() -> list[str]:
    """Return the names of all kernels."""
    by_format = [f"matmul_{f.lower()}" for f in MATMUL_FORMATS] + [f"embed_{f.lower()}" for f in EMBED_FORMATS]
    by_format += [f"pack_{f.lower()}" for f in PACK_FORMATS] + [f"narrow_{f.lower()}" for f in NARROW_FORMATS]
    by_format += [f"{name}_{kv_type}" for kv_type in KV_HEAD_BYTES for name in ("attention", "kv_store")]
    return [*by_format, *ROW_OPERATIONS, *OTHER, *SEARCHES]


def build_kernel(name: str, target: Target) -> Kernel:
    """Return a kernel ready to be compiled for a target (imports Numba).

    Raises:
        KeyError: there is no kernel of that name.
    """
    from . import (
        attention,
        concat,
        embed,
        kv_store,
        matmul,
        narrow,
        pack,
        probe,
        program_loop,
        quantize,
        rope,
        rows,
        scale_search,
    )  # here: a start with objects needs no Numba

    if name.startswith("matmul_"):
        return matmul.matmul_kernel(name.removeprefix("matmul_").upper(), target)
    if name.startswith("embed_"):
        return embed.embed_kernel(name.removeprefix("embed_").upper(), target)
    if name.startswith("pack_"):
        return pack.pack_kernel(name.removeprefix("pack_").upper(), target)
    if name.startswith("narrow_"):
        return narrow.narrow_kernel(name.removeprefix("narrow_").upper(), target)
    if name.startswith("attention_"):
        return attention.attention_kernel(name.removeprefix("attention_"), target)
    if name.startswith("kv_store_"):
        return kv_store.kv_store_kernel(name.removeprefix("kv_store_"), target)
    if name in SEARCHES:
        return scale_search.scale_search_kernel(name, target)
    if name in ROW_OPERATIONS:
        return rows.row_kernel(name, target)
    builders: dict[str, Callable[[Target], Kernel]] = {
        "quantize": quantize.quantize_kernel,
        "norm_quantize": quantize.norm_quantize_kernel,
        "concat": concat.concat_kernel,
        "rope_table": rope.rope_table_kernel,
        "rope": rope.rope_kernel,
        "lead": program_loop.lead_kernel,
        "work": program_loop.work_kernel,
        "probe_read": probe.probe_read_kernel,
        "probe_dot": probe.probe_dot_kernel,
    }
    return builders[name](target)
