"""What can happen to a file besides its contents: kinds of file, rights, changes while it is open."""

import mmap
import os
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from llmrun.formats import byte_file
from llmrun.formats.byte_file import ByteFile
from llmrun.formats.errors import FormatError
from llmrun.formats.gguf import GgufFile

from ..tiny_gguf import write_gguf

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX")


def refused(path, message):
    with pytest.raises(FormatError, match=message) as caught:
        GgufFile.open(path)
    assert str(caught.value).isprintable()


def test_missing_file(tmp_path):
    refused(tmp_path / "m.gguf", r"m\.gguf: cannot be opened: No such file or directory$")


def test_directory(tmp_path):
    refused(tmp_path, r": not a regular file$")


def test_empty_file(tmp_path):
    (tmp_path / "m.gguf").touch()
    refused(tmp_path / "m.gguf", r"m\.gguf: the file is empty$")


@posix_only
def test_fifo_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "m.gguf")
    refused(tmp_path / "m.gguf", r"m\.gguf: not a regular file$")


@posix_only
def test_device():
    refused("/dev/zero", r"/dev/zero: not a regular file$")


@posix_only
def test_link_to_itself(tmp_path):
    (tmp_path / "m.gguf").symlink_to("m.gguf")
    refused(tmp_path / "m.gguf", r"m\.gguf: cannot be opened: ")


def test_file_without_permission(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")

    def deny(*args):  # a mode would not stop root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", deny)
    refused(tmp_path / "m.gguf", r"m\.gguf: cannot be opened: Permission denied$")


@pytest.mark.parametrize("name", ["a\0b.gguf", "m\n\x1b[31m.gguf", "\udcff.gguf"])
def test_strange_path_is_one_printable_line(tmp_path, name):
    refused(tmp_path / name, "cannot be opened: ")


def test_file_that_cannot_be_mapped(tmp_path, monkeypatch):
    path = tmp_path / "m"
    path.write_bytes(b"GGUF")

    def fail(*args, **options):
        raise OSError(19, "No such device")

    monkeypatch.setattr(mmap, "mmap", fail)
    with pytest.raises(FormatError, match=r"cannot be mapped: .*No such device. Try --no-mmap$"):
        ByteFile.open(path)
    with pytest.raises(FormatError, match=r"the version at byte 4 needs 4 bytes, 0 left"):
        GgufFile.open(path, use_mmap=False)


def n_open_files():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="Linux")  # noqa: PTH112
@pytest.mark.parametrize("use_mmap", [True, False])
def test_no_file_stays_open(tmp_path, use_mmap):
    good = write_gguf(tmp_path / "good.gguf", {}, {"a": np.zeros(9, np.float32)})
    (tmp_path / "bad.gguf").write_bytes(good.read_bytes()[:-32])
    before = n_open_files()
    with pytest.raises(FormatError):
        GgufFile.open(tmp_path / "bad.gguf", use_mmap=use_mmap)
    assert n_open_files() == before
    with GgufFile.open(good, use_mmap=use_mmap):
        assert n_open_files() > before
    assert n_open_files() == before


@pytest.fixture(params=["preadv", "seek"])
def unmapped(request, tmp_path, monkeypatch):
    """A file of 100,000 bytes, read as on POSIX and as on Windows."""
    if request.param == "seek":
        monkeypatch.delattr(os, "preadv", raising=False)
    elif not hasattr(os, "preadv"):
        pytest.skip("no preadv")
    path = tmp_path / "f"
    path.write_bytes(np.arange(25_000, dtype="<u4").tobytes())
    file = ByteFile.open(path, use_mmap=False)
    yield file
    file.close()


