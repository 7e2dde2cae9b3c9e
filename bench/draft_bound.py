"""The most that drafts can gain on a text: what a planner would reach that knew beforehand which guesses are right.

    python bench/draft_bound.py TARGET.gguf DRAFT.gguf [--prompts code-cache,json-people] [-n 200]

The target's greedy answer is made once. Then the draft model and the copies guess each of its tokens after the right
ones, and passes of the target (1 to 24 rows) and steps of the draft are timed in turn. From that a shortest path over
the answer gives the cheapest way to make it: at each step no draft longer than what is right, copies free of charge,
and nothing for reading the prompt with the draft model (the last number counts that too). No planner with these sources
can be faster on this machine.

No planner knows that. The line below says what one would reach, on average, that knew of the whole answer beforehand
how sure each source will be of each guess, how often it is right when it is so sure, and where the draft model agrees
with a copy (which then costs no step of its own); but not which guesses are right.

``--passes``, ``--step`` and ``--token`` give another machine's prices.
"""

import argparse
import operator
import time
from collections import defaultdict
from itertools import accumulate
from pathlib import Path
from statistics import median

import numpy as np

from llmrun.runtime.engine import Engine
from llmrun.runtime.kv_cache import KvSequence
from llmrun.runtime.measure.drafts import GREEDY, PLAIN, SEED
from llmrun.runtime.sampling.chain import Sampler
from llmrun.runtime.session import GenerationParams
from llmrun.runtime.speculation.loop import verify
from llmrun.runtime.speculation.model_source import N_OUT
from llmrun.runtime.speculation.ngram import NgramSource
from llmrun.runtime.speculation.opening import open_draft
from llmrun.runtime.speculation.source import Answer
from llmrun.runtime.texts import draft_prompts

WIDTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24)
ROUNDS = 9
N_TEXT = 424  # tokens behind and with which passes are timed
LONGEST = WIDTHS[-1] - 1
UNKNOWN = 0.5  # chance of copies as sure as none was that the answer reached


def answer_of(engine, text, n):
    """Return the ids of a prompt and of the greedy answer to it."""
    ids = (
        engine.template.encode([{"role": "user", "content": text}])
        if engine.template
        else engine.tokenizer.encode(text)
    )
    params = GenerationParams(sampler=GREEDY, seed=SEED, max_tokens=n, speculation=PLAIN)
    session = engine.session()
    answer = [token.token_id for token in session.generate(ids, params) if token.token_id >= 0]
    session.close()
    return ids, answer


def drafted_right(engine, draft, ids, answer):
    """Return for each token of the answer whether the draft model says it after the right ones, and how sure it is."""
    shown = np.concatenate([rows.copy() for rows in engine.logits([*ids, *answer[:-1]], len(ids) - 1)])
    rule = Sampler(GREEDY, engine.info.n_vocab, engine.tokenizer.piece)
    source, text, right, sure = draft.source(None), list(ids), [], []
    source.begin(ids, Answer(sampler=rule, seed=SEED, sample=0, ends=frozenset()))
    for token, logits in zip(answer, shown, strict=True):
        source.budget_s = 1e9  # all of the prompt is read
        guess = next(source.guess(text))
        right.append(guess.token_id == token)
        sure.append(guess.sureness)
        if not right[-1]:
            source.shown(logits)
        text.append(token)
    source.close()
    return right, sure


def copies_of(ids, answer):
    """Return for each token of the answer what a copy of the text says of it and those after it: (sureness, right)."""
    source, context, copies = NgramSource(), list(ids), []
    source.begin(context, None)
    for i, token in enumerate(answer):
        guesses = list(zip(source.guess(context), answer[i : i + LONGEST], strict=False))
        right = list(accumulate((guess.token_id == came for guess, came in guesses), operator.and_))
        copies.append([(guess.sureness, is_right) for (guess, _), is_right in zip(guesses, right, strict=True)])
        context.append(token)
    return copies


