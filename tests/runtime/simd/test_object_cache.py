"""Nothing about the cache of compiled kernels stops the program: another folder or none is used, and it is said."""

import errno
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import platformdirs
import pytest

from llmrun.runtime.kernels import kernel_set
from llmrun.runtime.kernels.kernel_set import LOOP_KERNELS, KernelSet, compile_missing
from llmrun.runtime.simd import object_cache
from llmrun.runtime.simd.isa import TARGETS
from llmrun.runtime.simd.object_cache import (
    KEEP_COMPILERS,
    KEEP_VERSIONS,
    MAGIC,
    ObjectCache,
    read_object,
    write_object,
)

from ..machine import BEST

TARGET = TARGETS[BEST]


@pytest.fixture(scope="module")
def objects():
    """The smallest kernels, compiled once."""
    return dict(compile_missing([*LOOP_KERNELS], TARGET))


@pytest.fixture
def compile_really(monkeypatch):
    """Undo what ``folders`` does: for tests of compiling."""
    return lambda: monkeypatch.setattr(kernel_set, "compile_missing", compile_missing)


@pytest.fixture
def folders(tmp_path, monkeypatch, objects):
    """Cache and temporary folder of this test's own; nothing is shipped; compiling takes no time."""
    monkeypatch.setattr(kernel_set, "compile_missing", lambda names, _: [(name, objects[name]) for name in names])
    monkeypatch.setenv("LLMRUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(object_cache.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.setattr(object_cache, "SHIPPED", tmp_path / "nothing")
    (tmp_path / "tmp").mkdir()
    return tmp_path


def base_of(cache):
    return cache.folder.parent


def path_of(kernel):
    return ObjectCache().path(TARGET.name, kernel)


def compiles():
    """Return the number of kernels compiled by a set of the two smallest ones, and its notices."""
    kernels = KernelSet([], TARGET)
    assert all(kernels.address(name) for name in LOOP_KERNELS)
    return kernels.n_compiled, kernels.notices


def test_objects_are_kept_and_found_again(folders):
    assert compiles() == (2, [])
    assert compiles() == (0, [])
    folder = ObjectCache().folder
    assert folder.is_relative_to(folders / "cache")
    assert sorted(p.name for p in (folder / TARGET.name).iterdir()) == [path_of(name).name for name in ("lead", "work")]
    for path in (folders / "cache", folders / "cache" / "objects", folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


DAMAGE = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "magic only": lambda data: data[: len(MAGIC)],
    "one bit": lambda data: data[:-100] + bytes([data[-100] ^ 4]) + data[-99:],
    "foreign": lambda data: b"\x7fELF" + bytes(1000),
    "old magic": lambda data: b"llmrun-object-0\n" + data[len(MAGIC) :],
    "longer": lambda data: data + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_not_sound_is_compiled_again(folders, damage):
    compiles()
    path = path_of("lead")
    sound = path.read_bytes()
    path.write_bytes(DAMAGE[damage](sound))
    assert compiles() == (1, [])
    assert path.read_bytes() == sound


def test_a_folder_in_the_place_of_a_file(folders):
    path = path_of("lead")
    (path / "inside").mkdir(parents=True)
    n_compiled, notices = compiles()
    assert n_compiled == 2
    (notice,) = notices
    assert notice.startswith(f"compiled kernels are not kept: {ObjectCache().folder}: ")


def test_other_sources_have_another_object(folders, monkeypatch):
    one, two = "1" * 16, "2" * 16
    for module_hash, content in ((one, b"old"), (two, b"new")):
        monkeypatch.setattr(object_cache, "module_hash", lambda module, value=module_hash: value)
        assert ObjectCache().get("neon", "glu") is None
        ObjectCache().put("neon", "glu", content)
    assert ObjectCache().get("neon", "glu") == b"new"
    monkeypatch.setattr(object_cache, "module_hash", lambda module: one)
    assert ObjectCache().get("neon", "glu") == b"old"


def test_old_versions_are_deleted(folders, monkeypatch):
    other = ObjectCache().path("neon", "rope")
    ObjectCache().put("neon", "rope", b"x")
    for i in range(KEEP_VERSIONS + 2):
        monkeypatch.setattr(object_cache, "module_hash", lambda module, i=i: f"{i:016x}")
        path = ObjectCache().path("neon", "glu")
        ObjectCache().put("neon", "glu", b"x")
        os.utime(path, (i, i))
    names = {p.name for p in path.parent.iterdir()}
    assert names == {other.name, *(f"glu.{i:016x}.o" for i in range(2, KEEP_VERSIONS + 2))}


def test_what_old_compilers_made_is_deleted(folders, monkeypatch):
    for i in range(KEEP_COMPILERS + 2):
        monkeypatch.setattr(object_cache, "compilers_hash", lambda i=i: f"{i:08x}")
        folder = ObjectCache().folder
        os.utime(folder, (i, i))
    assert {p.name for p in folder.parent.iterdir()} == {f"{i:08x}" for i in range(2, KEEP_COMPILERS + 2)}


# ---- folders that cannot be used --------------------------------------------------------------


def test_a_folder_that_cannot_be_made(folders):
    (folders / "cache").write_text("a file")
    cache = ObjectCache()
    assert base_of(cache).is_relative_to(folders / "tmp")
    (notice,) = cache.notices
    assert notice.startswith(f"compiled kernels are kept in {base_of(cache)}: {folders / 'cache' / 'objects'}: ")
    assert compiles()[0] == 2
    assert compiles() == (0, [notice])


def test_no_folder_at_all(folders):
    (folders / "cache").write_text("a file")
    (folders / "tmp").rmdir()
    (folders / "tmp").write_text("another file")
    n_compiled, notices = compiles()
    assert n_compiled == 2
    (notice,) = notices  # once
    assert notice.startswith("compiled kernels are not kept: ")
    assert "\n" not in notice


@pytest.mark.parametrize("part", ["cache", "cache/objects"])
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o702])
def test_a_folder_that_others_can_write_to_is_refused(folders, part, mode):
    """Machine code lies there. Nothing in it is read either."""
    planted = ObjectCache()
    planted.put(TARGET.name, "lead", b"evil")
    (folders / part).chmod(mode)
    cache = ObjectCache()
    assert cache.get(TARGET.name, "lead") is None
    assert base_of(cache).is_relative_to(folders / "tmp")
    assert f"other users can write to {Path(part).name}" in cache.notices[0]


