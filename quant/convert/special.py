"""Special tokens, what is put around a prompt, and chat templates, from the files of a checkpoint.

Source: ``SpecialVocab`` of the ``gguf`` package, for which file wins where several speak.
"""

from __future__ import annotations

import re

from ...formats.errors import FormatError, quote
from ...formats.hf_config import HfFolder, JsonObject
from ...formats.meta_value import MetaValue
from ...formats.metadata import ValueType
from .tokens import added_entries

_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # spelled so in GGUF
    "pad": "padding_token_id",
    "mask": "mask_token_id",
}
# Engines find these ends of a turn by their text.
_KNOWN_ENDS = frozenset(
    {"<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "</s>"}
)


def special_metadata(
    folder: HfFolder, texts: dict[str, int], *, adds_bos: bool, n_vocab: int, known: dict[str, int]
) -> tuple[dict[str, MetaValue], list[str]]:
    """Return keys of special tokens and whether bos and eos are put around a prompt, and notes.

    Args:
        folder: the checkpoint.
        texts: token text -> id.
        adds_bos: whether bos goes in front when no file says so.
        n_vocab: rows of the embedding.
        known: ids that hold where no JSON file names one.

    Raises:
        FormatError: a file is damaged.
    """
    found = {name: token_id for name, token_id in known.items() if 0 <= token_id < n_vocab}
    found |= {name: token_id for name in _KEYS if (token_id := _id(folder, name, texts, n_vocab)) is not None}
    metadata = {f"tokenizer.ggml.{_KEYS[name]}": MetaValue.u32(token_id) for name, token_id in found.items()}
    notes: list[str] = []
    ends = [token_id for token_id in _end_ids(folder) if 0 <= token_id < n_vocab and token_id != found.get("eos")]
    by_id = {token_id: text for text, token_id in texts.items()}
    unknown = [token_id for token_id in ends if by_id.get(token_id) not in _KNOWN_ENDS]
    for key, token_id in zip(("eot_token_id", "eom_token_id"), unknown, strict=False):
        metadata[f"tokenizer.ggml.{key}"] = MetaValue.u32(token_id)
    notes += [f"token {token_id}, which ends a text too, has no key in GGUF" for token_id in unknown[2:]]
    added = _around(folder, {by_id[token_id]: name for name, token_id in found.items() if token_id in by_id})
    for name, default in (("bos", adds_bos), ("eos", False)):
        stated = added.get(name)
        if stated is None:
            stated = folder.tokenizer_config.optional(f"add_{name}_token", bool)
        metadata[f"tokenizer.ggml.add_{name}_token"] = MetaValue.boolean(default if stated is None else stated)
    return metadata, notes


def _id(folder: HfFolder, name: str, texts: dict[str, int], n_vocab: int) -> int | None:
    """Return the id of a special token: by its text, then by the number in config.json."""
    for config in (folder.tokenizer_config, folder.special_tokens_map):
        value = config.values.get(f"{name}_token")
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and text in texts:
            return texts[text]
    for number in (folder.config.values, folder.config.values.get("text_config") or {}):
        token_id = number.get(f"{name}_token_id") if isinstance(number, dict) else None
        if isinstance(token_id, list) and token_id:
            token_id = token_id[0]
        if type(token_id) is int and 0 <= token_id < n_vocab:
            return token_id
    return None


def _end_ids(folder: HfFolder) -> list[int]:
    """Return all ids at which generation ends, as generation_config.json lists them."""
    config = folder.generation_config
    value = config.values.get("eos_token_id") if config is not None else None
    return [one for one in (value if isinstance(value, list) else [value]) if type(one) is int]


def _around(folder: HfFolder, names: dict[str, str]) -> dict[str, bool]:
    """Return whether tokenizer.json's post-processor puts bos in front and eos behind; nothing where it has none.

    Raises:
        FormatError: it puts something else there, or is damaged.
    """
    tokenizer = folder.tokenizer
    entry = tokenizer.object("post_processor") if tokenizer is not None else None
    if entry is None:
        return {}
    result: dict[str, bool] = {}
    processors = [JsonObject(entry.where, one) for one in entry.array("processors", dict) or []] or [entry]
    for processor in processors:
        kind = processor.optional("type", str)
        if kind == "ByteLevel":
            result = {"bos": False, "eos": False} | result
        elif kind == "TemplateProcessing":
            result |= _template(processor, names)
        else:
            raise FormatError(f"{processor.where}: post-processor {quote(kind or '')} is not in GGUF")
    return result


def _template(processor: JsonObject, names: dict[str, str]) -> dict[str, bool]:
    """Return what the template of a single text has before and behind it."""
    parts = [JsonObject(processor.where, one) for one in processor.array("single", dict) or []]
    kinds = [next(iter(part.values), "") for part in parts]
    if kinds.count("Sequence") != 1 or len(kinds) > 3:
        raise FormatError(f"{processor.where}: a template of {len(parts)} parts is not in GGUF")
    at = kinds.index("Sequence")
    around = {"bos": parts[:at], "eos": parts[at + 1 :]}
    for name, some in around.items():
        for part in some:
            token = part.object("SpecialToken")
            text = token.optional("id", str) if token is not None else None
            if len(some) > 1 or names.get(text or "") != name:
                raise FormatError(f"{processor.where}: puts {quote(text or '')} where GGUF can only put {name}")
    return {name: bool(some) for name, some in around.items()}


def template_metadata(folder: HfFolder) -> dict[str, MetaValue]:
    """Return the chat templates as GGUF names them: one without a name, others listed.

    Raises:
        FormatError: a template cannot be read.
    """
    templates = {re.sub("[^0-9A-Za-z]", "_", name): text for name, text in folder.chat_templates().items() if name}
    metadata: dict[str, MetaValue] = {}
    others = [name for name in templates if name != "default"]
    for name in others:
        metadata[f"tokenizer.chat_template.{name}"] = MetaValue.text(templates[name])
    if others:
        metadata["tokenizer.chat_templates"] = MetaValue.texts(others)
    default = templates.get("default")
    if default is not None:
        metadata["tokenizer.chat_template"] = MetaValue.text(default)
    return metadata


def texts_of(tokens: list[str], folder: HfFolder) -> dict[str, int]:
    """Return text -> id; added tokens as the JSON files write them."""
    texts = {text: token_id for token_id, text in enumerate(tokens)}
    for entry in added_entries(folder.tokenizer):
        token_id = entry.required("id", int)
        if 0 <= token_id < len(tokens):
            texts[entry.required("content", str)] = token_id
    return texts


def sampling_metadata(folder: HfFolder) -> dict[str, MetaValue]:
    """Return the sampler settings that generation_config.json recommends.

    Raises:
        FormatError: one is no number.
    """
    config = folder.generation_config
    if config is None or not config.optional("do_sample", bool):
        return {}
    metadata: dict[str, MetaValue] = {}
    top_k = config.optional("top_k", int)
    if top_k is not None and 0 <= top_k < 1 << 31:
        metadata["general.sampling.top_k"] = MetaValue(ValueType.I32, top_k)
    for key, name in (("top_p", "top_p"), ("min_p", "min_p"), ("temperature", "temp")):
        value = config.optional(key, float)
        if value is not None:
            metadata[f"general.sampling.{name}"] = MetaValue.f32(value)
    return metadata
