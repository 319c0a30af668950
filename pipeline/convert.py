"""A GGUF file becomes a Hugging Face model folder: safetensors in float32, tokenizer, chat template.

GGUF files keep weights in small integer blocks with a scale (and an offset) each; ``w = scale * q + offset`` gives the
float32 weights that are written here, so that everything after this step reads one format. What the file says is kept;
two things need care:

- Llama's query and key rows are stored in another order, for another rotary layout; transformers puts them back.
- The split into words before byte-pair merging is only a name in the file (``tokenizer.ggml.pre``), which transformers
  does not read: without it ``x =  7`` would become other tokens than SmolLM2 was trained on (two blanks, then a digit).

Example::

    convert_gguf(Path("SmolLM2-135M-Instruct.Q4_1.gguf"), Path("results/models/smollm2-135m"))
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# tokenizer.ggml.pre -> does the pre-tokenizer cut out every digit before the GPT-2 split?
SPLITS_DIGITS = {"default": False, "gpt-2": False, "smollm": True}


def convert_gguf(gguf: Path, folder: Path) -> dict[str, Any]:
    """Write the model in ``gguf`` to ``folder`` and return its metadata (``general.*`` and ``tokenizer.ggml.pre``).

    Raises:
        UserError: the file is not a whole GGUF file, or its architecture or tokenizer is not known.
    """
    os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported; the GGUF reader's bar has no other switch
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    metadata = read_metadata(gguf)
    try:
        model = _plain_model(gguf)
        tokenizer = _tokenizer(gguf, metadata.get("tokenizer.ggml.pre", "default"))
        tokenizer.model_max_length = model.config.max_position_embeddings
    except (ValueError, KeyError, NotImplementedError) as error:
        raise UserError(f"{gguf.name} cannot be converted: {_first_line(error)}") from error
    model.save_pretrained(folder, max_shard_size="5GB")
    tokenizer.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):  # written for the owner's eyes only, unlike all other files
        weights.chmod((folder / "config.json").stat().st_mode)
    return metadata


def read_metadata(gguf: Path) -> dict[str, Any]:
    """Return the one-value fields of a GGUF file; the long lists (tokens, merges) are left out."""
    from gguf import GGUFReader

    try:
        fields = GGUFReader(gguf).fields
    except (ValueError, IndexError, OSError) as error:
        raise UserError(f"{gguf.name} is not a whole GGUF file: {_first_line(error)}") from error
    return {name: field.contents() for name, field in fields.items() if len(field.data) == 1}


def _plain_model(gguf: Path) -> PreTrainedModel:
    """Load a GGUF file in float32 and return the same model without a trace of quantisation.

    A model loaded from GGUF remembers it (``quantization_config``) and would ask to be dequantised again by every
    reader of its folder; its weights move into a fresh model of the same class, which takes no memory of its own.
    """
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    config.__dict__.pop("quantization_config", None)
    with torch.device("meta"):
        model: PreTrainedModel = type(loaded)(config)
    # Buffers (rotary frequencies) are not in the state dict and never saved, so they may stay on the meta device.
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return model


def _tokenizer(gguf: Path, pre: str) -> Any:
    """Return the tokenizer of a GGUF file with the pre-tokenizer that the file names."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    if pre not in SPLITS_DIGITS:
        raise UserError(
            f"{gguf.name}: tokenizer.ggml.pre is {pre!r}, known: {', '.join(SPLITS_DIGITS)}; "
            "give the model's Hugging Face folder instead (path: or hub:)"
        )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if SPLITS_DIGITS[pre]:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
