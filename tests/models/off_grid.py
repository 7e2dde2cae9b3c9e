"""Make a source for measuring quantisers: a development model, dequantised and moved off its quantisation grid.

    python -m tests.models.off_grid IN.gguf OUT.gguf [--type F32|F16] [--seed 0] [--sigma 0.4] [--untie] [--dither]

A model that was quantised once lies on the grid of its type: quantising it again finds the old grid and proves
nothing. Here every matrix is scaled by random factors that cancel elsewhere, so that the network computes the same
function with weights that no grid holds. With log-normal factors a, f, s, t of each layer:

=========================================  ==============================================================
attn_norm / a                              columns of attn_q, attn_k, attn_v * a
ffn_norm / f                               columns of ffn_gate, ffn_up * f
rows of ffn_up * s (linear in the result)  columns of ffn_down / s
rows of attn_v (and its bias) * t          columns of attn_output / t, for every query head of a key head
output_norm / c, with ``--untie``          columns of output * c; where it is tied to token_embd, a copy of that
=========================================  ==============================================================

Token embeddings (and a tied output) stay as they are: nothing can be pushed through them.

Scaled channels are just what AWQ scales back, so such a source flatters it. ``--dither`` makes one that does not:
every weight of a matrix (embeddings too) is moved evenly within half a step of its grid, so that it lies anywhere the
unknown original may have lain. That is another model, somewhat worse than the file it is made of, but its activations
are a real model's, its weights lie on no grid, and no method is favoured. Use it with ``--sigma 0``.
"""

import argparse
import re
from pathlib import Path

import gguf
import numpy as np

from llmrun.formats.ggml_types import GgmlType
from llmrun.formats.gguf import GgufFile
from llmrun.quant.dequantize import dequantize

VALUE_TYPES = {
    "u8": "UINT8", "i8": "INT8", "u16": "UINT16", "i16": "INT16", "u32": "UINT32", "i32": "INT32", "u64": "UINT64",
    "i64": "INT64", "f32": "FLOAT32", "f64": "FLOAT64", "bool": "BOOL", "str": "STRING",
}  # fmt: skip
FILE_TYPE = {GgmlType.F32: 0, GgmlType.F16: 1}


class Scales:
    """The random factors of one model, each made from its name alone.

    Args:
        seed: of all factors.
        sigma: standard deviation of their logarithms.
    """

    def __init__(self, seed, sigma):
        self._seed, self._sigma = seed, sigma

    def __call__(self, name, n):
        """Return n factors f64 [n], near 1."""
        rng = np.random.default_rng([self._seed, *name.encode()])
        return np.exp(self._sigma * rng.standard_normal(n))


def moved(name, w, scales, hp, *, untie):
    """Return one tensor of the new model, f64, in the shape of ``w`` (f32 [n_out, n_in] or [n])."""
    w = w.astype(np.float64)
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match is None:
        if untie and name == "output_norm.weight":
            return w / scales("output", len(w))
        if untie and name == "output.weight":
            return w * scales("output", w.shape[1])
        return w
    layer, part, kind = match.groups()
    n_kv = hp["n_head_kv"] * hp["n_embd_head"]
    t = scales(f"{layer}.t", n_kv)  # [n_head_kv * n_embd_head]
    n_group = hp["n_head"] // hp["n_head_kv"]
    t_of_heads = np.repeat(t.reshape(hp["n_head_kv"], -1), n_group, axis=0).reshape(-1)  # [n_head * n_embd_head]
    if kind == "bias":
        return w * t if part == "attn_v" else w
    if part in ("attn_norm", "ffn_norm"):
        return w / scales(f"{layer}.{part}", len(w))
    if part in ("attn_q", "attn_k", "attn_v", "attn_qkv"):
        w = w * scales(f"{layer}.attn_norm", w.shape[1])
        if part == "attn_v":
            w *= t[:, None]
        if part == "attn_qkv":
            w[-n_kv:] *= t[:, None]
        return w
    if part in ("ffn_gate", "ffn_up"):
        w = w * scales(f"{layer}.ffn_norm", w.shape[1])
        if part == "ffn_up":
            w[-hp["n_ff"] :] *= scales(f"{layer}.s", hp["n_ff"])[:, None]  # phi3: below the gate
        return w
    if part == "ffn_down":
        return w / scales(f"{layer}.s", w.shape[1])
    if part == "attn_output":
        return w / t_of_heads
    return w


