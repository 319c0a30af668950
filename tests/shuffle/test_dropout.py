"""Dropout drops what it says, in training alone, and leaves the weights and generation as they were."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from shuffle.backbone import BackboneConfig
from shuffle.dropout import add_dropout

CONFIG = BackboneConfig(vocab_size=50, hidden_size=32, num_layers=2, num_heads=2, eos_token_id=1)
IDS = torch.arange(40).view(2, 20)


def model(probability: float) -> LlamaForCausalLM:
    torch.manual_seed(0)
    made = LlamaForCausalLM(CONFIG.llama())
    add_dropout(made, probability)
    return made


def test_evaluation_and_a_probability_of_0_change_nothing() -> None:
    plain, dropping, none = model(0.0), model(0.5).eval(), model(0.0).train()
    expected = plain.eval()(IDS).logits
    assert torch.equal(dropping(IDS).logits, expected)
    assert torch.equal(none(IDS).logits, expected)
    assert dropping.state_dict().keys() == plain.state_dict().keys()


def test_training_drops_of_each_place_what_was_asked() -> None:
    """Of the embeddings, and of what two attentions and two MLPs add, a quarter is 0 and the rest larger."""
    dropping = model(0.25).train()
    seen: list[torch.Tensor] = []
    layers = dropping.model.layers
    branches = [part for layer in layers for part in (layer.self_attn.o_proj, layer.mlp.down_proj)]
    for place in [dropping.model.embed_tokens, *branches]:
        place.register_forward_hook(lambda module, inputs, output: seen.append(output))
    dropping(IDS)
    assert len(seen) == 5
    for output in seen:
        assert (output == 0).float().mean() == pytest.approx(0.25, abs=0.06)
    embedded = seen[0][seen[0] != 0]
    assert torch.allclose(embedded, (dropping.model.embed_tokens.weight[IDS] / 0.75)[seen[0] != 0])


def test_the_head_that_shares_the_embeddings_drops_nothing() -> None:
    """Only what the module is called with is dropped: the tied head reads the same weights by itself."""
    dropping = model(0.9).train()
    hidden = torch.randn(3, 32)
    assert torch.equal(dropping.lm_head(hidden), dropping.lm_head(hidden))


@pytest.mark.parametrize("probability", [-0.1, 1.0])
def test_a_probability_out_of_range_is_told(probability: float) -> None:
    with pytest.raises(ValueError, match=f"dropout must be at least 0 and below 1, not {probability}"):
        model(probability)
