"""Files of importance matrices: llama-imatrix's are read and written again byte for byte, damaged ones refused."""

import struct
from pathlib import Path

import numpy as np
import pytest

from llmrun.formats.errors import ConfigError, FormatError
from llmrun.formats.imatrix_file import ImatrixFile, read_imatrix, write_dat, write_gguf

from ..tiny_gguf import write_gguf as write_any_gguf

GOLDENS = Path(__file__).parents[1] / "goldens" / "imatrix"


def test_reads_gguf():
    file = read_imatrix(GOLDENS / "qwen2.gguf")
    assert (file.chunk_size, file.n_chunk, file.datasets, file.is_legacy) == (64, 3, ["text.txt"], False)
    assert len(file.sums) == 3 * 7
    assert {c.tolist()[0] for c in file.counts.values()} == {192}
    assert file.sums["blk.1.ffn_down.weight"].shape == (1, 128)


def test_reads_dat_as_means_times_chunks():
    gguf, dat = read_imatrix(GOLDENS / "qwen2.gguf"), read_imatrix(GOLDENS / "qwen2.dat")
    assert (dat.chunk_size, dat.n_chunk, dat.datasets, dat.is_legacy) == (0, 3, ["text.txt"], True)
    assert dat.sums.keys() == gguf.sums.keys()
    for name, sums in dat.sums.items():
        assert dat.counts[name].tolist() == [3]
        np.testing.assert_allclose(sums, gguf.sums[name] / 64, rtol=2e-7)


@pytest.mark.parametrize(("name", "write"), [("qwen2.gguf", write_gguf), ("qwen2.dat", write_dat)])
def test_writes_what_llama_imatrix_writes(name, write, tmp_path):
    write(tmp_path / "copy", read_imatrix(GOLDENS / "qwen2.gguf"))
    assert (tmp_path / "copy").read_bytes() == (GOLDENS / name).read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_experts_keep_their_counts(tmp_path):
    sums, counts = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([5, 0])
    write_gguf(tmp_path / "e.gguf", ImatrixFile(sums={"e": sums}, counts={"e": counts}, chunk_size=4, n_chunk=1))
    read = read_imatrix(tmp_path / "e.gguf")
    assert read.sums["e"].tolist() == sums.tolist()
    assert read.counts["e"].tolist() == [5, 0]
    write_dat(tmp_path / "e.dat", read)
    assert read_imatrix(tmp_path / "e.dat").sums["e"][0].tolist() == pytest.approx([0, 0.4, 0.8, 2, 2, 2])


def test_a_dat_file_needs_the_chunk_size(tmp_path):
    with pytest.raises(ConfigError, match="size of the chunks is not known"):
        write_dat(tmp_path / "x", read_imatrix(GOLDENS / "qwen2.dat"))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        write_gguf(tmp_path / "no" / "x", read_imatrix(GOLDENS / "qwen2.gguf"))


def test_every_cut_of_a_dat_file_is_refused_or_whole(tmp_path):
    data, path = (GOLDENS / "qwen2.dat").read_bytes(), tmp_path / "cut"
    body = len(data) - 4 - 4 - len("text.txt")  # what follows may be missing
    for n in [*range(60), *range(60, body, 97), body - 1]:
        path.write_bytes(data[:n])
        with pytest.raises(FormatError, match="cut"):
            read_imatrix(path)
    path.write_bytes(data[:body])
    assert len(read_imatrix(path).sums) == 21


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (struct.pack("<i", -1), "expected 1 to"),
        (struct.pack("<i", 2**30), "expected 1 to"),
        (struct.pack("<ii", 1, 2**31 - 1), "a name of"),
        (struct.pack("<ii1sii", 1, 1, b"x", 1, 2**31 - 1), "ends within"),
        (struct.pack("<ii1sii", 1, 1, b"x", 1, 0), "has 0 values"),
        (struct.pack("<ii1siif", 1, 1, b"x", 1, 1, float("nan")), "no sum of squares"),
        (struct.pack("<ii1siif", 1, 1, b"x", 1, 1, -1.0), "no sum of squares"),
        (struct.pack("<ii1siif", 1, 1, b"x", -1, 1, 1.0), "no sum of squares"),
        (b"", "ends within"),
        (b"_logits_" * 8, "expected 1 to"),
    ],
)
def test_hostile_dat_files(data, message, tmp_path):
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(FormatError, match=message):
        read_imatrix(tmp_path / "bad")


META = {"imatrix.datasets": ["t"], "imatrix.chunk_count": 1, "imatrix.chunk_size": 4}
ONE, FOUR = np.ones(1, np.float32), np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({}, {"a.in_sum2": FOUR, "a.counts": ONE}, "is missing: no importance matrix"),
        (META, {"a.weight": FOUR}, "holds no importance matrix"),
        (META, {"a.in_sum2": FOUR}, "'a.counts' is missing"),
        (META, {"a.in_sum2": FOUR.astype(np.float16), "a.counts": ONE}, "other types than F32"),
        (META, {"a.in_sum2": FOUR, "a.counts": np.ones(3, np.float32)}, "4 sums for 3 counts"),
        (META, {"a.in_sum2": FOUR, "a.counts": ONE * np.nan}, "counts that are no numbers"),
        (META, {"a.in_sum2": FOUR * np.inf, "a.counts": ONE}, "no sum of squares"),
    ],
)
def test_gguf_files_that_are_something_else(metadata, tensors, message, tmp_path):
    write_any_gguf(tmp_path / "bad.gguf", metadata, tensors)
    with pytest.raises(FormatError, match=message):
        read_imatrix(tmp_path / "bad.gguf")


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(FormatError, match="cannot be read: No such file"):
        read_imatrix(tmp_path / "none")
