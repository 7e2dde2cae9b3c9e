"""Quality cards of ``llmrun quantize``: when one is made; measured before the file gets its name, and in it."""

import gguf
import numpy as np
import pytest

from llmrun.formats.errors import ConfigError
from llmrun.formats.gguf import GgufFile
from llmrun.formats.metadata import StringArray
from llmrun.quant.quality_card import PREFIX, QualityCard
from llmrun.runtime.texts import calibration_text

from ..tiny_gguf import write_gguf
from ..tiny_models import tiny_model_path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model_path(tmp_path_factory.mktemp("tiny"), "qwen2", gguf.GGMLQuantizationType.F32)


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text").write_text(calibration_text()[:1500])
    return tmp_path / "text"


def test_card_is_in_the_file_and_shown(cli, tiny, text, tmp_path):
    plain, measured = tmp_path / "plain.gguf", tmp_path / "measured.gguf"
    assert cli("quantize", tiny, plain, "Q4_0").code == 0
    result = cli("quantize", tiny, measured, "Q4_0", "--quality-text", text, "-t", 1)
    assert result.code == 0, result.err
    assert "quality: KL divergence" in result.err
    with GgufFile.open(plain) as one, GgufFile.open(measured) as other:
        card = QualityCard.from_metadata(other.metadata)
        assert card.kld_mean > 0
        assert card.text == "text"
        keys = [k for k in other.metadata.keys() if not k.startswith(PREFIX)]  # noqa: SIM118 (no mapping)
        assert keys == one.metadata.keys()
        for name, info in one.tensors.items():
            assert (one.data(info) == other.data(other.tensors[name])).all(), name
    shown = cli("inspect", measured).out
    assert f"mean {card.kld_mean:.6f}" in shown
    assert PREFIX not in shown
    assert cli("inspect", plain).out.count("quality") == 0
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["measured.gguf", "plain.gguf", "text"]


def test_nothing_is_left_when_measuring_fails(cli, tiny, text, tmp_path, monkeypatch):
    from llmrun.runtime import quality

    def fail(*_args, **_options):
        raise ConfigError("the measurement failed")

    monkeypatch.setattr(quality, "measure_quality", fail)
    result = cli("quantize", tiny, tmp_path / "out.gguf", "Q4_0", "--quality-text", text)
    assert result.code == 1
    assert "the measurement failed" in result.err
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["text"]


@pytest.mark.parametrize(
    ("arguments", "is_measured"),
    [
        (["Q4_0"], False),
        (["Q4_0", "--quality"], True),
        (["Q4_0", "--method", "gptq"], True),
        (["Q4_0", "--method", "gptq", "--no-quality"], False),
        (["--target-bpw", 6, "--method", "rtn"], True),
        (["--target-bpw", 6, "--method", "rtn", "--no-quality"], False),
    ],
)
def test_a_run_that_reads_a_text_measures_what_it_has_made(cli, tiny, text, tmp_path, arguments, is_measured):
    reads_text = "--method" in arguments
    result = cli("quantize", tiny, tmp_path / "out.gguf", *arguments, *(("-f", text) if reads_text else ()))
    assert result.code == 0, result.err
    assert ("quality: KL divergence" in result.err) == is_measured
    with GgufFile.open(tmp_path / "out.gguf") as file:
        card = QualityCard.from_metadata(file.metadata)
    assert (card is not None) == is_measured
    assert card is None or card.text != "text"  # not the one that it was calibrated on


@pytest.mark.parametrize("arguments", [["Q4_0", "--quality"], ["--target-kld", 0.1], ["--target-tps", 9]])
def test_split_results_cannot_be_measured(cli, tiny, text, tmp_path, arguments):
    """A calibrated one has no card; where one is asked for, that is said before the work."""
    with GgufFile.open(tiny) as file:
        values = {key: file.metadata.get(key) for key in file.metadata.keys()}  # noqa: SIM118 (no mapping)
        metadata = {key: list(value) if isinstance(value, StringArray) else value for key, value in values.items()}
        tensors = {name: file.data(info).view(np.float32).reshape(info.shape) for name, info in file.tensors.items()}
        first = write_gguf(tmp_path / "m.gguf", metadata, tensors, split_max_tensors=len(tensors) // 2)
    options = ("--keep-split", "-f", text, "--method", "awq")
    result = cli("quantize", first, tmp_path / "o.gguf", *arguments, *options)
    assert (result.code, result.lines[-1]) == (
        1, f"error: {tmp_path / 'o.gguf'}: a result that is measured is one file; leave out --keep-split",
    )  # fmt: skip
    result = cli("quantize", first, tmp_path / "o.gguf", "Q4_0", *options)
    assert result.code == 0, result.err
    assert "quality" not in result.err
    assert len(list(tmp_path.glob("o-0000?-of-0000?.gguf"))) == len(list(tmp_path.glob("m-*.gguf"))) > 1


def test_a_text_for_no_card_is_refused(cli, tiny, text, tmp_path):
    result = cli("quantize", tiny, tmp_path / "out.gguf", "Q4_0", "--quality-text", text, "--no-quality")
    assert result.code == 2
    assert "--no-quality" in result.err
    assert not (tmp_path / "out.gguf").exists()
