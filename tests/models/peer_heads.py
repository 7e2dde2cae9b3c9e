"""Compare the drafts of random EAGLE-3 heads with llama.cpp's, token by token.

    python -m tests.models.peer_heads LLAMA_SPECULATIVE_SIMPLE [--tokens 40] [--draft-max 4]

llama.cpp generates greedily with each head of ``tests/tiny_heads.py`` and prints what it drafts; llmrun drafts after
the same contexts, with the same float32 weights. Where they differ both tokens' chances at llama.cpp are printed, which
are near each other where rounding decided.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from unittest.mock import patch

from gguf import GGMLQuantizationType

from llmrun.runtime.engine import Engine
from llmrun.runtime.kv_cache import KvSequence
from llmrun.runtime.sampling.settings import SamplerSettings
from llmrun.runtime.session import GenerationParams
from llmrun.runtime.speculation import draft_weights

from ..tiny_heads import HEADS, write_head
from ..tiny_models import tiny_model_path

PROMPT = "the cat sat on the mat and then"
DRAFTED = re.compile(
    r"draft candidate\s+(?P<rank>\d+), pos\s+\d+:\s+(?P<id>\d+) \(\s*(?P<p>[\d.]+)\)"
    r"|accepted (?P<right>\d+)/\d+ draft tokens, the last target token is: \((?P<next>\d+)\)"
)


def peer_steps(program, model, head, n_token, n_draft):
    """Return llama.cpp's steps: (candidates [(id, chance), ...] by place, how many were right, the token behind)."""
    command = [
        program, "-m", model, "-md", head, "--spec-type", "draft-eagle3", "--spec-draft-n-max", str(n_draft),
        "-p", PROMPT, "-n", str(n_token), "--temp", "0", "--ignore-eos", "-t", "1", "-v",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True)
    steps, places = [], []
    for match in DRAFTED.finditer(done.stdout + done.stderr):
        if match["next"]:
            steps.append((places, int(match["right"]), int(match["next"])))
            places = []
            continue
        if match["rank"] == "0":
            places.append([])
        places[-1].append((int(match["id"]), float(match["p"])))
    return steps


def compare(engine, steps, n_draft):
    """Return (drafted tokens, those that are the same, [(chances of both where they differ)])."""
    sequence, context = KvSequence(engine.pages, engine.n_ctx), engine.tokenizer.encode(PROMPT)
    source = engine.draft.source(sequence)
    params = GenerationParams(sampler=SamplerSettings(temperature=0.0), seed=1)
    source.begin(context, engine.session()._answer(params))
    engine.run_tokens(sequence, context[:-1], [])
    n, same, apart = 0, 0, []
    for places, n_right, following in steps:
        source.budget_s = 1e9
        mine = [guess.token_id for guess in islice(source.guess(context), n_draft)]
        for candidates, token_id in zip(places, mine, strict=False):
            n += 1
            if candidates[0][0] != token_id:
                apart.append((candidates[0][1], dict(candidates).get(token_id)))
                break  # what follows is about another text
            same += 1
        new = [candidates[0][0] for candidates in places[:n_right]] + [following]
        engine.run_tokens(sequence, [context[-1], *new[:-1]], [])
        context += new
    return n, same, apart


def main():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--draft-max", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, patch.object(draft_weights, "can_narrow", lambda *_: False):
        model = tiny_model_path(Path(folder), "llama", GGMLQuantizationType.F32)
        for name, shape in HEADS.items():
            # llama.cpp's llama leaves no rows of the final norm's input.
            head = write_head(Path(folder) / f"{name}.gguf", replace(shape, layers=(2, 0, 1)))
            steps = peer_steps(options.program, model, head, options.tokens, options.draft_max)
            with Engine.open(model, n_ctx=512, n_threads=1, draft=head) as engine:
                n, same, apart = compare(engine, steps, options.draft_max)
            print(f"{name}: {same} of {n} drafted tokens are the same in {len(steps)} steps; apart: {apart}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
