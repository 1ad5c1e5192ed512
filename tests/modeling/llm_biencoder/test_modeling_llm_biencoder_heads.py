import pytest
import torch

from radtower.modeling.llm_biencoder.modeling_llm_biencoder_heads import (
    FindingAttention,
    LLMBiEncoderForSequenceClassification,
)
from radtower.modeling.llm_biencoder.modeling_sentence_bounds import CLOSES

# Equal weights give outputs that differ in the last bits: a loaded file is aligned otherwise in memory.
LAST_BITS = {"atol": 1e-5, "rtol": 0}


@torch.no_grad()
def test_parts_that_were_read_apart_go_together_as_one_text():
    attention = FindingAttention(width=6, num_findings=3)
    torch.nn.init.normal_(attention.query.weight, std=3.0)
    hidden = torch.randn(1, 9, 6)
    logits, weights, normalizer = attention(hidden, torch.ones(1, 9))
    parts = torch.zeros(2, 6, 6)
    parts[0, :4], parts[1, 1:] = hidden[0, :4], hidden[0, 4:]
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]])
    part_logits, part_weights, part_normalizer = attention(parts, mask)
    shares = part_normalizer.softmax(dim=0)
    assert shares.min() > 1e-3
    torch.testing.assert_close((shares * part_logits).sum(dim=0), logits[0])
    torch.testing.assert_close(part_normalizer.logsumexp(dim=0), normalizer[0])
    joined = torch.cat(
        [shares[0][:, None] * part_weights[0, :, :4], shares[1][:, None] * part_weights[1, :, 1:]], dim=1
    )
    torch.testing.assert_close(joined, weights[0])


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["tokens", "sentences"])
def test_a_labeler_with_more_tokens_reads_old_ones_as_before_and_reloads(tiny_text_config, tmp_path, pooling):
    tiny_text_config.finding_pooling = pooling
    model = LLMBiEncoderForSequenceClassification(tiny_text_config).eval()
    if pooling == "sentences":
        model.sentence_table[[3, 9]] = CLOSES
    ids = torch.tensor([[5, 9, 7, 3, 8]])
    expected, size = model(ids).logits, tiny_text_config.text_config.vocab_size
    model.resize_token_embeddings(size + 2, mean_resizing=False)
    torch.testing.assert_close(model(ids).logits, expected, **LAST_BITS)
    ids[0, 1] = size + 1
    with_new = model(ids).logits
    model.save_pretrained(tmp_path)
    reloaded = LLMBiEncoderForSequenceClassification.from_pretrained(tmp_path).eval()
    assert reloaded.config.text_config.vocab_size == size + 2
    torch.testing.assert_close(reloaded(ids).logits, with_new, **LAST_BITS)
    if pooling == "sentences":
        assert reloaded.sentence_table.nonzero().flatten().tolist() == [3, 9]
        model.resize_token_embeddings(9)
        assert model.sentence_table.tolist() == [0, 0, 0, CLOSES, 0, 0, 0, 0, 0]
