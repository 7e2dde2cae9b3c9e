"""Answer the prompts of transcripts.json again and write the answers there.

LLMRUN_TEST_MODELS=FOLDER python -m tests.models.make_transcripts
"""

import json
from pathlib import Path

from .llmrun_process import answer
from .models import MODELS, model_path

FILE = Path(__file__).parent / "transcripts.json"


def main():
    """Rewrite the file."""
    models = json.loads(FILE.read_text(encoding="utf-8"))
    for name, model in models.items():
        model["file"], model["sha256"] = MODELS[name]
        for transcript in model["transcripts"]:
            transcript["text"] = answer(model_path(name), transcript)
            print(f"{name}: {transcript['prompt'][-60:]!r} -> {transcript['text']!r}", flush=True)
    FILE.write_text(json.dumps(models, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
