import torch

from radtower.modeling.llm_biencoder.modeling_llm_biencoder_heads import FindingAttention


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
