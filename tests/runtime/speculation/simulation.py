"""A machine that needs no model: a text, sources that are right with a given chance, passes that take a given time."""

import random

import numpy as np

from llmrun.runtime.speculation import chooser, controller
from llmrun.runtime.speculation.controller import Controller
from llmrun.runtime.speculation.costs import StepCosts
from llmrun.runtime.speculation.settings import SpeculationSettings
from llmrun.runtime.speculation.source import Answer, Guess
from llmrun.runtime.speculation.speed_file import SpeedFile

N_PROMPT = 50
PIECE_S = 0.08  # of a text that is read
ANSWER = Answer(sampler=None, seed=1, sample=0, ends=frozenset())


class Clock:
    """Stands where ``time`` does."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class ChancySource:
    """Right with the chance that ``chance(tokens generated)`` says; a guess takes ``guess_s``, the first more.

    ``text_s`` is what reading all of a text takes, before each draft as many pieces as may be spent on.
    """

    priors = (0.7,)
    n_guess = n_shown = 0
    expected_s = read_s = 0.0
    n_agree = 0  # copies that it can tell whether it would have guessed

    def __init__(self, name, chance, machine, *, is_free, guess_s=0.0, start_s=0.0, text_s=0.0):
        self.name, self.is_free = name, is_free
        self._chance, self._machine, self._guess_s, self._start_s = chance, machine, guess_s, start_s
        self._text_s = text_s
        self._random = random.Random(name)

    def begin(self, context, answer):
        self._is_started = False

    def guess(self, context):
        self._at, self._n_context, self._is_unread = len(context), len(context), True
        return self._guesses()

    def _guesses(self):
        while True:
            self._read()
            self.n_guess += 1
            is_right = self._random.random() < self._chance(self._at - N_PROMPT)
            self._at += 1
            self._is_unread = True
            yield Guess(self._at - 1 if is_right else -1, 0)

    def _read(self):
        if not self._is_started:
            self._is_started = True
            self._machine.spend(self._start_s)
        if self._text_s > 0 and self._at == self._n_context:
            expected_s = min(self._text_s, self.budget_s // PIECE_S * PIECE_S)
            self._text_s -= expected_s
            self.read_s, self.expected_s = self._machine.spend(expected_s), expected_s
        if self._is_unread:
            self._machine.spend(self._guess_s)
        self._is_unread = False

    def agree(self, copied):
        assert self._is_unread
        self._read()
        right = 0
        while right < min(len(copied), self.n_agree) and copied[right] == self._at + right:
            right += 1
        self._at += right
        return [Guess(token_id, 0) for token_id in copied[:right]]

    def after(self, drafted):
        return iter(())

    def shown(self, logits):
        self.n_shown += 1

    def close(self):
        pass


class Machine:
    """Generates the text 0, 1, 2, …: token i stands at position i.

    Args:
        monkeypatch: puts its clock in place.
        pass_s: seconds of a pass, by its number of rows.
        known: what the controller knows of them from another run.
        load: how many times longer everything takes, by the time; None: once.
        noise: what is disturbed takes up to so many times longer, at random.
    """

    def __init__(self, monkeypatch, pass_s, known=None, load=None, noise=0.0):
        self.clock, self._pass_s, self._known = Clock(), pass_s, known
        self._load, self._noise, self._random = load, noise, random.Random(1)
        self.plain_s = 0.0
        for module in (chooser, controller):
            monkeypatch.setattr(module, "time", self.clock)

    def source(self, name, chance, **options):
        return ChancySource(name, chance, self, **options)

    def spend(self, seconds):
        """Let something that takes so long on an idle machine happen; return what it took."""
        if self._load is not None:
            seconds *= self._load(self.clock.now)
        if self._random.random() < 0.3:
            seconds *= 1 + self._noise * self._random.random()
        self.clock.now += seconds
        return seconds

    def usual_factor(self, at):
        """Return how many times longer something takes at a moment, on average over its disturbances."""
        return (1.0 if self._load is None else self._load(at)) * (1 + 0.3 * self._noise / 2)

    def generate(self, sources, n_token, **settings):
        """Return (seconds, those of plain decoding at the same moments, [tokens of each pass], statistics)."""
        one = self._pass_s(1)
        ratios = {n: s / one for n, s in self._known.items()} if self._known else None
        controller = Controller(sources, StepCosts(ratios, one if ratios else 0.0), SpeedFile(None))
        started, self.plain_s = self.clock.now, 0.0
        passes, stats = self.answer(controller, n_token, **settings)
        return self.clock.now - started, self.plain_s, passes, stats

    def answer(self, controller, n_token, **settings):
        """Generate one answer; return ([tokens of each pass], statistics)."""
        text = list(range(N_PROMPT + 1))  # the first token is the prompt's
        controller.begin(text[:N_PROMPT], ANSWER, SpeculationSettings(**settings))
        passes = []
        while len(text) - N_PROMPT - 1 < n_token:
            draft = controller.plan(text, min(64, n_token - (len(text) - N_PROMPT)))
            middle = self.clock.now
            controller.passed(1 + len(draft), self.spend(self._pass_s(1 + len(draft))))
            n_right = next((i for i, t in enumerate(draft) if t != len(text) + i), len(draft))
            if draft:
                controller.verified(n_right, np.zeros(1, np.float32))
            passes.append(n_right + 1)
            self.plain_s += (n_right + 1) * self._pass_s(1) * self.usual_factor(middle)
            text += range(len(text), len(text) + n_right + 1)
        return passes, controller.end(text)
