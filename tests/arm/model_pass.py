"""Logits and a sampled answer of one model: ``python model_pass.py MODEL OUT``; runs natively and under qemu."""

import sys
from pathlib import Path

import numpy as np

from llmrun.runtime.engine import Engine, GenerationParams
from llmrun.runtime.sampling.settings import SamplerSettings

N_PROMPT, N_ANSWER = 75, 12  # more than a page of the KV cache, no multiple of any tile


def main():
    model, out = Path(sys.argv[1]), sys.argv[2]
    with Engine.open(model, n_ctx=128, n_threads=2) as engine:
        ids = [(7 * i * i + 3) % engine.info.n_vocab for i in range(N_PROMPT)]
        logits = np.concatenate([block.copy() for block in engine.logits(ids, 0)])
        params = GenerationParams(sampler=SamplerSettings(), seed=5, max_tokens=N_ANSWER, ignore_eos=True)
        tokens = [token.token_id for token in engine.session().generate(ids, params)]
        np.savez(out, logits=logits, tokens=tokens)
        print(engine.isa, len(sys.modules))
    assert "numba" not in sys.modules


if __name__ == "__main__":
    main()
