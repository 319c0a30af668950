"""A tiny Llama goes into a GGUF file as llama.cpp would write it, and must come out as it was."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pipeline.convert import convert_gguf
from pipeline.errors import UserError

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
}
HEADS = {"attn_q": 4, "attn_k": 2}
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def vocabulary() -> list[str]:
    blank = "\u0120"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, blank * 2, blank * 3, blank + "a"]


def gguf_name(name: str) -> str:
    """``model.layers.1.mlp.up_proj.weight`` -> ``blk.1.ffn_up.weight``."""
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        _, _, layer, stem = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[stem]}.weight"
    return f"{NAMES[stem]}.weight"


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorder each head's rows from halves (Hugging Face's rotary layout) to pairs (llama.cpp's), one row at a time."""
    width = rows.shape[0] // heads
    order = [
        head * width + pair + half * width // 2
        for head in range(heads)
        for pair in range(width // 2)
        for half in (0, 1)
    ]
    return rows[order]


def write_gguf(path: Path, model: LlamaForCausalLM, pre: str | None, kind: str = "F32") -> None:
    writer = gguf.GGUFWriter(path, "llama")
    config, blank = model.config, "\u0120"
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    tokens = vocabulary()
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges([f"{blank} {blank}", f"{blank}{blank} {blank}", f"{blank} a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    quantisation = gguf.GGMLQuantizationType[kind]
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        target, values = gguf_name(name), tensor.numpy()
        values = (
            permuted(values, HEADS.get(target.split(".")[-2], 1))
            if "attn_q" in target or "attn_k" in target
            else values
        )
        if values.ndim == 2 and kind != "F32":
            writer.add_tensor(target, gguf.quantize(values, quantisation), raw_dtype=quantisation)
        else:
            writer.add_tensor(target, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaForCausalLM, Path, dict]:
    folder = tmp_path_factory.mktemp("gguf")
    model = tiny_llama()
    write_gguf(folder / "tiny.gguf", model, "smollm")
    return model, folder / "out", convert_gguf(folder / "tiny.gguf", folder / "out")


def test_the_weights_come_back_bit_for_bit(converted) -> None:
    model, folder, _ = converted
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], expected, rtol=0, atol=0, msg=name)
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)


def test_the_folder_is_plain_safetensors(converted) -> None:
    _, folder, metadata = converted
    assert metadata["general.license"] == "apache-2.0"
    assert "quantization_config" not in (folder / "config.json").read_text()
    assert {file.suffix for file in folder.iterdir()} == {".json", ".jinja", ".safetensors"}


def test_all_files_have_the_mode_of_ordinary_files(converted) -> None:
    (converted[1] / "ordinary").touch()
    ordinary = (converted[1] / "ordinary").stat().st_mode
    (converted[1] / "ordinary").unlink()
    assert {file.stat().st_mode for file in converted[1].iterdir()} == {ordinary}


def test_special_tokens_are_single_and_text_round_trips(converted) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted[1])
    assert tokenizer.encode("<|im_start|>") == [1]
    assert tokenizer.encode("<|im_end|>") == [2]
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 2
    assert tokenizer.model_max_length == 128
    text = "  x =  3.14\r\n\té \U0001f680 a  aa<|im_end|>\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.apply_chat_template([{"content": "a"}], tokenize=False) == "<|im_start|>a<|im_end|>"


def test_blanks_before_a_digit_stay_together_as_smollm_was_trained(converted, tmp_path: Path) -> None:
    blank = "\u0120"
    tokenizer = AutoTokenizer.from_pretrained(converted[1])
    assert tokenizer.tokenize("   42") == [blank * 3, "4", "2"]
    assert tokenizer.tokenize("   a") == [blank * 2, blank + "a"]
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(), None)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out")
    plain = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert plain.tokenize("   42") == [blank * 2, blank, "4", "2"]


def test_quantised_weights_are_what_the_gguf_package_makes_of_them(tmp_path: Path) -> None:
    model = tiny_llama()
    write_gguf(tmp_path / "tiny.gguf", model, "smollm", kind="Q4_1")
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    kind = gguf.GGMLQuantizationType.Q4_1
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"):
        # Blocks run along the rows, so quantising does not care in which order the rows are.
        expected = gguf.dequantize(gguf.quantize(model.state_dict()[name].numpy(), kind), kind)
        np.testing.assert_array_equal(loaded[name].numpy(), expected)


def test_an_unknown_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(), "poro-chat")
    with pytest.raises(UserError, match=r"tokenizer.ggml.pre is 'poro-chat', known: default, gpt-2, smollm"):
        convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out")


def test_a_cut_off_file_is_refused_by_name(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(), "smollm")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    for part in (b"not a model", whole[:200], whole[: len(whole) // 2]):
        (tmp_path / "cut.gguf").write_bytes(part)
        with pytest.raises(UserError, match=r"cut\.gguf") as caught:
            convert_gguf(tmp_path / "cut.gguf", tmp_path / "out")
        assert "\n" not in str(caught.value)
