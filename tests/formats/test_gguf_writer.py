"""Files that llmrun writes: read back by the gguf package, whole or not there at all."""

import errno
import os
import signal
import subprocess
import sys

import gguf
import numpy as np
import pytest

from llmrun.formats import atomic_file
from llmrun.formats.atomic_file import AtomicFile
from llmrun.formats.errors import CapacityError, ConfigError
from llmrun.formats.ggml_types import GgmlType
from llmrun.formats.gguf import GgufFile
from llmrun.formats.gguf_writer import GgufWriter, TensorEntry
from llmrun.formats.meta_value import MetaValue, read_values
from llmrun.formats.metadata import ValueType

METADATA = {
    "general.architecture": MetaValue.text("llama"),
    "general.alignment": MetaValue.u32(64),
    "a.f32": MetaValue.f32(1.5),
    "a.bool": MetaValue.boolean(True),
    "a.i64": MetaValue(ValueType.I64, -(1 << 40)),
    "a.bytes": MetaValue.text(b"\xff\xfe"),
    "a.texts": MetaValue.texts(["x", "é", b"\xff"]),
    "a.bools": MetaValue.numbers(ValueType.BOOL, [True, False]),
    "a.floats": MetaValue.numbers(ValueType.F32, [1, 2.5]),
    "a.none": MetaValue.texts([]),
}
ENTRIES = [TensorEntry("norm", (5,), GgmlType.F32), TensorEntry("w", (2, 3, 32), GgmlType.Q8_0)]


def data(entry):
    return np.random.default_rng(len(entry.name)).integers(0, 200, entry.n_bytes, dtype=np.uint8)


def write(path):
    with GgufWriter(path, METADATA, ENTRIES) as writer:
        for entry in ENTRIES:
            writer.write(data(entry)[:10])
            writer.write(data(entry)[10:])
        writer.finish()


def test_the_gguf_package_reads_what_was_written(tmp_path):
    write(tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert [t.name for t in reader.tensors] == ["norm", "w"]
    assert reader.tensors[1].shape.tolist() == [32, 3, 2]
    assert reader.tensors[1].tensor_type == gguf.GGMLQuantizationType.Q8_0
    for tensor, entry in zip(reader.tensors, ENTRIES, strict=True):
        assert tensor.data_offset % 32 == 0
        assert tensor.data.tobytes() == data(entry).tobytes()
    assert reader.fields["a.f32"].contents() == 1.5
    assert reader.fields["a.i64"].contents() == -(1 << 40)


def test_metadata_is_the_same_after_writing_and_reading(tmp_path):
    write(tmp_path / "m.gguf")
    with GgufFile.open(tmp_path / "m.gguf") as file:
        values = read_values(file.metadata)
    assert list(values) == [key for key in METADATA if key != "general.alignment"]
    for key, value in values.items():
        want = METADATA[key]
        assert (value.value_type, value.is_array) == (want.value_type, want.is_array)
        if isinstance(want.value, np.ndarray):
            assert np.array_equal(value.value, want.value)
        else:
            raw = [v.encode() if isinstance(v, str) else v for v in want.value] if want.is_array else want.value
            assert value.value == (raw.encode() if isinstance(raw, str) else raw)


def test_nothing_is_there_before_the_end_and_nothing_is_left_without_it(tmp_path):
    path = tmp_path / "m.gguf"
    with GgufWriter(path, METADATA, ENTRIES) as writer:
        writer.write(data(ENTRIES[0]))
        assert not path.exists()
    assert list(tmp_path.iterdir()) == []


def test_an_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with AtomicFile(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
        file.finish()
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_without_nameless_files_a_hidden_one_is_used_and_cleared_away(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic_file.AtomicFile, "_open_nameless", lambda self: -1)
    path = tmp_path / "f"
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (tmp_path / f".f.part-{child.pid}.abc").write_bytes(b"of a process that is gone")
    (tmp_path / f".f.part-{os.getpid()}.abc").write_bytes(b"of one that runs")
    with AtomicFile(path) as file:
        file.write(b"x")
        file.finish()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".f.part-{os.getpid()}.abc", "f"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="no nameless files here")
def test_a_process_that_is_killed_leaves_nothing(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from llmrun.formats.atomic_file import AtomicFile\n"
        "f = AtomicFile(Path(sys.argv[1])); f.write(b'x' * 1000); print('ready', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "f")], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"ready\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(tmp_path):
    with pytest.raises(CapacityError, match=r"f: needs 1000000\.00 GB, the disk has [\d.]+ GB free"):
        AtomicFile(tmp_path / "f", 10**15)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_told_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="f: cannot be written: No such file"):
        AtomicFile(tmp_path / "missing" / "f")


def test_a_disk_that_becomes_full_is_told_in_one_line(tmp_path, monkeypatch):
    def full(_fd, _data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with AtomicFile(tmp_path / "f") as file:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(CapacityError, match="f: the disk is full"):
            file.write(b"x")
    assert list(tmp_path.iterdir()) == []


def test_long_names_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="name of at most 63 bytes"):
        GgufWriter(tmp_path / "m", {}, [TensorEntry("x" * 64, (1,), GgmlType.F32)])


def test_data_that_do_not_fit_are_a_bug(tmp_path):
    with GgufWriter(tmp_path / "m", {}, ENTRIES) as writer:
        with pytest.raises(ValueError, match="21 bytes for norm"):
            writer.write(bytes(21))
        with pytest.raises(ValueError, match="norm is not complete"):
            writer.finish()
