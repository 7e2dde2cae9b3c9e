"""Damaged GGUF files, built byte by byte (the ``gguf`` package's writer refuses to).

``damaged_ggufs()`` yields (name, bytes): write the bytes to ``<name>.gguf`` (the names of the split cases matter).
``damaged_splits()`` yields (name, files, file to open). Every one must be answered by one line and nothing else.
"""

import struct
from dataclasses import dataclass, field, replace

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
TYPE_F32, TYPE_Q4_0, TYPE_Q4_K = 0, 2, 12
BIG = {"2^31": 2**31, "2^32": 2**32, "2^61": 2**61, "2^63": 2**63, "2^64-8": 2**64 - 8, "2^64-1": 2**64 - 1}


def u32(n):
    return struct.pack("<I", n)


def u64(n):
    return struct.pack("<Q", n)


def text(raw, length=None):
    """A GGUF string, optionally with a lie about its length."""
    raw = raw.encode() if isinstance(raw, str) else raw
    return u64(len(raw) if length is None else length) + raw


def key(name, kind, value):
    return [text(name), u32(kind), value]


def array(name, kind, count, *items):
    return [text(name), u32(ARR), u32(kind), u64(count), *items]


def tensor(name, dims, kind=TYPE_F32, offset=0, n_dims=None):
    dims_raw = b"".join(map(u64, dims))
    return [text(name), u32(len(dims) if n_dims is None else n_dims), dims_raw, u32(kind), u64(offset)]


@dataclass(frozen=True)
class Parts:
    """A small valid file, to be damaged with ``replace``."""

    magic: bytes = b"GGUF"
    version: int = 3
    keys: list = field(
        default_factory=lambda: [
            key("general.architecture", STR, text("llama")),
            key("llama.block_count", U32, u32(1)),
            key("llama.rope.freq_base", F32, struct.pack("<f", 10000.0)),
            key("tokenizer.ggml.add_bos_token", BOOL, b"\x01"),
            array("tokenizer.ggml.tokens", STR, 3, text("<s>"), text("hello"), text("")),
            array("tokenizer.ggml.scores", F32, 3, struct.pack("<3f", 0, -1, -2)),
        ]
    )
    tensors: list = field(
        default_factory=lambda: [tensor("a.weight", [32, 2], TYPE_Q4_0), tensor("b.weight", [8], TYPE_F32, 64)]
    )
    n_keys: int | None = None
    n_tensors: int | None = None
    alignment: int = 32
    data: bytes = bytes(96)

    def fields(self):
        """The fields of the file in order; between any two of them is a structural boundary."""
        fields = [
            self.magic,
            u32(self.version),
            u64(len(self.tensors) if self.n_tensors is None else self.n_tensors),
            u64(len(self.keys) if self.n_keys is None else self.n_keys),
            *(f for entry in [*self.keys, *self.tensors] for f in entry),
        ]
        return [*fields, bytes(-sum(map(len, fields)) % self.alignment), self.data]

    def build(self):
        return b"".join(self.fields())


def _truncations():
    fields, whole = Parts().fields(), Parts().build()
    boundary = 0
    for i, part in enumerate(fields):
        yield f"cut-at-field-{i}", whole[:boundary]
        if len(part) > 1:
            yield f"cut-in-field-{i}", whole[: boundary + len(part) - 1]
        boundary += len(part)
    yield "cut-in-middle-of-data", whole[:-48]


def _headers():
    whole = Parts().build()
    for name, magic in {
        "ggml": b"ggml",
        "ggjt": b"tjgg",
        "zip": b"PK\x03\x04",
        "pickle": b"\x80\x04\x95\x00",
        "lower-case": b"gguf",
        "reversed": b"FUGG",
    }.items():
        yield f"magic-{name}", Parts(magic=magic).build()
    yield "text-html", b"<!DOCTYPE html><html><body>404</body></html>\n" * 5
    yield "text-lfs-pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 98362432\n"
    yield "safetensors", u64(60) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}      ' + bytes(4)
    yield "only-zeros", bytes(4096)
    for version in (0, 1, 4, 65535, 2**32 - 1):
        yield f"version-{version}", Parts(version=version).build()
    yield "big-endian-v2", Parts(version=2 << 24).build()
    yield "big-endian-v3", b"GGUF" + struct.pack(">IQQ", 3, 2, 6) + whole[24:]
    yield "v1-with-32-bit-counts", b"GGUF" + struct.pack("<III", 1, 2, 6) + whole[24:]
    for name, n in (BIG | {"one-more": 7, "two-fewer": 4, "2^20": 2**20}).items():
        yield f"key-count-{name}", Parts(n_keys=n).build()
    for name, n in (BIG | {"one-more": 3, "2^20": 2**20}).items():
        yield f"tensor-count-{name}", Parts(n_tensors=n).build()
    yield "counts-both-2^64-1", Parts(n_tensors=2**64 - 1, n_keys=2**64 - 1).build()
    yield "too-many-tensors", Parts(n_tensors=2**17, data=bytes(2**17 * 40)).build()


