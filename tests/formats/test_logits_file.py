"""Files of log-probabilities: llama-perplexity's are read, written ones are the same, damaged ones refused."""

from pathlib import Path

import numpy as np
import pytest

from llmrun.formats.errors import CapacityError, ConfigError, FormatError
from llmrun.formats.logits_file import HEAD_BYTES, LogitsFile, LogitsWriter, encode, n_scored, record_words

GOLDEN = Path(__file__).parents[1] / "goldens" / "logits" / "qwen2.base"
N_CTX, N_VOCAB, N_CHUNK = 32, 301, 7


def test_reads_what_llama_perplexity_writes():
    file = LogitsFile(GOLDEN)
    assert (file.n_ctx, file.n_vocab, file.n_chunk, file.tokens.shape) == (N_CTX, N_VOCAB, N_CHUNK, (N_CHUNK, N_CTX))
    log_p = file.log_p(0, 105)
    total = np.exp(log_p.astype(np.float64)).sum(axis=1)
    # Rounded to steps of 16 / 65535, and what is cut off is raised to the floor.
    assert total == pytest.approx(1, abs=8 / 65535 + N_VOCAB * np.exp(-16))
    assert (file.log_p(7, 9, 100, 200) == log_p[7:9, 100:200]).all()


def test_writing_log_probabilities_again_changes_nothing(tmp_path):
    """The softmax of log-probabilities is themselves: the same steps, so the same integers."""
    file = LogitsFile(GOLDEN)
    with LogitsWriter(tmp_path / "copy", file.tokens, file.n_vocab) as writer:
        for row in range(0, 105, 8):
            writer.add(file.log_p(row, min(row + 8, 105)))
        writer.finish()
    copy = LogitsFile(tmp_path / "copy")
    assert (copy.tokens == file.tokens).all()
    np.testing.assert_allclose(copy.log_p(0, 105), file.log_p(0, 105), rtol=0, atol=2e-4)
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_record_of_known_logits():
    """step = range / 65535, floor = lowest log-probability; what is 16 below the largest is cut off."""
    records = encode(np.array([[2, 1, -30], [5, 5, 5]], np.float32))
    head = records[:, :4].copy().view("<f4")
    log_sum = np.log(1 + np.exp(-1) + np.exp(-32))
    assert head[0].tolist() == pytest.approx([16 / 65535, -16 - log_sum], rel=1e-6)
    assert records[0, 4:7].tolist() == [65535, round(65535 * 15 / 16), 0]
    assert head[1].tolist() == pytest.approx([0, -np.log(3)], rel=1e-6)
    assert records[1, 4:].tolist() == [0, 0, 0, 0]


def test_an_unfinished_file_leaves_nothing(tmp_path):
    with LogitsWriter(tmp_path / "x", np.zeros((1, 8), np.int32), 4) as writer:
        writer.add(np.zeros((2, 4), np.float32))
    assert not list(tmp_path.iterdir())


def test_folders_and_disks_that_do_not_do(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="cannot be written"):
        LogitsWriter(tmp_path / "no" / "x", np.zeros((1, 8), np.int32), 4)
    with pytest.raises(CapacityError, match="the disk has"):
        LogitsWriter(tmp_path / "x", np.zeros((1, 8), np.int32), 10**15)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("n", [0, 7, HEAD_BYTES - 1, HEAD_BYTES, 1000, 65175])
def test_every_cut_is_refused(n, tmp_path):
    (tmp_path / "cut").write_bytes(GOLDEN.read_bytes()[:n])
    with pytest.raises(FormatError, match="cut"):
        LogitsFile(tmp_path / "cut")


def _changed(offset, value):
    data = bytearray(GOLDEN.read_bytes())
    data[offset : offset + 4] = np.array([value], "<i4").tobytes()
    return bytes(data)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, 0, "not a file of llama-perplexity"),
        (8, -1, "not possible"),
        (8, 2**31 - 1, "not possible"),
        (12, 0, "not possible"),
        (12, 2**23, "expected [0-9]+ for 7 chunks"),
        (16, 2**24, "expected [0-9]+ for"),
        (20, 301, "token ids outside"),
        (24, -1, "token ids outside"),
    ],
)
def test_hostile_heads(offset, value, message, tmp_path):
    (tmp_path / "bad").write_bytes(_changed(offset, value))
    with pytest.raises(FormatError, match=message):
        LogitsFile(tmp_path / "bad")


def test_values_that_are_no_numbers(tmp_path):
    offset = HEAD_BYTES + 4 * N_CTX * N_CHUNK + 2 * record_words(N_VOCAB)
    (tmp_path / "bad").write_bytes(_changed(offset, 0x7F80_0000))
    file = LogitsFile(tmp_path / "bad")
    file.log_p(0, 1)
    with pytest.raises(FormatError, match="no numbers"):
        file.log_p(1, 2)


def test_counts():
    assert (record_words(301), record_words(300), n_scored(32), n_scored(5)) == (306, 304, 15, 2)
