import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig

from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_heads import LLMBiEncoderForSequenceClassification
from radtower.modeling.llm_biencoder.modeling_sentence_bounds import CLOSES
from radtower.training.text.frozen_trunk import FrozenTrunk, freeze_lower_layers

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
IDS = torch.tensor([[3, 14, 15, 9, 26, 5], [7, 8, 9, 1, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
FULL_STOP = 9


def _model(layers: list[int] | None, **fields) -> LLMBiEncoderForSequenceClassification:
    config = LLMBiEncoderConfig(
        text_config=LlamaConfig(**SIZES).to_dict(), finding_layers=layers, num_labels=2, **fields
    )
    torch.manual_seed(0)
    model = LLMBiEncoderForSequenceClassification(config).eval()
    if config.finding_pooling == "sentences":
        model.sentence_table[FULL_STOP] = CLOSES
    return model


@torch.no_grad()
def test_the_states_of_the_chosen_layers_stand_side_by_side():
    model = _model([1, 2, 3])
    decoder = model.encoder.model
    hidden = decoder(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states
    states = model.token_states(IDS, MASK)
    for place, depth in enumerate((1, 2, 3)):
        found = states[..., 32 * place : 32 * (place + 1)]
        torch.testing.assert_close(found[MASK.bool()], hidden[depth][MASK.bool()])
    torch.testing.assert_close(_model(None).token_states(IDS, MASK), states[..., 64:])
    assert not any(layer._forward_pre_hooks for layer in decoder.layers)


@torch.no_grad()
def test_they_are_the_same_above_stored_states():
    model = _model([1, 3])
    expected = model.token_states(IDS, MASK)[MASK.bool()]
    freeze_lower_layers(model.encoder, 1)
    with FrozenTrunk(model.encoder, 1):
        torch.testing.assert_close(model.token_states(IDS, MASK)[MASK.bool()], expected)
    freeze_lower_layers(model.encoder, 2)
    with FrozenTrunk(model.encoder, 2), pytest.raises(RuntimeError, match=r"got nothing from \[1\]"):
        model.token_states(IDS, MASK)


@torch.no_grad()
def test_saved_and_loaded_it_scores_the_same(tmp_path):
    model = _model([2, 3], finding_pooling="sentences", num_causal_layers=2)
    model.finding_attention.standardize(model.token_states(IDS, MASK)[MASK.bool()])
    expected = model(IDS, MASK)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(IDS, MASK).logits, expected.logits)
    torch.testing.assert_close(loaded(IDS, MASK).token_weights, expected.token_weights)
    assert loaded.sentence_table.nonzero().flatten().tolist() == [FULL_STOP]


@torch.no_grad()
def test_a_new_head_starts_below_zero_and_with_plain_features(tmp_path):
    model = _model(None, finding_pooling="sentences")
    model.encoder.save_pretrained(tmp_path)
    loaded = LLMBiEncoderForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    for new in (model, loaded):
        assert new.finding_attention.score.bias.tolist() == [-4.0, -4.0]
        assert new.finding_attention.mean.abs().max() == 0
        assert new.finding_attention.std.tolist() == [1.0] * 32
    assert not loaded.sentence_table.any()


@torch.no_grad()
def test_sentences_are_those_of_the_table():
    model = _model(None, finding_pooling="sentences")
    output = model(IDS, MASK)
    hidden = model.token_states(IDS, MASK)
    by_hand = model.finding_attention(hidden, MASK, torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]))
    torch.testing.assert_close(output.logits, by_hand[0])
    one = model.finding_attention(hidden, MASK, torch.zeros(2, 6, dtype=torch.long))
    assert (output.logits - one[0]).abs().min() > 1e-3


def test_refuses_to_score_before_it_knows_where_sentences_end():
    model = _model(None, finding_pooling="sentences")
    model.sentence_table.zero_()
    with pytest.raises(RuntimeError, match=r"empty sentence_table. Call set_tokenizer"):
        model(IDS, MASK)


def test_refuses_edits_of_how_it_reads():
    model = _model([2, 3])
    model.config.finding_layers = [1, 3]
    with pytest.raises(RuntimeError, match=r"config\.finding_layers must stay \[2, 3\]"):
        model(IDS, MASK)
