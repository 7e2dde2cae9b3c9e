"""The commands that look into a model file, on a tiny real one: inspect, tokenize, detokenize."""

import json

import gguf
import numpy as np
import pytest

from ..tiny_gguf import write_gguf
from ..tiny_heads import HEADS, write_head
from ..tiny_models import N_VOCAB, tiny_model_path

TEXT = "hello  wörld <|im_end|>\n🎉"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model_path(tmp_path_factory.mktemp("tiny"), "llama", gguf.GGMLQuantizationType.Q8_0)


def test_inspect_shows_sizes_metadata_and_template(cli, tiny):
    result = cli("inspect", tiny)
    assert (result.code, result.err) == (0, "")
    rows = dict(line.split("  ", 1) for line in result.out.splitlines() if "  " in line)
    assert rows["size in memory"].strip().endswith("kB")
    assert "Q8_0" in rows["tensors"]
    assert "sha256" in rows["chat template"]
    assert rows["llama.block_count"].strip() == "3"
    assert f"array of {N_VOCAB} str" in rows["tokenizer.ggml.tokens"]


def test_inspect_lists_tensors_and_program(cli, tiny):
    tensors = cli("inspect", tiny, "--tensors").out
    assert "301 x 64" in next(line for line in tensors.splitlines() if line.endswith("token_embd.weight"))
    program = cli("inspect", tiny, "--program").out
    assert "embed(@token_embd.weight" in program
    assert "output logits" in program


def test_inspect_a_draft_head(cli, tmp_path):
    path = write_head(tmp_path / "head.gguf", HEADS["d2t"])
    result = cli("inspect", path, "--program")
    assert (result.code, result.err) == (0, "")
    lines = (line.partition("  ") for line in result.out.splitlines())
    rows = {name.strip(): value.strip() for name, _, value in lines}
    assert rows["draft head"] == "EAGLE-3, for a model 64 wide with 301 tokens (--draft)"
    assert rows["looks at"] == "what layers 0, 1, 2 are given"
    assert rows["drafts"] == "90 of 301 tokens"
    assert rows["of its model"] == "token_embd.weight"
    assert rows["size in memory"].endswith("kB")
    assert result.out.count("output state") == 2  # of the target's rows, of its own layer
    assert "embed(@target.token_embd.weight:?)" in result.out
    assert "own" in cli("inspect", write_head(tmp_path / "own.gguf", HEADS["own"])).out


def test_inspect_a_draft_head_that_is_none(cli, tmp_path):
    path = write_head(tmp_path / "head.gguf", HEADS["plain"], replaced={"fc.weight": None})
    result = cli("inspect", path)
    assert (result.code, result.err) == (0, "")
    assert f"cannot be used: {path}: tensor 'fc.weight' is missing" in result.out


def test_inspect_json(cli, tiny):
    record = json.loads(cli("inspect", tiny, "--json", "--tensors", "--program").out, parse_constant=pytest.fail)
    assert record["metadata"]["general.architecture"] == "llama"
    shapes = {tensor["name"]: tensor["shape"] for tensor in record["tensors"]}
    assert shapes["blk.0.attn_k.weight"] == [32, 64]
    assert record["n_params"] == sum(int(np.prod(shape)) for shape in shapes.values())
    assert record["program"][0].split()[0] == "0"


def test_inspect_escapes_what_the_file_says(cli, tmp_path):
    path = write_gguf(
        tmp_path / "evil.gguf",
        {"general.architecture": "nothing\x1b[2J", "general.name": "\x1b]0;owned\x07", "evil.\x9b": 1},
        {"a\x1b[31m": np.zeros(32, np.float32)},
    )
    result = cli("inspect", path, "--tensors", tty=True)
    assert result.code == 0
    assert not {"\x1b", "\x07", "\x9b"} & set(result.out)
    assert "is not supported" in result.out  # the architecture; the rest is shown all the same


def test_inspect_of_something_else(cli, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\x03\x04 not a model")
    result = cli("inspect", path)
    assert (result.code, result.out, len(result.lines)) == (1, "", 1)


@pytest.mark.parametrize(
    ("flags", "has_bos", "has_special"),
    [([], True, False), (["--parse-special"], True, True), (["--no-bos"], False, False)],
)
def test_tokens_and_back(cli, tiny, flags, has_bos, has_special):
    record = json.loads(cli("tokenize", tiny, TEXT, "--json", *flags).out)
    assert ("<|bos|>" in record["pieces"]) == has_bos
    assert ("<|im_end|>" in record["pieces"]) == has_special
    expected = ("<|bos|>" if has_bos else "") + TEXT
    assert cli("detokenize", tiny, "--special", stdin=json.dumps(record["token_ids"])).out == expected + "\n"
    as_json = cli("detokenize", tiny, "--special", "--json", *map(str, record["token_ids"])).out
    assert json.loads(as_json)["text"] == expected


def test_tokenize_shows_a_line_per_token(cli, tiny):
    lines = cli("tokenize", tiny, "-", stdin="ab\n").out.splitlines()
    ids = json.loads(cli("tokenize", tiny, "ab", "--ids").out)
    assert [int(line.split("->")[0]) for line in lines] == ids
    assert cli("tokenize", tiny, "\x1b", tty=True).out.endswith("-> '\\x1b'\n")


def test_bytes_that_are_not_text_survive_a_pipe(cli, tiny):
    ids = json.loads(cli("tokenize", tiny, "é", "--ids", "--no-bos").out)
    assert len(ids) == 2
    with pytest.raises(UnicodeDecodeError):
        _ = cli("detokenize", tiny, str(ids[0])).out


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("x", "expected whole numbers, got 'x'"),
        ("-1", "got '-1'"),
        (str(N_VOCAB), f"the vocabulary has {N_VOCAB} tokens"),
    ],
)
def test_ids_that_are_none(cli, tiny, ids, message):
    result = cli("detokenize", tiny, stdin=ids)
    assert (result.code, len(result.lines)) == (1, 1)
    assert message in result.err


def test_doctor(cli, monkeypatch):
    from llmrun.runtime.measure import roofline

    monkeypatch.setattr(roofline, "measure", lambda n: roofline.Roofline("avx2", n, 2.5e10, 4e11))
    record = json.loads(cli("doctor", "--json").out)
    assert {
        "cpu",
        "instruction set",
        "threads",
        "caches",
        "memory",
        "memory bandwidth",
        "compiled kernels",
        "models",
    } <= record.keys()
    assert record["memory bandwidth"].startswith("25.0 GB/s read by ")
    assert record["int8 peak"].startswith("400 Gop/s by ")
    monkeypatch.setenv("LLMRUN_ISA", "avx9")
    result = cli("doctor")
    assert (result.code, len(result.lines)) == (1, 1)
    assert "LLMRUN_ISA is 'avx9'" in result.err
