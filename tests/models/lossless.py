"""Compare token ids with and without speculation on real models, as many as are asked for.

    python -m tests.models.lossless MODELS [--tokens 20000] [--start 0] [--minutes 8]

Every case is a target, a draft, a sampler with its temperature, a number of threads, a prompt and a seed, all chosen by
the case's number alone. A case is answered plainly and with drafts (whatever the controller decides, and with drafts of
a fixed length, which a controller would not use); every id, the reason for which it ended, and what the session keeps
must be the same. Some cases end at the edge of their context. It can be run in pieces: it says with which number
(``--start``) to go on.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path

from llmrun.formats.record import replace
from llmrun.runtime import engine as engine_module
from llmrun.runtime.engine import Engine
from llmrun.runtime.sampling.settings import SamplerSettings
from llmrun.runtime.session import GenerationParams
from llmrun.runtime.speculation.ngram import NgramSource
from llmrun.runtime.speculation.settings import SpeculationSettings
from llmrun.runtime.texts import draft_prompts

from ..runtime.sampling.all_chains import CHAINS
from .models import MODELS
from .random_draft import write_random_draft, write_random_head

OFF, AUTO = SpeculationSettings(mode="off"), SpeculationSettings(mode="auto")
TEMPERATURES = (0.0, 0.3, 0.8, 1.2)
N_GEN, N_CTX = 80, 1024
TARGETS = ("smollm2", "qwen05", "gemma3")
# "self": the target's own file, whose weights are narrowed; "random": random weights; None: copies of the text alone;
# "head", "own head": EAGLE-3 heads of random weights, with the target's embeddings and output matrix or their own.
DRAFTS = {
    "smollm2": ("self", "random", None, "qwen05", "head", "own head"),
    "qwen05": ("self", "random", None, "smollm2", "own head", "head"),
    "gemma3": ("self", "random", None, "smollm2", "head", "own head"),
    "qwen15": ("qwen05", "random", None, "smollm2", "own head", "head"),
}
RANDOM = {
    "random": write_random_draft,
    "head": write_random_head,
    "own head": partial(write_random_head, n_draft=8000, n_embd=192),
}


class Stubborn:
    """A planner that verifies drafts of every source in turn, of lengths that nobody would choose."""

    def __init__(self, engine, sequence, lengths):
        self._sources = [NgramSource(), *engine.draft_sources(sequence)]
        self._lengths, self._step, self.n_row = lengths, 0, Counter()

    def begin(self, prompt, answer, settings):
        for source in self._sources:
            source.begin(prompt, answer)

    def plan(self, context, limit):
        self._step += 1
        source = self._source = self._sources[self._step % len(self._sources)]
        source.budget_s = 1.0
        n = min(limit, self._lengths[self._step % len(self._lengths)])
        return [guess.token_id for guess in islice(source.guess(context), n)] if n else []

    def passed(self, n_row, elapsed_s):
        self.n_row[n_row] += 1

    def verified(self, n_right, logits):
        self._source.shown(logits)

    def end(self, context, decode_s):
        return None

    def close(self):
        for source in self._sources:
            source.close()


class Opened:
    """Engines by (target, draft, threads), the last one kept; closes them."""

    def __init__(self, folder, scratch):
        self._folder, self._scratch = folder, scratch
        self._key, self._stack = None, ExitStack()

    def path(self, name):
        return self._folder / MODELS[name][0]

    def __call__(self, target, draft, n_threads):
        if self._key != (target, draft, n_threads):
            self._stack.close()
            self._stack = ExitStack()
            path = None
            if draft == "self":
                path = self.path(target)
            elif draft in RANDOM:
                path = self._scratch / f"{target}-{draft}.gguf"
                if not path.exists():
                    RANDOM[draft](self.path(target), path)
            elif draft is not None:
                path = self.path(draft)
            engine = Engine.open(self.path(target), n_ctx=N_CTX, n_threads=n_threads, draft=path)
            self._engine, self._key = self._stack.enter_context(engine), (target, draft, n_threads)
        return self._engine

    def close(self):
        self._stack.close()


def settings_of(number):
    """Return (sampler, seed) of a case: every chain at every temperature, one after the other."""
    chains = list(CHAINS.values())
    chain, temperature = chains[number % len(chains)], TEMPERATURES[number // len(chains) % len(TEMPERATURES)]
    return SamplerSettings(**{**chain, "temperature": temperature}), number


def answer(session, ids, params):
    """Return everything that must be the same."""
    tokens = list(session.generate(ids, params))
    return [(t.token_id, t.text) for t in tokens], session.stats.finish_reason, list(session.tokens)


def check_case(engine, number):
    """Answer one case three ways; return the number of ids that were compared. Raises AssertionError."""
    rng = random.Random(number)
    prompt = rng.choice(draft_prompts()).text
    ids = engine.tokenizer.encode(prompt)
    if engine.template is not None:
        ids = engine.template.encode([{"role": "user", "content": prompt}])
    n_max = N_GEN
    if number % 5 == 4:  # the end of the context comes first
        room = rng.randrange(1, 40)
        ids, n_max = (ids * 40)[: engine.n_ctx - room], None
    sampler, seed = settings_of(number)
    plain = GenerationParams(sampler=sampler, seed=seed, max_tokens=n_max, ignore_eos=number % 3 == 0, speculation=OFF)
    session = engine.session()
    try:
        want = answer(session, ids, plain)
        drafted = replace(plain, speculation=AUTO)
        assert answer(session, ids, drafted) == want, f"case {number}: speculation changed the answer"
        session.close()
        session._controller = Stubborn(engine, session._sequence, [rng.randrange(0, 24) for _ in range(5)])
        assert answer(session, ids, drafted) == want, f"case {number}: fixed drafts changed the answer"
    finally:
        session.close()
    return 2 * len(want[0])


def check(folder, n_token, *, start=0, minutes=None, targets=TARGETS, only=None, say=print):
    """Run cases until so many ids were compared or the time is over; return (ids, next case's number)."""
    targets = [name for name in targets if (folder / MODELS[name][0]).is_file()]
    n_id, number, until = 0, start, None if minutes is None else time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as scratch:
        opened = Opened(folder, Path(scratch))
        try:
            while n_id < n_token and (until is None or time.monotonic() < until):
                group, place = divmod(number, 6)  # as opening takes time: six cases each
                target = targets[group % len(targets)]
                drafts = DRAFTS[target]
                draft = drafts[group // len(targets) % len(drafts)]
                is_missing = draft in MODELS and not (folder / MODELS[draft][0]).is_file()
                if is_missing or (only is not None and draft not in only):
                    number += 6 - place
                    continue
                n_threads = 1 + (group + group // len(targets)) % 3
                n = check_case(opened(target, draft, n_threads), number)
                n_id, number = n_id + n, number + 1
                say(f"case {number - 1}: {target}, draft {draft}, {n_threads} threads: {n} ids, {n_id} in all")
        finally:
            opened.close()
    return n_id, number


def main():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--drafts", help="only these, by name, separated by commas")
    options = parser.parse_args()
    engine_module.team_size = lambda n_thread: n_thread  # three, whether there are as many processors or not
    n_id, number = check(
        options.models, options.tokens, start=options.start, minutes=options.minutes,
        targets=options.targets.split(","), only=options.drafts and options.drafts.split(","),
    )  # fmt: skip
    print(f"{n_id} ids were the same; go on with --start {number}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
