"""The journal of a calibration: what is complete is found again, what is damaged or foreign is not believed."""

import numpy as np
import pytest

from llmrun.formats.errors import ConfigError
from llmrun.formats.ggml_types import GgmlType
from llmrun.runtime.block_store import BlockStore

BLOCKS = {name: np.random.default_rng(i).integers(0, 256, (4, 18), np.uint8) for i, name in enumerate("abc")}


@pytest.fixture
def journal(tmp_path):
    store = BlockStore(tmp_path / "journal", "key")
    store.append("a", GgmlType.Q4_0, BLOCKS["a"])
    store.append("b", GgmlType.Q4_0, BLOCKS["b"])
    store.commit("layer 0")
    store.append("c", GgmlType.Q4_0, BLOCKS["c"])
    store.commit("layer 1")
    store.append("a", GgmlType.Q4_0, BLOCKS["c"])  # of a step that is not complete
    store.close(is_done=False)
    return tmp_path / "journal"


def found(path, key="key"):
    store = BlockStore(path, key)
    result = {step: {t.name: np.array(t.raw()) for t in tensors} for step, tensors in store.finished.items()}
    store.close(is_done=False)
    return result


def test_complete_steps_are_found_again(journal):
    steps = found(journal)
    assert {step: list(tensors) for step, tensors in steps.items()} == {"layer 0": ["a", "b"], "layer 1": ["c"]}
    for tensors in steps.values():
        for name, blocks in tensors.items():
            assert (blocks == BLOCKS[name]).all()


def test_any_length_is_read_up_to_its_last_complete_step(journal):
    data = journal.read_bytes()
    counts = []
    for n in range(len(data)):
        journal.write_bytes(data[:n])
        counts.append(len(found(journal)))
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2}


def test_changed_bytes_are_not_believed(journal):
    data = bytearray(journal.read_bytes())
    data[data.index(BLOCKS["c"].tobytes())] ^= 1
    journal.write_bytes(data)
    assert list(found(journal)) == ["layer 0"]


def test_another_key_begins_anew_and_what_holds_nothing_is_removed(journal):
    assert found(journal, "other") == {}
    assert not journal.exists()


def test_one_process_at_a_time(journal):
    store = BlockStore(journal, "key")
    with pytest.raises(ConfigError, match="another llmrun"):
        BlockStore(journal, "key")
    store.close()
    assert not journal.exists()