def dithered(name, w, seed):
    """Return ``w f32 [..., n_in]`` with every weight moved by less than half the step of its 16 neighbours' grid."""
    rng = np.random.default_rng([seed, *name.encode(), 1])
    blocks = w.reshape(-1, 16)
    gaps = np.diff(np.sort(blocks, axis=1), axis=1)
    size = np.abs(blocks).max(axis=1, keepdims=True)
    gaps = np.where(gaps > 1e-4 * size, gaps, np.inf).min(axis=1, keepdims=True)  # of equal weights: none
    step = np.where(np.isfinite(gaps), gaps, 0)
    return (blocks + step * rng.uniform(-0.5, 0.5, blocks.shape)).astype(np.float32).reshape(w.shape)


def read_shape(meta):
    """Return the head counts that the scales need."""
    arch = meta.required("general.architecture", str)
    n_head = meta.required(f"{arch}.attention.head_count", int)
    return {
        "n_head": n_head,
        "n_head_kv": meta.optional(f"{arch}.attention.head_count_kv", int, n_head),
        "n_embd_head": meta.optional(
            f"{arch}.attention.key_length", int, meta.required(f"{arch}.embedding_length", int) // n_head
        ),
        "n_ff": meta.required(f"{arch}.feed_forward_length", int),
    }


def copy_metadata(writer, meta, kind):
    """Write all keys of the source again, with the new type."""
    for key in meta.keys():  # noqa: SIM118 (no mapping)
        if key in ("general.architecture", "general.file_type", "general.quantization_version"):
            continue
        words = meta.type_name(key).split()
        value_type = gguf.GGUFValueType[VALUE_TYPES[words[-1]]]
        if meta.is_array(key):
            values = list(meta.strings(key)) if words[-1] == "str" else meta.numbers(key).tolist()
            writer.add_key_value(key, values, gguf.GGUFValueType.ARRAY, value_type)
        else:
            writer.add_key_value(key, meta.get(key), value_type)
    writer.add_file_type(FILE_TYPE[kind])


def move_off_grid(source, target, *, kind=GgmlType.F32, seed=0, sigma=0.4, untie=False, dither=False):
    """Write the moved model.

    Args:
        source: a GGUF file of any type.
        target: the file to write.
        kind: type of the matrices, F32 or F16; vectors are F32.
        seed: of the factors.
        sigma: standard deviation of their logarithms; 0 only dequantises.
        untie: also move the output matrix, written beside the embeddings where the two are one.
        dither: move every weight of a matrix within its grid's step.
    """
    with GgufFile.open(source) as file:
        meta, hp, scales = file.metadata, read_shape(file.metadata), Scales(seed, sigma)
        origin = {name: name for name in file.tensors}  # new name: name in the source
        if untie and "output.weight" not in origin:
            origin["output.weight"] = "token_embd.weight"
        writer = gguf.GGUFWriter(target, meta.required("general.architecture", str))
        copy_metadata(writer, meta, kind)
        types = {name: kind if len(file.tensors[old].shape) > 1 else GgmlType.F32 for name, old in origin.items()}
        for name, old in origin.items():
            shape, dtype = file.tensors[old].shape, np.float16 if types[name] is GgmlType.F16 else np.float32
            writer.add_tensor_info(name, shape, np.dtype(dtype), int(np.prod(shape)) * np.dtype(dtype).itemsize)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, old in origin.items():
            info = file.tensors[old]
            w = dequantize(info.ggml_type, file.data(info)).reshape(info.shape)
            if dither and len(info.shape) > 1:
                w = dithered(name, w, seed)
            new = moved(name, w, scales, hp, untie=untie)
            writer.write_tensor_data(new.astype(np.float16 if types[name] is GgmlType.F16 else np.float32))
            file.release(info)
        writer.close()


def main():
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="IN.gguf")
    parser.add_argument("target", type=Path, metavar="OUT.gguf")
    parser.add_argument("--type", choices=["F32", "F16"], default="F32", help="of the matrices")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sigma", type=float, default=0.4, help="of the logarithms of the factors")
    parser.add_argument("--untie", action="store_true", help="also move the output matrix")
    parser.add_argument("--dither", action="store_true", help="move every weight within its grid's step")
    args = parser.parse_args()
    move_off_grid(
        args.source, args.target, kind=GgmlType[args.type], seed=args.seed, sigma=args.sigma, untie=args.untie,
        dither=args.dither,
    )  # fmt: skip


if __name__ == "__main__":
    main()
