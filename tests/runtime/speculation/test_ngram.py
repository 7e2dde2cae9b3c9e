"""Copies of the text: what followed the last tokens when they stood there before."""

from itertools import islice

from llmrun.runtime.speculation.ngram import PRIORS, NgramSource
from llmrun.runtime.speculation.source import Guess


def source_of(text):
    source = NgramSource()
    source.begin(text, None)
    return source


def ids(guesses):
    return [guess.token_id for guess in guesses]


def test_goes_on_as_the_longest_match_did():
    text = [1, 2, 3, 4, 5, 6, 9, 3, 4, 7, 8, 2, 3, 4]
    assert ids(islice(source_of(text).guess(text), 4)) == [5, 6, 9, 3]  # 2 3 4, not the later 3 4


def test_one_token_alike_is_no_match_of_its_own():
    text = [1, 2, 3, 4, 5, 3]
    assert ids(source_of(text).guess(text)) == []


def test_another_sources_draft_goes_on_as_the_longest_match_did():
    text = [1, 2, 3, 4, 5, 6, 9, 3, 4, 7, 8, 2]
    source = source_of(text)
    assert ids(source.guess(text)) == []
    assert ids(source.after([3, 4])) == [5, 6, 9, 3, 4, 7, 8, 2]
    assert ids(source.after([9, 3])) == [4, 7, 8, 2]


def test_after_one_token_alike_one_guess_of_the_least_sure_class():
    text = [1, 2, 3, 4, 5, 6, 3, 8, 9]
    source = source_of(text)
    list(source.guess(text))
    assert list(source.after([3])) == [Guess(8, 0)]  # what followed it last
    assert PRIORS[0] == min(PRIORS)
    assert list(source.after([7])) == []


def test_a_text_that_branches_off_is_no_continuation_of_the_old_one():
    source = source_of([1, 2, 3, 4, 5])
    source.begin([1, 2, 7, 4], None)
    assert ids(source.after([5])) == []  # nothing followed it, the next text begins
    assert ids(islice(source.after([3]), 1)) == [4]  # the old text is still known
