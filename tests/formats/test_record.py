"""Records behave like frozen dataclasses with slots."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmrun.formats.record import Record, as_dict, defaults_of, field, fields_of, replace


class Place(Record):
    name: str
    offset: int = 0
    parts: list[int] = field(default_factory=list)


class Named(Record, kw_only=True):
    name: str


class Shifted(Place):
    offset: int = 7
    scale: float = 1.0


class Counter(Record, frozen=False):
    n: int = 0


class Unique(Record, eq=False):
    name: str


class Positive(Record):
    n: int

    def __post_init__(self) -> None:
        if self.n <= 0:
            raise ValueError("not positive")


def test_fields_are_taken_in_order_or_by_name():
    assert as_dict(Place("a", parts=[1])) == {"name": "a", "offset": 0, "parts": [1]}
    assert repr(Place("a", 3)) == "Place(name='a', offset=3, parts=[])"


def test_a_made_default_is_new_in_every_record():
    assert Place("a").parts is not Place("a").parts


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Place(), "Place needs a value for 'name'"),
        (lambda: Place("a", 1, [], 2), "Place takes 3 values without a name, got 4"),
        (lambda: Place("a", name="b"), "Place has no field 'name', or got it twice"),
        (lambda: Place("a", size=1), "Place has no field 'size', or got it twice"),
        (lambda: Named("a"), "Named takes 0 values without a name, got 1"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(TypeError) as caught:
        make()
    assert str(caught.value) == message


def test_records_are_compared_and_hashed_by_class_and_fields():
    assert Named(name="a") == Named(name="a") != Named(name="b")
    assert hash(Named(name="a")) == hash(Named(name="a"))
    assert Place("a") == Place("a")
    assert Named(name="a") != Unique("a")
    assert Unique("a") != Unique("a")
    assert len({Unique("a"), Unique("a")}) == 2
    with pytest.raises(TypeError, match="unhashable"):
        hash(Counter())


def test_only_records_that_say_so_can_be_changed():
    counter = Counter()
    counter.n += 1
    assert counter == Counter(1)
    record = Named(name="a")
    with pytest.raises(AttributeError, match="Named cannot be changed: 'name'"):
        record.name = "b"
    with pytest.raises(AttributeError, match="Named cannot be changed: 'name'"):
        del record.name
    with pytest.raises(AttributeError):
        counter.other = 1


def test_a_record_can_have_the_fields_of_another():
    assert fields_of(Shifted) == ("name", "offset", "parts", "scale")
    assert Shifted("a") == Shifted("a", 7, [], 1.0)
    assert defaults_of(Shifted)["offset"] == 7
    assert Place("a").offset == 0


def test_a_replaced_record_is_checked_again():
    assert replace(Place("a", 1), offset=2) == Place("a", 2)
    with pytest.raises(ValueError, match="not positive"):
        replace(Positive(1), n=0)


def test_the_engine_makes_do_without_dataclasses():
    code = "import sys, llmrun.runtime.engine; sys.exit('dataclasses' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
