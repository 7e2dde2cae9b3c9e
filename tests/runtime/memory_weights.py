"""Weights that tests make up, as a ``WeightSource``."""

import numpy as np

from llmrun.formats.ggml_types import GgmlType, row_bytes
from llmrun.quant.pack import pack
from llmrun.quant.widen import run_type
from llmrun.runtime.described_weights import VECTOR_PAD
from llmrun.runtime.kernels.layout import padded
from llmrun.runtime.program import Weight


class MemoryWeights:
    """Matrices of any type and vectors, by name."""

    def __init__(self):
        self._matrices = {}
        self._vectors = {}
        self._packed = {}

    def add_matrix(self, name, ggml_type, blocks):
        """Keep ``u8 [n_out, bytes of a row]`` and return its description."""
        ggml_type = GgmlType[ggml_type] if isinstance(ggml_type, str) else ggml_type
        n_in = blocks.shape[1] * 256 // row_bytes(ggml_type, 256)
        self._matrices[name] = ggml_type, np.ascontiguousarray(blocks), n_in
        return self.matrix(name, len(blocks), n_in)

    def add_floats(self, name, values):
        """Keep an f32 matrix and return its description."""
        return self.add_matrix(name, GgmlType.F32, np.ascontiguousarray(values, np.float32).view(np.uint8))

    def add_vector(self, name, values):
        """Keep an f32 vector and return its description."""
        self._vectors[name] = np.asarray(values, np.float32)
        return self.vector(name, len(values))

    def has(self, name):
        return name in self._matrices or name in self._vectors

    def matrix(self, name, n_out, n_in):
        ggml_type, blocks, columns = self._matrices[name]
        assert (len(blocks), columns) == (n_out, n_in)
        return Weight(name, n_out, n_in, run_type(name, ggml_type, blocks.reshape(-1)).name, source=ggml_type.name)

    def vector(self, name, n_in):
        assert len(self._vectors[name]) == n_in
        return Weight(name, 0, n_in, "F32")

    def packed(self, weight):
        if weight not in self._packed:
            ggml_type, blocks, n_in = self._matrices[weight.name]
            rows = blocks[weight.row_start : weight.row_start + weight.n_out]
            self._packed[weight] = pack(weight.name, ggml_type, (weight.n_out, n_in), rows.reshape(-1))
        return self._packed[weight]

    def values(self, weight):
        vector = self._vectors[weight.name]
        result = np.zeros(padded(len(vector), VECTOR_PAD), np.float32)
        result[: len(vector)] = vector
        return result

    def table(self, weight):
        return self._matrices[weight.name][1]