def test_unmapped_reads(unmapped):
    whole = unmapped.path.read_bytes()
    for offset, n in [(0, 0), (0, 100_000), (99_999, 1), (100_000, 0), (333, 4567)]:
        assert unmapped.read(offset, n) == whole[offset : offset + n]
        assert unmapped.array(offset, n).tobytes() == whole[offset : offset + n]
    assert unmapped.array(4, 8).flags.owndata
    unmapped.release(0, 100_000)  # nothing to do, no error
    for offset, n in [(-1, 1), (0, -1), (100_000, 1), (0, 100_001), (2**64, 1)]:
        with pytest.raises(FormatError, match="outside the file of 100000"):
            unmapped.array(offset, n)


def test_threads_read_what_they_asked_for(unmapped):
    wrong = []

    def read(seed):
        for offset in np.random.default_rng(seed).integers(0, 20_000, 300).tolist():
            got = unmapped.array(4 * offset, 4000).view("<u4")
            if not np.array_equal(got, np.arange(offset, offset + 1000)):
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_short_reads_are_put_together(unmapped, monkeypatch):
    whole = unmapped.path.read_bytes()
    read_into = ByteFile._read_into
    monkeypatch.setattr(ByteFile, "_read_into", lambda self, view, offset: read_into(self, view[:777], offset))
    assert unmapped.read(5, 50_000) == whole[5:50_005]


def test_failing_disk_is_one_line(unmapped, monkeypatch):
    def fail(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail, raising=False)
    with pytest.raises(FormatError, match=r"f: cannot be read: Input/output error$"):
        unmapped.array(0, 10)


def test_closed_file_cannot_be_read(unmapped):
    unmapped.close()
    with pytest.raises(ValueError, match="is closed"):
        unmapped.read(0, 10)


def test_file_truncated_while_open(unmapped):
    with unmapped.path.open("r+b") as file:
        file.truncate(50_000)
    with pytest.raises(FormatError, match="the file ended at byte 50000, it had 100000 when opened"):
        unmapped.array(40_000, 20_000)
    with pytest.raises(FormatError, match="changed while it was open, expected 100000 bytes, got 50000"):
        unmapped.check_unchanged()


@pytest.mark.parametrize("use_mmap", [True, False])
def test_file_written_to_while_open(tmp_path, use_mmap):
    path = write_gguf(tmp_path / "m.gguf", {}, {"a": np.zeros(9, np.float32)})
    with GgufFile.open(path, use_mmap=use_mmap) as model:
        model.check_unchanged()
        os.utime(path, ns=(1, 1))
        with pytest.raises(FormatError, match=r"m\.gguf: the file was written to while it was open$"):
            model.check_unchanged()


def resident_bytes(path):
    """Sum of the resident pages of the file's mappings in this process."""
    total, inside = 0, False
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
        for line in lines:
            if "-" in line.split(" ", 1)[0]:
                inside = line.rstrip().endswith(str(path))
            elif inside and line.startswith("Rss:"):
                total += int(line.split()[1]) * 1024
    return total


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="Linux")  # noqa: PTH110
def test_release_drops_the_pages(tmp_path):
    tensors = {name: np.full(1 << 20, i, np.float32) for i, name in enumerate("abc")}
    path = write_gguf(tmp_path / "m.gguf", {}, tensors)
    with GgufFile.open(path) as model:
        for info in model.tensors.values():
            assert model.data(info).view(np.float32).sum() == tensors[info.name].sum()
        before = resident_bytes(path)
        model.release(model.tensor("b"))
        assert before >= 12 << 20
        assert resident_bytes(path) <= before - (4 << 20)
        for info in model.tensors.values():  # the contents come back, the neighbours too
            assert np.array_equal(model.data(info).view(np.float32), tensors[info.name])


def test_release_without_madvise_does_nothing(tmp_path, monkeypatch):
    monkeypatch.delattr(byte_file.mmap, "MADV_DONTNEED", raising=False)
    path = write_gguf(tmp_path / "m.gguf", {}, {"a": np.arange(9, dtype=np.float32)})
    with GgufFile.open(path) as model:
        model.release(model.tensor("a"))
        assert model.data(model.tensor("a")).view(np.float32).tolist() == list(range(9))


