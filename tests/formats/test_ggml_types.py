"""The table of GGML types against the ``gguf`` package's."""

import gguf
import pytest

from llmrun.formats.ggml_types import BLOCK, FILE_TYPES, GgmlType, row_bytes


def test_numbers_and_names_equal_gguf():
    theirs = {t.name: int(t) for t in gguf.GGMLQuantizationType}
    ours = {t.name: int(t) for t in FILE_TYPES}
    assert ours == {name: theirs[name] for name in ours}
    assert set(theirs) >= set(ours)
    if gguf.GGMLQuantizationType.__members__.keys() - set(ours):  # a newer gguf knows more
        assert max(ours.values()) < min(theirs[name] for name in theirs.keys() - ours.keys())


def test_block_sizes_equal_gguf():
    assert BLOCK.keys() == set(GgmlType)
    assert {int(t): BLOCK[t] for t in FILE_TYPES} == {
        int(t): gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(t)] for t in FILE_TYPES
    }


@pytest.mark.parametrize("ggml_type", GgmlType)
def test_row_bytes(ggml_type):
    n_weight, n_byte = BLOCK[ggml_type]
    assert row_bytes(ggml_type, 7 * n_weight) == 7 * n_byte
    if n_weight > 1:
        with pytest.raises(ValueError, match=f"not a whole number of {ggml_type.name} blocks"):
            row_bytes(ggml_type, n_weight + 1)