def test_a_folder_of_another_user_is_refused(folders, monkeypatch):
    ObjectCache().put(TARGET.name, "lead", b"evil")
    monkeypatch.setattr(object_cache.os, "getuid", lambda: 12345)
    cache = ObjectCache()
    assert cache.get(TARGET.name, "lead") is None
    assert cache.folder is None
    assert "belongs to another user" in cache.notices[0]


def test_a_link_of_another_user_is_refused(folders, monkeypatch):
    """In a shared temporary folder, anyone can make a link with our name that points to a folder of ours."""
    (folders / "mine").mkdir(mode=0o700)
    (folders / "cache").symlink_to(folders / "mine")
    assert ObjectCache().folder is not None  # our own link is fine
    if os.getuid() != 0:
        pytest.skip("only root can give a link away")
    os.chown(folders / "cache", 12345, 12345, follow_symlinks=False)
    cache = ObjectCache()
    assert base_of(cache).is_relative_to(folders / "tmp")
    assert "belongs to another user" in cache.notices[0]


def test_a_read_only_folder(folders, monkeypatch):
    """Root may write anywhere, so that the refusal has to be put there."""
    real = Path.write_bytes

    def write_bytes(self, data):
        if self.is_relative_to(folders / "cache"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    cache = ObjectCache()
    assert base_of(cache).is_relative_to(folders / "tmp")
    assert "Read-only file system" in cache.notices[0]


def test_a_full_disk(folders, monkeypatch):
    """The first object that cannot be written ends the writing; what was compiled is used, and it is said once."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(object_cache.tempfile, "mkstemp", full)
    n_compiled, notices = compiles()
    assert n_compiled == 2
    (notice,) = notices
    assert notice.endswith(": No space left on device")


def test_a_disk_that_fills_while_an_object_is_written(folders, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.file.write(data[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fdopen = os.fdopen
    monkeypatch.setattr(object_cache.os, "fdopen", lambda handle, mode: Full(fdopen(handle, mode)))
    path = folders / "objects" / "x.o"
    with pytest.raises(OSError, match="No space left"):
        write_object(path, b"data")
    assert not list(path.parent.iterdir())  # no half-written file stays


@pytest.mark.parametrize("home", ["~/.cache/llmrun", "relative"])
def test_without_a_home_folder_nothing_is_made_in_the_working_folder(folders, monkeypatch, home):
    monkeypatch.delenv("LLMRUN_CACHE")
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, **__: Path(home))
    monkeypatch.chdir(folders)
    cache = ObjectCache()
    assert base_of(cache).is_relative_to(folders / "tmp")
    assert sorted(p.name for p in folders.iterdir()) == ["tmp"]


def test_a_home_that_nobody_knows(folders, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no home")

    monkeypatch.delenv("LLMRUN_CACHE")
    monkeypatch.setattr(platformdirs, "user_cache_path", fails)
    assert base_of(ObjectCache()).is_relative_to(folders / "tmp")


# ---- other processes --------------------------------------------------------------------------

START = (
    "from llmrun.runtime.kernels.kernel_set import KernelSet; from llmrun.runtime.simd.isa import TARGETS;"
    f"k = KernelSet(['scale'], TARGETS['{BEST}']); print(k.n_compiled, k.notices, 'numba' in __import__('sys').modules)"
)


def start(folders, **options):
    return subprocess.Popen(
        [sys.executable, "-c", START], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_two_processes_at_once(folders):
    """Both compile, both write, both run; afterwards every object is sound and nobody needs Numba."""
    processes = [start(folders) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        assert "[]" in out
    out, _ = start(folders).communicate(timeout=60)
    assert out.strip() == "0 [] False"
    files = sorted((ObjectCache().folder / TARGET.name).iterdir())
    assert [p.name for p in files] == [path_of(name).name for name in ("lead", "scale", "work")]
    assert all(read_object(p) for p in files)


def test_a_working_folder_that_was_deleted(folders):
    gone = folders / "gone"
    gone.mkdir()
    command = f'cd {gone} && rmdir {gone} && exec {sys.executable} -c "{START}"'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("3 []")


def test_without_a_home_variable(folders):
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "LLMRUN_CACHE")}
    environment |= {"XDG_CACHE_HOME": str(folders / "xdg"), "PYTHONPATH": os.pathsep.join(sys.path)}
    out, err = start(folders, env=environment, cwd=folders / "tmp").communicate(timeout=120)
    assert (out.strip(), err) == ("3 [] False", "")
    assert not list((folders / "tmp").iterdir())


def test_when_processes_cannot_be_started_kernels_are_compiled_here(folders, compile_really, monkeypatch):
    compile_really()
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert compiles() == (2, [])


def test_a_compiling_process_ends_when_its_parent_has_gone():
    """In the middle of a kernel: what it holds open would keep a reader of its parent's messages waiting."""
    code = "from llmrun.runtime.kernels.kernel_set import compile_main; compile_main()"
    names = ["attention_f16"] * 20  # minutes
    started = time.monotonic()
    command = [sys.executable, "-c", code, "0", BEST, *names]  # process 0 is nobody's parent
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert time.monotonic() - started < 30