@pytest.fixture
def long_file(tmp_path):
    """A mapped file of 5.5 MB."""
    path = tmp_path / "f"
    path.write_bytes(bytes(11 << 19))
    file = ByteFile.open(path)
    yield file
    file.close()


class Disk:
    """Stands in for ``os.preadv`` where it tells what is cached; remembers what was read."""

    def __init__(self, monkeypatch, cached):
        self.cached, self.pieces, self.fds = cached, [], set()
        monkeypatch.setattr(os, "RWF_NOWAIT", 8, raising=False)
        monkeypatch.setattr(os, "preadv", self.preadv, raising=False)

    def preadv(self, fd, buffers, offset, flags=0):
        n = sum(map(len, buffers))
        self.fds.add(fd)
        if not flags:
            self.pieces.append((offset, n))
        elif offset not in self.cached:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return n


MB = 1 << 20


@pytest.mark.parametrize(
    ("cached", "want"), [((), [2, 3]), ((2 * MB,), [2, 3]), ((3 * MB,), [2, 3]), ((2 * MB, 3 * MB), [])]
)
def test_fetch_reads_a_range_that_is_not_all_there(long_file, monkeypatch, cached, want):
    disk = Disk(monkeypatch, cached)
    long_file.fetch(2 * MB + 5, MB + 7)
    assert disk.pieces == [(n * MB, MB) for n in want]
    for fd in disk.fds:  # closed
        with pytest.raises(OSError, match="file descriptor"):
            os.fstat(fd)
    with pytest.raises(FormatError, match="outside the file"):
        long_file.fetch(5 * MB, MB)


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="Linux")
def test_what_is_fetched_is_cached_and_not_resident(long_file):
    os.sync()
    os.posix_fadvise(long_file._fd, 0, 0, os.POSIX_FADV_DONTNEED)
    long_file.fetch(0, long_file.size)
    try:
        assert all(byte_file._is_cached(long_file._fd, offset) for offset in range(0, long_file.size, mmap.PAGESIZE))
    except OSError:
        pytest.skip("this file system does not tell")
    assert resident_bytes(long_file.path) == 0


@pytest.mark.parametrize("has_advice", [True, False])
def test_fetch_where_nobody_tells_what_is_cached(long_file, monkeypatch, has_advice):
    """As on macOS, which is asked for the pages, and on Windows."""
    seen = []
    monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)
    monkeypatch.setattr(
        long_file, "_map", SimpleNamespace(madvise=lambda *a: seen.append(a), close=long_file._map.close)
    )
    if has_advice:
        monkeypatch.setattr(byte_file.mmap, "MADV_WILLNEED", 3, raising=False)
    else:
        monkeypatch.delattr(byte_file.mmap, "MADV_WILLNEED", raising=False)
    long_file.fetch(2 * MB + 5, MB + 7)
    assert seen == [(3, 2 * MB, MB + 12)] * has_advice


def test_fetch_without_mapping_does_nothing(unmapped, monkeypatch):
    disk = Disk(monkeypatch, ())
    unmapped.fetch(0, 100_000)
    assert not disk.fds


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), OSError(95, "Operation not supported")])
def test_fetch_ends_where_the_disk_does(long_file, monkeypatch, error):
    disk = Disk(monkeypatch, ())

    def fail(*args):
        disk.fds.add(args[0])
        raise error

    monkeypatch.setattr(os, "preadv", fail)
    long_file.fetch(0, long_file.size)
    assert len(disk.fds) == 1


def test_fetch_ends_with_the_file(long_file, monkeypatch):
    disk = Disk(monkeypatch, ())

    def read_and_close(fd, buffers, offset, flags=0):
        n = disk.preadv(fd, buffers, offset, flags)
        long_file.close()
        os.fstat(fd)  # still open
        return n

    monkeypatch.setattr(os, "preadv", read_and_close)
    long_file.fetch(0, long_file.size)
    assert disk.pieces == [(0, MB)]
    long_file.fetch(0, 1)
    assert disk.pieces == [(0, MB)]
