"""``llmrun draft``: which of the models that are here drafts best for another one, and what it gains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..formats.errors import LlmrunError
from .declare import Argument, Option
from .generation import open_engine
from .model_ref import resolve
from .models_folder import local_models, models_folder
from .options import LoadOptions
from .render.progress import ProgressBar
from .render.text import escaped, size

if TYPE_CHECKING:
    from ..runtime.measure.draft_choice import Candidate

MOST_BYTES = 0.6  # of the target's file; a larger draft's steps cost more than they can save
LEAST_GAIN = 1.03
N_CTX = 1024
# Small models on the Hugging Face hub by what the target's file says of its tokenizer: (model, pre, words of its name).
HUB = (
    ("gpt2", "qwen2", ("coder",), "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF:Q4_K_M"),
    ("gpt2", "qwen2", ("qwen3",), "Qwen/Qwen3-0.6B-GGUF:Q8_0"),
    ("gpt2", "qwen2", (), "Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M"),
    ("gpt2", "llama-bpe", (), "bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M"),
    ("gpt2", "smollm", (), "bartowski/SmolLM2-135M-Instruct-GGUF:Q4_K_M"),
    ("llama", "", ("gemma",), "ggml-org/gemma-3-270m-it-GGUF:Q8_0"),
)
KEYS = ("general.name", "general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre")


def draft(
    model: Annotated[str, Argument(metavar="MODEL", help="The model that is to be guessed for.")],
    loading: LoadOptions,
    candidate: Annotated[
        list[str] | None,
        Option(
            "--candidate",
            "-md",
            metavar="MODEL",
            help="Measure this model (may repeat).  [default: all smaller ones in the models folder and beside MODEL]",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find the model that guesses best for another one (--draft): measure those that are here, and suggest others."""
    path = resolve(model)
    paths = [resolve(name) for name in candidate] if candidate else find_candidates(path)
    found: list[Candidate] = []
    refused: dict[str, str] = {}
    with open_engine(path, loading, n_ctx=loading.ctx_size or N_CTX) as engine:
        from ..runtime.measure.draft_choice import choice_prompts, measure_candidate

        prompts = choice_prompts()
        done = 0
        with ProgressBar("measuring drafts") as bar:
            for place in paths:

                def on_step(name: str = place.name) -> None:
                    nonlocal done
                    done += 1
                    bar(name, done, len(paths) * len(prompts))

                try:
                    found.append(measure_candidate(engine, place, prompts, on_step))
                except LlmrunError as error:
                    refused[place.name] = str(error)
    hub = suggestions(path)
    found.sort(key=lambda one: -one.gain)
    best = next((one for one in found if one.gain >= LEAST_GAIN), None)
    if as_json:
        print(json.dumps(report(path, found, refused, best, hub), ensure_ascii=False, indent=2))
        return
    print(text_of(path, found, refused, best, hub))


def find_candidates(path: Path) -> list[Path]:
    """Return the models of the models folder and of the target's own that are small enough, the smallest first."""
    limit = MOST_BYTES * path.stat().st_size
    places = {one.files[0].resolve(): one.n_bytes for one in local_models(models_folder())}
    for other in sorted(path.parent.glob("*.gguf")):
        places.setdefault(other.resolve(), other.stat().st_size)
    places.pop(path.resolve(), None)
    return sorted((p for p, n in places.items() if n <= limit), key=lambda p: places[p])


def suggestions(path: Path) -> list[str]:
    """Return names of small models on the hub that have the target's vocabulary, as far as its file tells."""
    from ..formats.gguf import GgufFile  # here: --help must not pay for NumPy

    with GgufFile.open(path) as file:
        text = {key: file.metadata.optional(key, str, "") for key in KEYS}
    names = f"{text['general.name']} {text['general.architecture']} {path.name}".lower()
    for model, pre, words, name in HUB:
        is_same = text["tokenizer.ggml.model"] == model and (not pre or text["tokenizer.ggml.pre"] == pre)
        if is_same and all(word in names for word in words):
            return [name]
    return []


def report(
    path: Path, found: list[Candidate], refused: dict[str, str], best: Candidate | None, hub: list[str]
) -> dict[str, Any]:
    """Return everything as JSON has it."""
    return {
        "model": str(path),
        "candidates": [
            {
                "path": str(one.path),
                "packed_bytes": one.packed_bytes,
                "is_same_vocabulary": one.is_same_vocabulary,
                "n_shared": one.n_shared,
                "step_price": round(one.step_price, 4),
                "acceptance": {kind: round(share, 4) for kind, share in one.acceptance.items()},
                "speedup": {kind: round(times, 3) for kind, times in one.speedup.items()},
            }
            for one in found
        ],
        "refused": refused,
        "recommended": None if best is None else str(best.path),
        "hub": hub,
    }


def text_of(path: Path, found: list[Candidate], refused: dict[str, str], best: Candidate | None, hub: list[str]) -> str:
    """Return what the user reads."""
    lines = []
    for one in found:
        vocabulary = "same vocabulary" if one.is_same_vocabulary else f"{one.n_shared} tokens in common"
        gains = ", ".join(
            f"{kind} {times:.2f}x ({one.acceptance[kind]:.0%} right)" for kind, times in one.speedup.items()
        )
        lines.append(f"{escaped(one.path.name)}: {size(one.packed_bytes)}, {vocabulary}")
        lines.append(f"  a step costs {one.step_price:.2f} of the model's own; {gains}")
    lines += [f"{escaped(name)}: {escaped(why)}" for name, why in refused.items()]
    if lines:
        lines.append("")
    if best is not None:
        lines.append(f"recommended: llmrun chat {escaped(str(path))} --draft {escaped(str(best.path))}")
    elif found:
        lines.append("none of these gains time here; copies of the text (--spec ngram) need no draft model")
    else:
        lines.append(f"no smaller model is in {escaped(str(models_folder()))} or beside this one")
    lines += [f"on the hub: llmrun pull {name}" for name in hub if not _is_here(name, found)]
    return "\n".join(lines)


def _is_here(name: str, found: list[Candidate]) -> bool:
    stem = name.split("/")[1].split(":")[0].removesuffix("-GGUF").lower()
    return any(one.path.name.lower().startswith(stem) for one in found)
