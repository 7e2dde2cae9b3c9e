"""A machine that needs no model: a text, sources that are right with a given chance, passes that take a given time."""

import random

from llmrun.runtime.speculation import controller as controller_module
from llmrun.runtime.speculation.controller import Controller
from llmrun.runtime.speculation.costs import PassCosts, SpeedFile
from llmrun.runtime.speculation.settings import SpeculationSettings
from llmrun.runtime.speculation.source import Answer, Guess

N_PROMPT = 50
ANSWER = Answer(sampler=None, seed=1, sample=0, ends=frozenset())


class Clock:
    """Stands where ``time`` does."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class ChancySource:
    """Right with the chance that ``chance(tokens generated)`` says; a guess takes ``guess_s``, the first more."""

    priors = (0.7,)
    n_guess = 0

    def __init__(self, name, chance, clock, *, is_free, guess_s=0.0, start_s=0.0):
        self.name, self.is_free = name, is_free
        self._chance, self._clock, self._guess_s, self._start_s = chance, clock, guess_s, start_s
        self._random = random.Random(name)

    def begin(self, context, answer):
        self._is_started = False

    def guess(self, context):
        at = len(context)
        while True:
            if not self._is_started:
                self._is_started = True
                self._clock.now += self._start_s
            self._clock.now += self._guess_s
            self.n_guess += 1
            is_right = self._random.random() < self._chance(at - N_PROMPT)
            yield Guess(at if is_right else -1, 0)
            at += 1

    def close(self):
        pass


class Machine:
    """Generates the text 0, 1, 2, …: token i stands at position i."""

    def __init__(self, monkeypatch, pass_s, known=None):
        self.clock, self._pass_s, self._known = Clock(), pass_s, known
        monkeypatch.setattr(controller_module, "time", self.clock)

    def source(self, name, chance, **options):
        return ChancySource(name, chance, self.clock, **options)

    def generate(self, sources, n_token, **settings):
        """Return (seconds, those of plain decoding, [tokens of each pass], statistics)."""
        controller = Controller(sources, PassCosts(self._known), SpeedFile(None))
        text = list(range(N_PROMPT + 1))  # the first token is the prompt's
        controller.begin(text[:N_PROMPT], ANSWER, SpeculationSettings(**settings))
        started, passes = self.clock.now, []
        while len(text) - N_PROMPT - 1 < n_token:
            draft = controller.plan(text, min(64, n_token - (len(text) - N_PROMPT)))
            seconds = self._pass_s(1 + len(draft))
            self.clock.now += seconds
            controller.passed(1 + len(draft), seconds)
            n_right = next((i for i, t in enumerate(draft) if t != len(text) + i), len(draft))
            if draft:
                controller.verified(n_right)
            passes.append(n_right + 1)
            text += range(len(text), len(text) + n_right + 1)
        stats = controller.end(text)
        return self.clock.now - started, (len(text) - N_PROMPT - 1) * self._pass_s(1), passes, stats
