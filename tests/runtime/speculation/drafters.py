"""Sources and planners that draft whatever a test wants: right, wrong, random, too long."""

import random
from itertools import islice

from llmrun.runtime.speculation.source import Guess


class ListedSource:
    """Drafts from a list of the true tokens by position, each wrong with a given chance."""

    name = "listed"
    priors = (0.6,)
    is_free = True
    n_agree = 0

    def __init__(self, truth, n_vocab, wrong=0.0, seed=0):
        self._truth, self._n_vocab, self._wrong = truth, n_vocab, wrong
        self._random = random.Random(seed)
        self.closed = 0

    def begin(self, context, answer):
        self._n_prompt = len(context)

    def guess(self, context):
        at = len(context) - self._n_prompt
        while True:
            is_wrong = at >= len(self._truth) or self._random.random() < self._wrong
            yield Guess(self._random.randrange(self._n_vocab) if is_wrong else self._truth[at], 0)
            at += 1

    def agree(self, copied):
        return None

    def after(self, drafted):
        return iter(())

    def shown(self, logits):
        pass

    def close(self):
        self.closed += 1


class FixedPlanner:
    """Verifies as many tokens of a source as its lengths say, one after the other."""

    def __init__(self, source, lengths):
        self._source, self._lengths, self._step = source, lengths, 0
        self.n_row, self.n_right, self.limits, self.likeliest = [], [], [], []

    def begin(self, prompt, answer, settings):
        if self._source is not None:
            self._source.begin(prompt, answer)

    def plan(self, context, limit):
        self.limits.append(limit)
        n = min(self._lengths[self._step % len(self._lengths)], limit)
        self._step += 1
        return [guess.token_id for guess in islice(self._source.guess(context), n)] if n else []

    def passed(self, n_row, elapsed_s):
        self.n_row.append(n_row)

    def verified(self, n_right, logits):
        self.n_right.append(n_right)
        self.likeliest.append(int(logits.argmax()))
        self._source.shown(logits)

    def end(self, context, decode_s):
        return None

    def close(self):
        if self._source is not None:
            self._source.close()