def _with_key(entry):
    parts = Parts()
    return replace(parts, keys=[*parts.keys[:2], entry, *parts.keys[2:]]).build()


NOT_UTF8 = {
    "lone-byte": b"\xff\xfe",
    "surrogate": b"a\xed\xa0\x80",
    "overlong": b"\xc0\xaf",
    "cut": b"ab\xe2\x82",
}


def _keys():
    one = u32(1)
    yield "key-empty", _with_key(key("", U32, one))
    yield "key-2-KiB", _with_key(key("k" * 2048, U32, one))
    yield "key-twice", _with_key(key("llama.block_count", U32, one))
    for name, n in BIG.items():
        yield f"key-length-{name}", _with_key([text("k", n), u32(U32), one])
        yield f"string-length-{name}", _with_key(key("k", STR, text("v", n)))
        for kind in (U8, U32, F64):
            yield f"array-of-type-{kind}-length-{name}", _with_key(array("k", kind, n, bytes(16)))
        yield f"array-of-str-length-{name}", _with_key(array("k", STR, n, text("v"), text("w")))
        yield f"string-in-array-length-{name}", _with_key(array("k", STR, 3, text("v"), text("w", n), text("x")))
    for name, raw in NOT_UTF8.items():
        yield f"key-not-utf8-{name}", _with_key(key(raw, U32, one))
    for kind in (13, 255, 2**31, 2**32 - 1):
        yield f"value-type-{kind}", _with_key(key("k", kind, one))
        yield f"array-type-{kind}", _with_key(array("k", kind, 1, one))
    yield "bool-2", _with_key(key("k", BOOL, b"\x02"))
    # 2^62 elements of 4 bytes, 2^61 of 8: the product of 64-bit numbers is 0.
    yield "array-bytes-wrap-to-0", _with_key(array("k", U32, 2**62, one))
    # The second string ends, modulo 2^64, where the first one begins: an endless chain.
    yield "strings-in-a-circle", _with_key(array("k", STR, 40, text("abc"), text("", 2**64 - 8 - 8 - 3)))
    yield "nested-array", _with_key(array("k", ARR, 1, u32(U32), u64(1), one))
    yield "nested-array-empty", _with_key(array("k", ARR, 0))
    yield "nested-array-100000-deep", _with_key([text("k"), u32(ARR), *[u32(ARR) + u64(1)] * 100_000, u32(U8), u64(0)])
    rest = len(_with_key(array("k", STR, 0))) // 8
    yield "array-of-str-more-than-bytes-left", _with_key(array("k", STR, rest + 1))
    yield "array-of-empty-str-over-the-rest", _with_key(array("k", STR, 2030, bytes(8 * 2000)))
    yield "array-of-str-runs-into-tensors", _with_key(array("k", STR, 6, text("v")))
    yield "array-of-str-of-300-bytes-cut", Parts(keys=[array("k", STR, 400, *[text("v" * 300)] * 399)]).build()
    ramp = bytes(range(1, 256)) * 8
    yield "array-of-str-of-noise", _with_key(array("k", STR, 200, ramp))


def _alignments():
    for n in (0, 3, 33, 2**17, 2**31, 2**32 - 1):
        yield f"alignment-{n}", _with_key(key("general.alignment", U32, u32(n)))
    yield "alignment-i32", _with_key(key("general.alignment", I32, u32(32)))
    yield "alignment-u64", _with_key(key("general.alignment", U64, u64(32)))
    yield "alignment-str", _with_key(key("general.alignment", STR, text("32")))
    yield "alignment-array", _with_key(array("general.alignment", U32, 1, u32(32)))
    yield "alignment-makes-offsets-odd", _with_key(key("general.alignment", U32, u32(128)))


def _with_tensor(entry, **changes):
    parts = Parts()
    return replace(parts, tensors=[parts.tensors[0], entry, parts.tensors[1]], data=bytes(160), **changes).build()