def until_wrong(copied):
    """Return a copy up to its first wrong token: what is behind that is never reached."""
    return copied[: sum(is_right for _, is_right in copied) + 1]


def prices(engine, draft, text):
    """Return prices in plain steps of greedy passes by number of rows, behind a text, and of the draft's step; seconds
    of a plain step, and of a token of a text that the draft reads."""
    sequence = KvSequence(engine.pages, engine.n_ctx)
    past, taken, steps = len(text) - WIDTHS[-1], {n: [] for n in WIDTHS}, []
    room = np.zeros((WIDTHS[-1], engine.info.n_vocab), np.float32)  # touched
    for start in range(0, past, 8):
        verify(engine, [(sequence, text[start : min(start + 8, past)])], room)
    for n in WIDTHS:
        engine.prepare_best(n)  # where that is quicker, as answers do
    for _ in range(ROUNDS):
        for n in WIDTHS:
            started = time.perf_counter()
            verify(engine, [(sequence, text[past : past + n])], room, is_best_wanted=True)
            taken[n].append(time.perf_counter() - started)
            sequence.rollback(past)
        started = time.perf_counter()
        for _ in range(4):
            draft.step()
        steps.append((time.perf_counter() - started) / 4)
    sequence.close()
    plain, reading = median(taken[1]), KvSequence(draft.pages, draft.n_ctx)
    started = time.perf_counter()
    for _ in range(ROUNDS):
        draft.run(reading, [0] * 64, n_output=0)
    token_s = (time.perf_counter() - started) / (64 * ROUNDS)
    reading.close()
    at = np.interp(range(1, WIDTHS[-1] + 1), WIDTHS, [median(taken[n]) / plain for n in WIDTHS])
    return at, median(steps) / plain, plain, token_s


def cheapest(n_token, right, n_copied, passes, step):
    """Return the plain steps that the tokens after the first take at least."""
    price = np.full(n_token, np.inf)
    price[1] = 0.0  # token 0 is the prompt's; price[i]: until tokens 0 to i - 1 are there, and token i is next
    price = np.append(price, np.inf)
    for i in range(1, n_token):
        spent, n = 0.0, 0
        price[i + 1] = min(price[i + 1], price[i] + 1.0)
        while n < LONGEST and i + n < n_token - 1:
            at = i + n
            if n_copied[at]:
                n += 1  # free, and known to be right
            elif right[at]:
                n, spent = n + 1, spent + step
            else:
                break
            reached = min(i + n + 1, n_token)
            price[reached] = min(price[reached], price[i] + spent + passes[n])
    return price[n_token]


def rates_of(seen):
    """Return the share of right guesses by sureness."""
    by_class = defaultdict(list)
    for sureness, is_right in seen:
        by_class[sureness].append(is_right)
    return {sureness: np.mean(values) for sureness, values in by_class.items()}


def expected(n_token, right, sure, copies, passes, step):
    """Return the plain steps that the tokens after the first take on average for who knows all but what is right."""
    rates = rates_of(zip(sure[1:], right[1:], strict=True))
    copy_rates = rates_of(copy for copied in copies[1:] for copy in until_wrong(copied))
    price = np.zeros(n_token + 2)  # of the tokens from i on
    for i in range(n_token - 1, 0, -1):
        best, n, spent, reached, before = np.inf, 0, 0.0, 1.0, 0.0
        most = min(LONGEST, n_token - 1 - i)  # guesses, of tokens i to i + n - 1
        while True:
            # The draft of n guesses is verified, or goes on with as much of a copy as is best.
            so_far, chance, copied = before, reached, copies[i + n][: most - n] if n < most else []
            best = min(best, spent + passes[n] + so_far + chance * price[min(i + n + 1, n_token)])
            for m, (sureness, _) in enumerate(copied, n + 1):
                rate = copy_rates.get(sureness, UNKNOWN)
                so_far += chance * (1 - rate) * price[i + m]
                chance *= rate
                best = min(best, spent + passes[m] + so_far + chance * price[min(i + m + 1, n_token)])
            if n >= most:
                break
            # A step of the draft model: the copies that it agrees with, and its own guess behind them.
            spent += step
            n_agreed = 0
            while n_agreed < min(N_OUT - 1, len(copied)) and copied[n_agreed][1] and right[i + n + n_agreed]:
                n_agreed += 1
            for _ in range(min(n_agreed + 1, most - n)):
                chance = rates[sure[i + n]]
                n += 1
                before += reached * (1 - chance) * price[i + n]  # wrong at this one: the right token comes of the pass
                reached *= chance
        price[i] = best
    return price[1]


