"""What reading a text takes is put down at once, or over the tokens that gain by it."""

import pytest

from llmrun.runtime.speculation.account import ALLOWANCE, ALLOWANCE_TOKENS, IN_ADVANCE, PAID_OVER, READING, Account

FIRST = ALLOWANCE * ALLOWANCE_TOKENS


def test_reading_is_paid_at_once_where_drafts_do_not_pay():
    account = Account()
    assert account.for_reading(pays=False) == pytest.approx(READING * FIRST)
    account.learn(1, 1.0, 1.5)
    assert account.allowance == pytest.approx(FIRST - 1.5)
    assert account.for_reading(pays=False) == pytest.approx(READING * (FIRST - 1.5))


def test_reading_is_paid_over_the_tokens_that_follow_where_drafts_pay():
    account = Account()
    assert account.for_reading(pays=True) == pytest.approx(FIRST + IN_ADVANCE)
    account.learn(6, 6.0, 3.0)
    assert account.allowance == pytest.approx(FIRST - 3.0 * 6 / PAID_OVER)
    assert account.for_reading(pays=True) == pytest.approx(FIRST - 3.0 + IN_ADVANCE)  # all that was taken counts
    account.learn(1000, 1000.0)
    assert account.allowance == pytest.approx(ALLOWANCE * 1006 - 3.0)


def test_what_is_not_paid_at_an_answers_end_is_paid_then():
    account = Account()
    account.for_reading(pays=True)
    account.learn(1, 1.0, 3.0)
    account.begin()
    assert account.allowance == pytest.approx(FIRST - 3.0)


def test_reading_does_not_change_how_many_tokens_are_made_in_a_plain_step():
    account = Account()
    account.learn(4, 2.0, 5.0)
    assert account.rate == pytest.approx(2.0)
