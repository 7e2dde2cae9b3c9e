"""Write matrices of integers as GPTQ, AWQ and compressed-tensors checkpoints do, one integer at a time.

Plain loops over what the formats say, so that nothing is shared with the code under test.
"""

import numpy as np

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which output is in which place of a word


def words(shape):
    return np.zeros(shape, np.uint32)


def gptq(q, zero, scale, group, *, bits=4, version=1, g_idx=True):
    """Return the tensors of ``q [n_out, n_in]``, ``zero`` and ``scale [n_out, n_group]``."""
    (n_out, n_in), n_group, n_per = q.shape, scale.shape[1], 32 // bits
    weight, zeros = words((n_in // n_per, n_out)), words((n_group, n_out // n_per))
    for i in range(n_in):
        weight[i // n_per] |= q[:, i].astype(np.uint32) << np.uint32(bits * (i % n_per))
    stored = (zero - version % 2) & ((1 << bits) - 1) if version == 1 else zero
    for o in range(n_out):
        zeros[:, o // n_per] |= stored[o].astype(np.uint32) << np.uint32(bits * (o % n_per))
    tensors = {"qweight": weight.view(np.int32), "qzeros": zeros.view(np.int32), "scales": scale.T.astype(np.float16)}
    return tensors | ({"g_idx": group.astype(np.int32)} if g_idx else {})


def awq(q, zero, scale):
    """Return the tensors of the "gemm" version."""
    (n_out, n_in), n_group = q.shape, scale.shape[1]
    weight, zeros = words((n_in, n_out // 8)), words((n_group, n_out // 8))
    for word in range(n_out // 8):
        for place, output in enumerate(AWQ_ORDER):
            weight[:, word] |= q[8 * word + output].astype(np.uint32) << np.uint32(4 * place)
            zeros[:, word] |= zero[8 * word + output].astype(np.uint32) << np.uint32(4 * place)
    return {"qweight": weight.view(np.int32), "qzeros": zeros.view(np.int32), "scales": scale.T.astype(np.float16)}


def compressed(q, zero, scale, *, bits=4, is_symmetric=True, group=None, dtype="F16"):
    """Return the tensors of ``pack-quantized``."""
    (n_out, n_in), n_group, n_per = q.shape, scale.shape[1], 32 // bits
    weight, zeros = words((n_out, -(-n_in // n_per))), words((-(-n_out // n_per), n_group))
    for i in range(n_in):
        weight[:, i // n_per] |= q[:, i].astype(np.uint32) << np.uint32(bits * (i % n_per))
    for o in range(n_out):
        zeros[o // n_per] |= zero[o].astype(np.uint32) << np.uint32(bits * (o % n_per))
    stored = scale.astype(np.float16)
    if dtype == "BF16":
        stored = "BF16", (scale.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    tensors = {
        "weight_packed": weight.view(np.int32),
        "weight_scale": stored,
        "weight_shape": np.array([n_out, n_in], np.int64),
    }
    if not is_symmetric:
        tensors["weight_zero_point"] = zeros.view(np.int32)
    return tensors | ({} if group is None else {"weight_g_idx": group.astype(np.int32)})