def main():
    """Print two lines for every prompt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("draft", type=Path)
    parser.add_argument("--prompts", default="")
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("--passes", help="prices of passes in plain steps, such as 1:1,2:1.05,4:1.1,8:1.75,24:5.4")
    parser.add_argument("--step", type=float, help="price of the draft's step, in plain steps")
    parser.add_argument("--token", type=float, help="price of a token that the draft reads, in plain steps")
    options = parser.parse_args()
    wanted = options.prompts.split(",") if options.prompts else None
    sample = "\n".join(prompt.text for prompt in draft_prompts())
    with Engine.open(options.target, n_ctx=2560) as engine:
        draft = open_draft(options.draft, engine)
        passes, step, plain, token_s = prices(engine, draft, engine.tokenizer.encode(sample)[:N_TEXT])
        token = token_s / plain
        if options.passes:
            known = sorted((int(n), float(price)) for n, price in (p.split(":") for p in options.passes.split(",")))
            passes = np.interp(range(1, WIDTHS[-1] + 1), *zip(*known, strict=True))
        step, token = options.step or step, options.token or token
        shown = ", ".join(f"{n}: {passes[n - 1]:.2f}" for n in WIDTHS)
        print(
            f"plain step {1e3 * plain:.1f} ms; draft step {step:.3f}; a token read {token:.3f}; passes by rows: {shown}"
        )
        for prompt in draft_prompts():
            name = f"{prompt.kind}-{prompt.name}"
            if prompt.kind == "random" or (wanted and name not in wanted):
                continue
            ids, answer = answer_of(engine, prompt.text, options.n)
            (right, sure), copies = drafted_right(engine, draft, ids, answer), copies_of(ids, answer)
            n_copied = [sum(is_right for _, is_right in copied) for copied in copies]
            most = {
                sources: (len(answer) - 1) / cheapest(len(answer), *told, passes, step)
                for sources, told in {
                    "both": (right, n_copied),
                    "draft": (right, [0] * len(answer)),
                    "copies": ([False] * len(answer), n_copied),
                }.items()
            }
            shares = np.mean(right[1:]), np.mean(np.array(n_copied[1:]) > 0)
            reading = len(ids) * token  # of the prompt with the draft model, in plain steps
            n = len(answer) - 1
            with_reading = n / (n / most["both"] + reading)
            print(
                f"{name:18} {len(ids):3} + {len(answer):3} tokens; draft right {shares[0]:.2f}, copy {shares[1]:.2f};"
                f" at most {most['both']:.2f} (draft alone {most['draft']:.2f}, copies {most['copies']:.2f};"
                f" with the prompt read by the draft {with_reading:.2f})",
                flush=True,
            )
            average = [
                n / (expected(len(answer), right, sure, copied, passes, step) + read)
                for copied, read in ((copies, 0.0), (copies, reading), ([[]] * len(answer), reading))
            ]
            print(
                f"{'':18} not knowing which guesses are right: {average[0]:.2f}"
                f" (with the prompt read by the draft {average[1]:.2f}, without copies {average[2]:.2f})",
                flush=True,
            )
        draft.close()


if __name__ == "__main__":
    main()
