"""The JSON and text files of a Hugging Face checkpoint folder, with checked access to their values.

What the values mean for a model is the matter of ``quant/convert/``.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from .errors import FormatError, quote
from .strict_json import read_bytes, read_json

T = TypeVar("T")

MAX_TEMPLATE_BYTES = 1 << 20
MAX_SENTENCEPIECE_BYTES = 1 << 26
MAX_INT = 1 << 53


class JsonObject:
    """An object of a JSON file; null counts as missing.

    Attributes:
        where: file and key, for messages.
        values: as parsed.
    """

    where: str
    values: dict[str, Any]

    def __init__(self, where: str, values: Any) -> None:
        if not isinstance(values, dict):
            raise FormatError(f"{where}: is {_kind(values)}, expected an object")
        self.where, self.values = where, values

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def required(self, key: str, type_: type[T]) -> T:
        """Return a value that must be there; ``float`` accepts integers and must be finite.

        Raises:
            FormatError: it is missing or has another type.
        """
        value = self.optional(key, type_)
        if value is None:
            raise FormatError(f"{self.where}: {quote(key)} is missing")
        return value

    def optional(self, key: str, type_: type[T]) -> T | None:
        """Return a value, None when it is missing or null.

        Raises:
            FormatError: it has another type.
        """
        value: Any = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, int) and abs(value) >= MAX_INT:
            raise FormatError(f"{self.where}: {quote(key)} is {value}, expected less than {MAX_INT}")
        if type_ is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(value, float) and not math.isfinite(value):
            raise FormatError(f"{self.where}: {quote(key)} is not finite")
        if not isinstance(value, type_) or isinstance(value, bool) != (type_ is bool):
            raise FormatError(f"{self.where}: {quote(key)} is {_kind(value)}, expected {type_.__name__}")
        return value

    def either(self, keys: tuple[str, ...], type_: type[T]) -> T | None:
        """Return the first of several keys that is there, None when none is."""
        return next((self.optional(key, type_) for key in keys if key in self), None)

    def object(self, key: str) -> JsonObject | None:
        """Return an object inside this one, None when it is missing.

        Raises:
            FormatError: it is something else than an object.
        """
        return JsonObject(f"{self.where}: {quote(key)}", self.values[key]) if key in self else None

    def array(self, key: str, item: type[Any], n_item: int | None = None) -> list[Any] | None:
        """Return a list whose items all have a type (``float`` accepts integers), None when it is missing.

        Raises:
            FormatError: it is no list, has another length, or an item has another type.
        """
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or (n_item is not None and len(value) != n_item):
            wanted = "a list" if n_item is None else f"a list of {n_item}"
            raise FormatError(f"{self.where}: {quote(key)} is {_kind(value)}, expected {wanted}")
        accepted = (int, float) if item is float else (item,)
        for i, one in enumerate(value):
            if not isinstance(one, accepted) or (isinstance(one, bool) and item is not bool):
                raise FormatError(f"{self.where}: {quote(key)}[{i}] is {_kind(one)}, expected {item.__name__}")
        return value


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {quote(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return {dict: "an object", bool: "a bool", int: "an integer", float: "a number", type(None): "null"}[type(value)]


class HfFolder:
    """The small files of a checkpoint folder; each is read when it is asked for.

    Attributes:
        path: the folder.
    """

    path: Path

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def config(self) -> JsonObject:
        """``config.json``.

        Raises:
            FormatError: it is missing or damaged.
        """
        if not (self.path / "config.json").exists():
            raise FormatError(f"{self.path}: has no config.json. Expected a Hugging Face checkpoint folder")
        return JsonObject(str(self.path / "config.json"), read_json(self.path / "config.json"))

    def json(self, name: str) -> JsonObject | None:
        """Return another JSON file of the folder, None when there is none.

        Raises:
            FormatError: it is damaged, or no object.
        """
        path = self.path / name
        return JsonObject(str(path), read_json(path)) if path.exists() else None

    @cached_property
    def generation_config(self) -> JsonObject | None:
        """``generation_config.json``."""
        return self.json("generation_config.json")

    @cached_property
    def tokenizer(self) -> JsonObject | None:
        """``tokenizer.json``."""
        return self.json("tokenizer.json")

    @cached_property
    def tokenizer_config(self) -> JsonObject:
        """``tokenizer_config.json``, an empty object when there is none."""
        return self.json("tokenizer_config.json") or JsonObject(str(self.path / "tokenizer_config.json"), {})

    @cached_property
    def special_tokens_map(self) -> JsonObject:
        """``special_tokens_map.json``, an empty object when there is none."""
        return self.json("special_tokens_map.json") or JsonObject(str(self.path / "special_tokens_map.json"), {})

    @cached_property
    def added_tokens(self) -> JsonObject:
        """``added_tokens.json``, an empty object when there is none."""
        return self.json("added_tokens.json") or JsonObject(str(self.path / "added_tokens.json"), {})

    def sentencepiece(self) -> tuple[Path, bytes] | None:
        """Return path and bytes of ``tokenizer.model``, None when there is none.

        Raises:
            FormatError: it is not readable or too large.
        """
        path = self.path / "tokenizer.model"
        return (path, read_bytes(path, max_bytes=MAX_SENTENCEPIECE_BYTES)) if path.exists() else None

    def raw(self, name: str) -> bytes:
        """Return the bytes of another tokenizer file.

        Raises:
            FormatError: it is not readable or too large.
        """
        return read_bytes(self.path / name, max_bytes=MAX_SENTENCEPIECE_BYTES)

    def chat_templates(self) -> dict[str, str]:
        """Return the chat templates by name; ``default`` is the one that is used when none is asked for.

        ``chat_template.jinja`` and ``additional_chat_templates`` win over the configuration, as in transformers.

        Raises:
            FormatError: a template is no UTF-8, too long, or not described as it should be.
        """
        templates = _listed_templates(self.tokenizer_config)
        beside = self.json("chat_template.json")
        if beside is not None:
            templates |= _listed_templates(beside)
        path = self.path / "chat_template.jinja"
        if path.exists():
            templates["default"] = _template(path)
        for extra in sorted((self.path / "additional_chat_templates").glob("*.jinja")):
            templates[extra.stem] = _template(extra)
        return templates


def _template(path: Path) -> str:
    try:
        return read_bytes(path, max_bytes=MAX_TEMPLATE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: is not UTF-8 (byte {error.start})") from None


def _listed_templates(config: JsonObject) -> dict[str, str]:
    """Return what ``chat_template`` of a configuration holds: one text, or a list of named ones."""
    value = config.values.get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": _checked(config, value)}
    templates = {}
    for i, entry in enumerate(config.array("chat_template", dict) or []):
        one = JsonObject(f"{config.where}: 'chat_template'[{i}]", entry)
        templates[one.required("name", str)] = _checked(config, one.required("template", str))
    return templates


def _checked(config: JsonObject, text: str) -> str:
    if len(text) > MAX_TEMPLATE_BYTES:
        raise FormatError(
            f"{config.where}: a chat template has {len(text)} characters, at most {MAX_TEMPLATE_BYTES} are read"
        )
    return text
