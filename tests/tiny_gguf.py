"""Write small valid GGUF files with the ``gguf`` package's own writer.

from ..tiny_gguf import write_gguf      # relative: from tests/<area>/test_*.py

write_gguf(path, {"general.architecture": "llama", "llama.block_count": 2}, {"output_norm.weight": array})
"""

import gguf
import numpy as np

from llmrun.formats.ggml_types import BLOCK, GgmlType

_NUMPY_KINDS = {
    "u1": gguf.GGUFValueType.UINT8,
    "i1": gguf.GGUFValueType.INT8,
    "u2": gguf.GGUFValueType.UINT16,
    "i2": gguf.GGUFValueType.INT16,
    "u4": gguf.GGUFValueType.UINT32,
    "i4": gguf.GGUFValueType.INT32,
    "u8": gguf.GGUFValueType.UINT64,
    "i8": gguf.GGUFValueType.INT64,
    "f4": gguf.GGUFValueType.FLOAT32,
    "f8": gguf.GGUFValueType.FLOAT64,
    "b1": gguf.GGUFValueType.BOOL,
}


def value_type(value):
    """Return the GGUF type of a scalar: a NumPy scalar keeps its own, an int is u32, i32 or the 64-bit one."""
    if isinstance(value, np.generic):
        return _NUMPY_KINDS[value.dtype.str[1:]]
    if isinstance(value, bool):
        return gguf.GGUFValueType.BOOL
    if isinstance(value, float):
        return gguf.GGUFValueType.FLOAT32
    if isinstance(value, (str, bytes)):
        return gguf.GGUFValueType.STRING
    if 0 <= value < 2**32:
        return gguf.GGUFValueType.UINT32
    if -(2**31) <= value < 0:
        return gguf.GGUFValueType.INT32
    return gguf.GGUFValueType.UINT64 if value > 0 else gguf.GGUFValueType.INT64


def write_gguf(path, metadata, tensors, *, alignment=None, split_max_tensors=0):
    """Write one GGUF file (or its split files) and return the path of the first.

    Args:
        path: file to write; with ``split_max_tensors`` the files are named ``<stem>-00001-of-000NN.gguf``.
        metadata: key -> bool, int, float, str, NumPy scalar (keeps its type), NumPy array, or non-empty list
            of one kind (ints become i32, floats f32).
        tensors: name -> array (F32, F16, F64 or a signed integer dtype), or (u8 [..., n_row_bytes], GgmlType).
        alignment: written as ``general.alignment``; 32 when None.
        split_max_tensors: start a new file after this many tensors.
    """
    metadata = dict(metadata)
    writer = gguf.GGUFWriter(path, metadata.pop("general.architecture", "llama"), split_max_tensors=split_max_tensors)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for key, value in metadata.items():
        if isinstance(value, np.ndarray):
            writer.add_key_value(key, value.tolist(), gguf.GGUFValueType.ARRAY, _NUMPY_KINDS[value.dtype.str[1:]])
        elif isinstance(value, (list, tuple)):
            kind = value_type(value[0])
            kind = gguf.GGUFValueType.INT32 if kind is gguf.GGUFValueType.UINT32 else kind
            writer.add_key_value(key, list(value), gguf.GGUFValueType.ARRAY, kind)
        else:
            kind = value_type(value)
            writer.add_key_value(key, value.item() if isinstance(value, np.generic) else value, kind)
    for name, tensor in tensors.items():
        array, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
        raw = None if kind is None else gguf.GGMLQuantizationType(kind)
        writer.add_tensor(name, np.ascontiguousarray(array), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if split_max_tensors and len(writer.tensors) > 1:
        return path.with_name(f"{path.stem}-00001-of-{len(writer.tensors):05d}.gguf")
    return path


def random_blocks(rng, ggml_type, shape):
    """Return u8 [..., n_row_bytes]: random bytes in the place of a tensor of ``shape`` (slowest dimension first)."""
    n_weight, n_byte = BLOCK[GgmlType(ggml_type)]
    return rng.integers(0, 256, (*shape[:-1], shape[-1] // n_weight * n_byte), dtype=np.uint8)
