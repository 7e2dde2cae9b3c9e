"""The category table agrees with Python's wherever both know a code point."""

# ruff: noqa: RUF001 - text in many scripts

import sys
import unicodedata

from llmrun.runtime.tokenizer.unicode_table import N_CODE_POINT, WHITESPACE, base_character, categories, lower


def test_categories_equal_pythons():
    table = categories()
    assert len(table) == N_CODE_POINT == sys.maxunicode + 1
    n_known = 0
    for code_point in range(N_CODE_POINT):
        known = unicodedata.category(chr(code_point))
        if known != "Cn" and chr(table[code_point]) != "n":  # assigned in both versions
            n_known += 1
            assert chr(table[code_point]) == known[0], hex(code_point)
    assert n_known > 280_000


def test_whitespace_is_what_unicode_says():
    spaces = {code_point for code_point in range(N_CODE_POINT) if chr(code_point).isspace()}
    assert spaces - WHITESPACE == {0x1C, 0x1D, 0x1E, 0x1F}  # Python counts four separators, Unicode does not
    assert spaces >= WHITESPACE


def test_case_and_accents():
    assert [lower(char) for char in "AÄİΣa1"] == ["a", "ä", "i", "σ", "a", "1"]
    assert [base_character(char) for char in "éÅ각a"] == ["e", "A", "ᄀ", "a"]
    assert lower("\u0378") == base_character("\u0378") == "\u0378"  # unassigned
