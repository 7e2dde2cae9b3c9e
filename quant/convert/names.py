"""Which tensor of a checkpoint is which tensor of a GGUF file; every one on either side must have its partner.

Checkpoint -> GGUF goes through the name maps of the ``gguf`` package, GGUF -> checkpoint through the list of
what a family has (``families.py``).
"""

from __future__ import annotations

from ...formats.errors import FormatError, quote
from ...formats.hf_checkpoint import HfCheckpoint
from ...formats.record import Record, field
from ...formats.safetensors import SafeTensor
from .network import Network

# A matrix that is stored in several tensors (GPTQ, AWQ, compressed-tensors, fp8): their last names.
PARTS = frozenset(
    {
        "qweight", "qzeros", "scales", "g_idx",
        "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx", "weight_scale_inv",
    }
)  # fmt: skip
# Not of the language model, or made again from config.json, or about activations (that stay float here).
_UNUSED = (".rotary_emb.inv_freq", ".masked_bias", ".input_scale", ".output_scale", ".k_scale", ".v_scale")
_VISION = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


class Names(Record, frozen=False):
    """The partners.

    Attributes:
        parts: GGUF's name -> the tensors that hold it, by the last part of their name (``weight``, ``qweight``, ...).
        shapes: GGUF's name -> shape, in the order in which the file lists them.
        notes: what is left out.
    """

    parts: dict[str, dict[str, SafeTensor]]
    shapes: dict[str, tuple[int, ...]]
    notes: list[str] = field(default_factory=list)


def match_names(checkpoint: HfCheckpoint, network: Network) -> Names:
    """Return the partners of all tensors.

    Raises:
        FormatError: a tensor has no partner, two have the same one, or a shape is wrong.
    """
    parts, notes = _by_gguf_name(checkpoint, network)
    n_vocab = _n_vocab(checkpoint, network, parts)
    if network.is_tied is None:
        network.is_tied = "output.weight" not in parts
    required, optional = _expected(network, n_vocab)
    if "output.weight" in parts and network.is_tied:
        del parts["output.weight"]
        notes.append("lm_head.weight is left out: config.json ties it to the embedding")
    for name, found in parts.items():
        if name not in required and name not in optional:
            tensor = next(iter(found.values()))
            raise FormatError(f"{checkpoint.where(tensor.name)} ({name}) is no part of {network.family.arch} in GGUF")
    for name in required:
        if name not in parts:
            raise FormatError(f"{checkpoint.path}: no tensor for {name}, which {network.family.arch} needs")
    shapes = {name: shape for name, shape in _in_order({**required, **optional}) if name in parts}
    for name, shape in shapes.items():
        plain = parts[name].get("weight") or parts[name].get("bias")
        if plain is not None and plain.shape != shape:
            raise FormatError(
                f"{checkpoint.where(plain.name)} has shape {list(plain.shape)}, expected {list(shape)} for {name}"
            )
    return Names(parts, shapes, notes)


def _by_gguf_name(checkpoint: HfCheckpoint, network: Network) -> tuple[dict[str, dict[str, SafeTensor]], list[str]]:
    import gguf  # here: 0.1 s, and only conversions need it

    arch = gguf.MODEL_ARCH[network.family.arch.upper()]
    tensor_map = gguf.get_tensor_name_map(arch, network.n_layer)
    parts: dict[str, dict[str, SafeTensor]] = {}
    n_vision = 0
    for tensor in checkpoint.tensors.values():
        if tensor.name.startswith(_VISION):
            n_vision += 1
            continue
        if tensor.name.endswith(_UNUSED):
            continue
        name = _plain_name(tensor.name)
        module, _, last = name.rpartition(".")
        mapped = tensor_map.get_name(module)
        if mapped is None or (last not in ("weight", "bias") and last not in PARTS):
            raise FormatError(
                f"{checkpoint.where(tensor.name)} is no part of {network.family.arch} with {network.n_layer} layers"
            )
        found = parts.setdefault(f"{mapped}.{'bias' if last == 'bias' else 'weight'}", {})
        if last in found:
            raise FormatError(f"{checkpoint.where(tensor.name)} and {quote(found[last].name)} are both {mapped}.{last}")
        found[last] = tensor
    notes = [f"{n_vision} tensors of the vision tower are left out: only the language model is converted"]
    return parts, notes if n_vision else []


def _plain_name(name: str) -> str:
    """Return the name without the prefixes of models that also see."""
    for prefix, plain in (("language_model.", ""), ("model.language_model.", "model.")):
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name


def _n_vocab(checkpoint: HfCheckpoint, network: Network, parts: dict[str, dict[str, SafeTensor]]) -> int:
    embedding = parts.get("token_embd.weight", {}).get("weight")
    if embedding is None:
        raise FormatError(f"{checkpoint.path}: no tensor for token_embd.weight ({_TOP['token_embd.weight']})")
    if len(embedding.shape) != 2 or not embedding.shape[0]:
        raise FormatError(f"{checkpoint.where(embedding.name)} has shape {list(embedding.shape)}, expected a matrix")
    if network.n_vocab is not None and embedding.shape[0] != network.n_vocab:
        raise FormatError(
            f"{checkpoint.where(embedding.name)} has {embedding.shape[0]} rows, but vocab_size is {network.n_vocab}"
        )
    return embedding.shape[0]


def _expected(network: Network, n_vocab: int) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Return shapes of what must be there and of what may be there."""
    sizes, family = network.sizes, network.family
    required = {"token_embd.weight": (n_vocab, sizes["e"]), "output_norm.weight": (sizes["e"],)}
    if not network.is_tied:
        required["output.weight"] = (n_vocab, sizes["e"])
    optional: dict[str, tuple[int, ...]] = {}
    for i in range(network.n_layer):
        for table, target in ((family.layer, required), (family.optional, optional)):
            for name, letters in table.items():
                target[f"blk.{i}.{name}"] = tuple(sizes[letter] for letter in letters)
    return required, optional


def _in_order(shapes: dict[str, tuple[int, ...]]) -> list[tuple[str, tuple[int, ...]]]:
    """Return (name, shape): embedding, layer by layer, final norm, output matrix."""
    layers = [name for name in shapes if name.startswith("blk.")]
    layers.sort(key=lambda name: int(name.split(".")[1]))  # stable: the family's order within a layer
    first, last = ["token_embd.weight"], ["output_norm.weight", "output.weight"]
    return [(name, shapes[name]) for name in [*first, *layers, *last] if name in shapes]
