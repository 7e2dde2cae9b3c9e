"""Objects for every machine from this one: the same bytes each time, and the instructions that they are for."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from llmrun.runtime.kernels.registry import kernel_names
from llmrun.runtime.simd import object_cache
from llmrun.runtime.simd.build_objects import target_names
from llmrun.runtime.simd.isa import TARGETS
from llmrun.runtime.simd.object_cache import STAMP, ObjectCache, read_object
from llmrun.runtime.simd.object_file import symbols
from llmrun.runtime.simd.source_hash import all_kernels_hash

ROOT = Path(__file__).parents[3]
BUILT_TARGETS = ("x86-v2", "neon", "neon-dotprod", "neon-dotprod-macos")
BUILT_KERNELS = ("glu", "matmul_q8_0")


def build(folder, *, targets=BUILT_TARGETS, kernels=BUILT_KERNELS, processes=2, hash_seed=0, cache=None):
    """Build into a folder, with a cache that has nothing unless one is named; return what is printed."""
    command = [sys.executable, "-m", "llmrun.runtime.simd.build_objects", str(folder), "--processes", str(processes)]
    command += ["--targets", ",".join(targets), "--kernels", ",".join(kernels)]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "LLMRUN_CACHE": str(cache or folder / "cache")}
    return subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """The objects of some kernels, as {(target, kernel): bytes}."""
    folder = tmp_path_factory.mktemp("objects")
    build(folder)
    return folder, {
        (target, kernel): read_object(folder / all_kernels_hash() / target / f"{kernel}.o")
        for target in BUILT_TARGETS
        for kernel in BUILT_KERNELS
    }


def test_objects_define_their_kernel_and_need_nothing(objects):
    for (target, kernel), data in objects[1].items():
        undefined, defined = symbols(data)
        assert not undefined
        assert list(defined) == [f"_{kernel}" if target == "neon-dotprod-macos" else kernel]


def test_bytes_depend_on_neither_the_process_nor_the_order(objects, tmp_path):
    """Another hash seed, one process instead of two, one target after kernels of another one."""
    build(
        tmp_path,
        targets=("x86-v2", "neon-dotprod-macos"),
        kernels=("add", *BUILT_KERNELS[::-1]),
        processes=1,
        hash_seed=1,
    )
    for target in ("x86-v2", "neon-dotprod-macos"):
        for kernel in BUILT_KERNELS:
            again = read_object(tmp_path / all_kernels_hash() / target / f"{kernel}.o")
            assert again == objects[1][target, kernel], (target, kernel)


def n_sdot(data):
    """Count words that are SDOT on 16-byte vectors, by vector or by element (Arm ARM, C7.2)."""
    words = struct.unpack_from(f"<{len(data) // 4}I", data)
    return sum(word & 0xFFE0FC00 == 0x4E809400 or word & 0xFFC0F400 == 0x4F80E000 for word in words)


def test_dot_product_targets_use_sdot(objects):
    assert n_sdot(objects[1]["neon-dotprod", "matmul_q8_0"]) > 50
    assert n_sdot(objects[1]["neon-dotprod-macos", "matmul_q8_0"]) > 50
    assert n_sdot(objects[1]["neon", "matmul_q8_0"]) == 0


def test_current_objects_are_kept_and_stale_ones_deleted(objects, tmp_path):
    build(tmp_path, targets=["neon"], kernels=["scale"])
    path = tmp_path / all_kernels_hash() / "neon" / "scale.o"
    written = path.stat().st_mtime_ns
    assert "\nneon: 2 objects" in build(tmp_path, targets=["neon"], kernels=["scale", "add"])
    assert path.stat().st_mtime_ns == written
    (tmp_path / STAMP).write_text("0123456789abcdef of an older compiler\n")
    build(tmp_path, targets=["neon"], kernels=["add"])
    assert not path.exists()


def test_the_cache_gives_and_gets(tmp_path):
    """What another folder's build compiled is not compiled again, and is the same; a checkout's start finds it too."""
    cache = tmp_path / "cache"
    first = build(tmp_path / "first", targets=["neon"], kernels=["scale"], cache=cache)
    again = build(tmp_path / "again", targets=["neon"], kernels=["scale"], cache=cache)
    assert (first.split()[0], again.split()[0]) == ("1", "0")
    files = [tmp_path / folder / all_kernels_hash() / "neon" / "scale.o" for folder in ("first", "again")]
    (kept,) = cache.glob("objects/*/neon/scale.*.o")
    assert len({file.read_bytes() for file in (*files, kept)}) == 1


def test_kernels_are_within_the_budget():
    assert len(kernel_names()) <= 150


@pytest.mark.parametrize(("text", "names"), [("all", list(TARGETS)), ("none", []), ("neon,avx2", ["neon", "avx2"])])
def test_target_names(text, names):
    assert target_names(text) == names


def test_unknown_target_is_named():
    with pytest.raises(ValueError, match="'sse9'"):
        target_names("avx2,sse9")


def test_a_stamp_stands_for_the_sources(tmp_path, monkeypatch):
    """A wheel's start hashes nothing, whatever lies beside it; a damaged stamp is none."""
    monkeypatch.setattr(object_cache, "SHIPPED", tmp_path)
    assert object_cache.shipped_folder() is None
    for text, expected in (
        ("0123456789abcdef numba 9\n", tmp_path / "0123456789abcdef"),
        ("", None),
        ("?\n", None),
        ("é", None),
    ):
        (tmp_path / STAMP).write_text(text, encoding="utf-8")
        assert object_cache.shipped_folder() == expected


def test_shipped_objects_need_no_cache_folder(objects, monkeypatch, tmp_path):
    monkeypatch.setattr(object_cache, "SHIPPED", objects[0])
    monkeypatch.setenv("LLMRUN_CACHE", str(tmp_path / "unused"))
    cache = ObjectCache()
    assert cache.get("neon", "glu") == objects[1]["neon", "glu"]
    assert not (tmp_path / "unused").exists()
