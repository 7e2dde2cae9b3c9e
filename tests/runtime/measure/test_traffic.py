"""Bytes and operations of a roofline, against sums over the file's tensors."""

from gguf import GGUFReader

from llmrun.formats.ggml_types import GgmlType
from llmrun.runtime.measure.bench_row import BenchTest
from llmrun.runtime.measure.traffic import read_traffic, weight_bytes

HEAD_DIM, N_HEAD_KV, N_LAYER = 16, 2, 3  # of the tiny models
SLOT = N_LAYER * N_HEAD_KV * HEAD_DIM * 2 * 2


def tensors_of(path):
    return {t.name: t for t in GGUFReader(path).tensors}


def test_a_step_streams_all_but_the_embeddings(tiny_path):
    path = tiny_path("llama", "Q8_0")
    tensors = tensors_of(path)
    traffic = read_traffic(path)
    total = sum(t.n_bytes for t in tensors.values())
    assert traffic.tensor_bytes == total
    assert traffic.n_params == sum(t.n_elements for t in tensors.values())
    unused = sum(t.n_bytes for name, t in tensors.items() if name == "token_embd.weight" or "rope_freqs" in name)
    assert traffic.step_weight_bytes == total - unused
    matrices = [t for name, t in tensors.items() if len(t.shape) == 2 and name != "token_embd.weight"]
    assert traffic.body_ops + traffic.head_ops == sum(2 * t.n_elements for t in matrices)
    assert sum(map(weight_bytes, traffic.matrices)) == sum(t.n_bytes for t in matrices)
    assert (
        sum(weight_bytes(w, GgmlType.Q4_0) for w in traffic.matrices) == sum(t.n_elements for t in matrices) // 32 * 18
    )


def test_tied_embeddings_are_streamed_as_the_output_matrix(tiny_path):
    path = tiny_path("qwen2", "Q8_0")
    tensors = tensors_of(path)
    assert "output.weight" not in tensors
    traffic = read_traffic(path)
    assert traffic.step_weight_bytes == sum(t.n_bytes for t in tensors.values())
    last = f"blk.{N_LAYER - 1}."
    head = [t for name, t in tensors.items() if len(t.shape) == 2 and (name.startswith(last) or "token_embd" in name)]
    of_all = [tensors[f"{last}attn_{name}.weight"] for name in "kv"]
    assert traffic.head_ops == 2 * (sum(t.n_elements for t in head) - sum(t.n_elements for t in of_all))


def test_keys_and_values_of_what_a_row_sees(tiny_path):
    traffic = read_traffic(tiny_path("llama", "Q8_0"))
    assert traffic.kv_bytes(9, 1) == 10 * SLOT
    test = BenchTest(n_gen=3, n_depth=100)
    assert traffic.test_bytes(test, []) == 3 * traffic.step_weight_bytes + (101 + 102 + 103) * SLOT
    many = BenchTest(n_gen=3, n_depth=100, n_seq=4)
    assert traffic.test_bytes(many, []) == 3 * traffic.step_weight_bytes + 4 * (101 + 102 + 103) * SLOT


def test_a_window_limits_what_is_read(tiny_path):
    traffic = read_traffic(tiny_path("gemma3", "Q8_0"))
    windows = [a.window for a in traffic.attentions]
    assert max(windows) > 0
    far = sum(a.slot_bytes * (a.window or 401) for a in traffic.attentions)
    assert traffic.kv_bytes(400, 1) == far


def test_a_prompt_streams_the_weights_once_a_pass(tiny_path):
    traffic = read_traffic(tiny_path("llama", "Q8_0"))
    test = BenchTest(n_prompt=30)
    read = 16 * SLOT * (N_LAYER - 1) // N_LAYER + 30 * SLOT  # of the last layer only where something is wanted
    assert traffic.test_bytes(test, [16, 14]) == 2 * traffic.body_bytes + traffic.head_bytes + read
    assert traffic.test_ops(test) == 30 * traffic.body_ops + traffic.head_ops