def _tensors():
    yield "tensor-name-empty", _with_tensor(tensor("", [8], offset=96))
    yield "tensor-name-300-bytes", _with_tensor(tensor("n" * 300, [8], offset=96))
    yield "tensor-name-twice", _with_tensor(tensor("a.weight", [8], offset=96))
    for name, raw in NOT_UTF8.items():
        yield f"tensor-name-not-utf8-{name}", _with_tensor(tensor(raw, [8], offset=96))
    for name, n in BIG.items():
        yield f"tensor-name-length-{name}", _with_tensor([text("t", n), *tensor("t", [8], offset=96)[1:]])
        yield f"tensor-dim-{name}", _with_tensor(tensor("t", [n], offset=96))
        yield f"tensor-second-dim-{name}", _with_tensor(tensor("t", [8, n], offset=96))
        yield f"tensor-offset-{name}", _with_tensor(tensor("t", [8], offset=n))
    for n in (0, 5, 1000, 2**31, 2**32 - 1):
        yield f"tensor-dims-{n}", _with_tensor(tensor("t", [1] * min(n, 5), offset=96, n_dims=n))
    for name, dims in {
        "0": [0],
        "8x0": [8, 0],
        "0x2^63": [0, 2**63],
        "2^32x2^32": [2**32, 2**32],
        "2^63x2": [2**63, 2],
        "2^16 four times": [2**16] * 4,
        "2^62": [2**62],
        "wraps-to-8": [8, 2**61 + 1],
        "largest": [2**64 - 1] * 4,
    }.items():
        yield f"tensor-shape-{name.replace(' ', '-')}", _with_tensor(tensor("t", dims, offset=96))
    for kind in (4, 5, 31, 36, 38, 99, 2**31, 2**32 - 1):
        yield f"tensor-type-{kind}", _with_tensor(tensor("t", [256], kind, offset=96))
    yield "tensor-half-a-block", _with_tensor(tensor("t", [16, 2], TYPE_Q4_0, offset=96))
    yield "tensor-row-not-blocks", _with_tensor(tensor("t", [257], TYPE_Q4_K, offset=96))
    yield "tensor-offset-unaligned", _with_tensor(tensor("t", [8], offset=100))
    yield "tensor-past-the-end", _with_tensor(tensor("t", [8], offset=160))
    yield "tensor-past-the-end-far", _with_tensor(tensor("t", [8], offset=2**40))
    yield "tensor-past-the-end-by-one-row", _with_tensor(tensor("t", [17], offset=96))
    yield "tensor-overlap-same-offset", _with_tensor(tensor("t", [8], offset=0))
    yield "tensor-overlap-inside", _with_tensor(tensor("t", [1], offset=32))
    yield "tensor-overlap-into-next", _with_tensor(tensor("t", [16], offset=32))
    yield "tensor-overlap-covers-all", _with_tensor(tensor("t", [40], offset=0))


def shard(number, count, n_tensors=2, *, names=None, count_type=U16):
    """One file of a split model as bytes; ``number`` counts from 0."""
    code = {U16: "<H", I32: "<i", U64: "<Q", F32: "<f"}
    keys = [
        key("split.no", U16, struct.pack("<H", number)),
        key("split.count", count_type, struct.pack(code[count_type], count)),
        key("split.tensors.count", I32, struct.pack("<i", n_tensors)),
    ]
    first = [key("general.architecture", STR, text("llama"))] if number == 0 else []
    names = [f"t{number}.weight"] if names is None else names
    tensors = [tensor(name, [8], offset=32 * i) for i, name in enumerate(names)]
    return Parts(keys=first + keys, tensors=tensors, data=bytes(32 * len(names))).build()


def _splits():
    yield "split-with-an-ordinary-name", shard(0, 3)
    yield "split-others-missing-00001-of-00003", shard(0, 3)
    yield "split-first-missing-00003-of-00003", shard(2, 3)
    yield "split-name-says-00001-of-00002", shard(0, 3)
    yield "split-name-says-00000-of-00003", shard(0, 3)
    yield "split-name-says-00004-of-00003", shard(0, 3)
    yield "split-number-beyond-count-00001-of-00003", shard(7, 3)
    yield "split-count-65535-00001-of-65535", shard(0, 65535)
    yield "split-count-2^63-00001-of-00003", shard(0, 2**63, count_type=U64)
    yield "split-count-negative-00001-of-00003", shard(0, -3, count_type=I32)
    yield "split-count-float-00001-of-00003", shard(0, 3, count_type=F32)
    no_number = Parts(keys=[key("split.count", U16, b"\x01\x01")]).build()
    yield "split-number-missing-00001-of-00257", no_number


def damaged_ggufs():
    """Yield (name, bytes) of single files, each of which must be refused when opened as ``<name>.gguf``."""
    for group in (_truncations, _headers, _keys, _alignments, _tensors, _splits):
        yield from group()


def damaged_splits():
    """Yield (name, {file name: bytes}, name of the file to open) of split models that must be refused."""
    first, second, third = "m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"
    good = {first: shard(0, 3, 3), second: shard(1, 3, 3), third: shard(2, 3, 3)}
    yield "second-missing", {first: good[first], third: good[third]}, first
    yield "first-missing", {second: good[second], third: good[third]}, second
    yield "second-is-a-copy-of-the-first", good | {second: good[first]}, first
    yield "second-and-third-swapped", good | {second: good[third], third: good[second]}, first
    yield "second-of-another-count", good | {second: shard(1, 4, 3)}, first
    yield "second-not-split", good | {second: Parts().build()}, first
    yield "second-truncated", good | {second: good[second][:-1]}, third
    yield "second-empty", good | {second: b""}, first
    yield "third-not-gguf", good | {third: b"hello" * 20}, second
    yield "too-few-tensors", good | {first: shard(0, 3, 4)}, first
    yield "too-many-tensors", good | {first: shard(0, 3, 2)}, third
    yield "negative-tensors", good | {first: shard(0, 3, -1)}, first
    yield "tensor-in-two-files", good | {third: shard(2, 3, 3, names=["t0.weight"])}, first
