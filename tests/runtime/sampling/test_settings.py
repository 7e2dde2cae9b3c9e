"""The settings: llama.cpp's defaults, and one line for everything that makes no sense."""

from __future__ import annotations

import math

import pytest

from llmrun.formats.errors import ConfigError
from llmrun.runtime.sampling.settings import (
    DEFAULT_SAMPLERS,
    SamplerSettings,
    parse_logit_bias,
    parse_sampler_letters,
    parse_samplers,
)


def test_defaults_are_those_of_llama_cpp():
    """Source: llama.cpp, common/common.h, ``common_params_sampling``."""
    s = SamplerSettings()
    assert (s.temperature, s.top_k, s.top_p, s.min_p, s.typical_p, s.top_n_sigma) == (0.8, 40, 0.95, 0.05, 1.0, -1.0)
    assert (s.repeat_last_n, s.repeat_penalty, s.frequency_penalty, s.presence_penalty) == (64, 1.0, 0.0, 0.0)
    assert (s.dry_multiplier, s.dry_base, s.dry_allowed_length, s.dry_penalty_last_n) == (0.0, 1.75, 2, 64)
    assert s.dry_sequence_breakers == ("\n", ":", '"', "*")
    assert (s.xtc_probability, s.xtc_threshold, s.dynatemp_range, s.dynatemp_exponent) == (0.0, 0.1, 0.0, 1.0)
    assert (s.min_keep, s.logit_bias) == (0, ())
    assert ";".join(s.samplers) == "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature: expected a finite number, at least 0, got -0.1"),
        ({"temperature": math.nan}, "temperature: expected a finite number, at least 0, got nan"),
        ({"temperature": math.inf}, "temperature: expected a finite number, at least 0, got inf"),
        ({"temperature": True}, "temperature: expected a number, got True"),
        ({"temperature": "hot"}, "temperature: expected a number, got 'hot'"),
        ({"top_k": 1.5}, "top_k: expected a whole number, got 1.5"),
        ({"top_k": "1.5"}, "top_k: expected a whole number, got '1.5'"),
        ({"top_p": 1.01}, "top_p: expected 0 to 1, got 1.01"),
        ({"min_p": -0.01}, "min_p: expected 0 to 1, got -0.01"),
        ({"typical_p": 2}, "typical_p: expected 0 to 1, got 2"),
        ({"xtc_probability": 2}, "xtc_probability: expected 0 to 1, got 2"),
        ({"xtc_threshold": -1}, "xtc_threshold: expected 0 to 1, got -1"),
        ({"top_n_sigma": math.nan}, "top_n_sigma: expected a finite number, got nan"),
        ({"repeat_penalty": 0}, "repeat_penalty: expected a finite number above 0, got 0"),
        ({"repeat_penalty": math.inf}, "repeat_penalty: expected a finite number above 0, got inf"),
        ({"frequency_penalty": math.inf}, "frequency_penalty: expected a finite number, got inf"),
        ({"presence_penalty": 1e39}, "presence_penalty: expected a finite number, got 1e+39"),
        ({"repeat_last_n": -1}, "repeat_last_n: expected at least 0, got -1"),
        ({"dry_penalty_last_n": -1}, "dry_penalty_last_n: expected at least 0, got -1"),
        ({"dry_allowed_length": -1}, "dry_allowed_length: expected at least 0, got -1"),
        ({"min_keep": -1}, "min_keep: expected at least 0, got -1"),
        ({"dry_base": 0.5}, "dry_base: expected 0 (off) or at least 1, got 0.5"),
        ({"dry_sequence_breakers": [""]}, "dry_sequence_breakers: expected strings that are not empty, got ''"),
        ({"dry_sequence_breakers": 5}, "dry_sequence_breakers: expected a list, got 5"),
        ({"logit_bias": [(-1, 1.0)]}, "logit_bias: expected a token id, got -1"),
        ({"logit_bias": [(1, math.nan)]}, "logit_bias: expected a finite number or -inf for token 1, got nan"),
        ({"logit_bias": [(1, math.inf)]}, "logit_bias: expected a finite number or -inf for token 1, got inf"),
        ({"logit_bias": [1]}, "logit_bias: expected pairs (token id, number), got 1"),
        ({"logit_bias": 1}, "logit_bias: expected a list, got 1"),
        ({"samplers": "top_k;mirostat"}, "samplers: no sampler 'mirostat', expected some of penalties, dry, "),
        ({"samplers": 3}, "samplers: expected a list, got 3"),
        ({"temperature": 10**400}, "temperature: expected a finite number, at least 0, got a number of 1329 bits"),
        ({"temperature": "9" * 5000 + "x"}, "temperature: expected a number, got '99999999"),
        ({"top_k": "9" * 5000}, "top_k: expected a whole number, got '99999999"),
        ({"logit_bias": [(1, -(10**400), 2)]}, "logit_bias: expected pairs (token id, number), got (1, -1000000"),
        (
            {"logit_bias": [(1, -(10**400))]},
            "logit_bias: expected a finite number or -inf for token 1, got a number of ",
        ),
        ({"logit_bias": [(1, 10**400)]}, "logit_bias: expected a finite number or -inf for token 1, got a number of "),
        ({"temp": 1}, "temp: no such sampler setting, expected one of dry_allowed_length, "),
    ],
)
def test_senseless_options_are_one_line(options, message):
    with pytest.raises(ConfigError) as caught:
        SamplerSettings.from_options(options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_options_may_be_text_or_values_or_missing():
    s = SamplerSettings.from_options(
        {
            "temperature": "0.5",
            "top_k": "7",
            "top_p": 1,
            "min_p": None,
            "logit_bias": ["15043+1", (3, -math.inf)],
            "dry_sequence_breakers": ["\n\n"],
            "samplers": "top-k;temp",
        }
    )
    assert (s.temperature, s.top_k, s.top_p, s.min_p) == (0.5, 7, 1.0, 0.05)
    assert s.logit_bias == ((15043, 1.0), (3, -math.inf))
    assert s.dry_sequence_breakers == ("\n\n",)
    assert s.samplers == ("top_k", "temperature")


def test_no_breakers_are_spelt_none():
    assert SamplerSettings.from_options({"dry_sequence_breakers": ["none"]}).dry_sequence_breakers == ()
    assert SamplerSettings.from_options({"dry_sequence_breakers": "none"}).dry_sequence_breakers == ()


def test_settings_are_hashable_and_equal_by_value():
    assert SamplerSettings(logit_bias=[(1, 2)]) == SamplerSettings(logit_bias=((1, 2.0),))  # type: ignore[arg-type]
    assert len({SamplerSettings(), SamplerSettings(top_k=40), SamplerSettings(top_k=41)}) == 2


@pytest.mark.parametrize(
    "text", ["top_k;typ_p;temperature", "top-k;typ-p;temp", "TOPK;typ;Temperature", " topk ; typp;temp"]
)
def test_sampler_names_as_llama_cpp_spells_them(text):
    assert parse_samplers(text) == ("top_k", "typ_p", "temperature")


def test_no_samplers():
    assert parse_samplers("") == ()


def test_sampler_letters():
    assert parse_sampler_letters("edskypmxt") == DEFAULT_SAMPLERS
    assert parse_sampler_letters("tk") == ("temperature", "top_k")
    with pytest.raises(ConfigError, match="no sampler 'q', expected some of e "):
        parse_sampler_letters("kq")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("15043+1", (15043, 1.0)), ("2-1.5", (2, -1.5)), ("7-inf", (7, -math.inf)), ("7+1e-3", (7, 0.001))],
)
def test_logit_bias(text, expected):
    assert parse_logit_bias(text) == expected


@pytest.mark.parametrize("text", ["", "5", "+1", "5+", "five+1", "-5+1", "5+one", "5*2", "٣+1"])
def test_malformed_logit_bias_is_one_line(text):
    with pytest.raises(ConfigError, match=r"^logit_bias: expected TOKEN_ID\+BIAS or TOKEN_ID-BIAS, got "):
        parse_logit_bias(text)
