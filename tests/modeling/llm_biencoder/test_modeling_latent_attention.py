import pytest
import torch
import torch.nn.functional as F
from torch import nn

from radtower.modeling.modeling_latent_attention import LatentAttentionPooling, masked_mean

WIDTH, LATENTS, HEADS = 12, 5, 3


def _random_head(variant: str) -> LatentAttentionPooling:
    head = LatentAttentionPooling(WIDTH, LATENTS, HEADS, variant)
    for parameter in head.parameters():  # biases and norms too: at their starting values they hide mistakes
        nn.init.normal_(parameter, mean=0.1, std=0.5)
    return head


def _attend_as_published(head: LatentAttentionPooling, queries: torch.Tensor) -> torch.Tensor:
    latents = head.latents.expand(len(queries), -1, -1)
    return head.multihead_attn(queries, latents, latents)[0]


def _mean_as_published(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    rows = [row[keep == 1].mean(dim=0) for row, keep in zip(tokens, mask, strict=True)]
    return torch.stack(rows)


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(3, 7, WIDTH)


@pytest.fixture
def mask() -> torch.Tensor:
    return torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0, 1]])


@torch.no_grad()
def test_v0_equals_the_published_description(hidden, mask):
    # Multi-head attention over the latents, then the MLP, then the masked mean (arXiv 2509.15234).
    head = _random_head("v0")
    expected = _mean_as_published(head.mlp(_attend_as_published(head, hidden)), mask)
    torch.testing.assert_close(head(hidden, mask), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_prenorm_adds_norms_and_residuals(hidden, mask):
    head = _random_head("prenorm")
    norm_attention, norm_mlp = head.norm_attention, head.norm_mlp
    normed = F.layer_norm(hidden, (WIDTH,), norm_attention.weight, norm_attention.bias)
    attended = hidden + _attend_as_published(head, normed)
    tokens = attended + head.mlp(F.layer_norm(attended, (WIDTH,), norm_mlp.weight, norm_mlp.bias))
    torch.testing.assert_close(head(hidden, mask), _mean_as_published(tokens, mask), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_prenorm_with_zero_output_parameters_is_mean_pooling(hidden, mask):
    head = _random_head("prenorm")
    for parameter in head.output_parameters():
        parameter.zero_()
    torch.testing.assert_close(head(hidden, mask), _mean_as_published(hidden, mask))


@torch.no_grad()
@pytest.mark.parametrize("variant", ["v0", "prenorm"])
def test_tokens_outside_the_mask_have_no_influence(hidden, mask, variant):
    head = _random_head(variant)
    changed = torch.where(mask[..., None] == 1, hidden, torch.full_like(hidden, 1e3))
    assert torch.equal(head(hidden, mask), head(changed, mask))


@torch.no_grad()
@pytest.mark.parametrize("variant", ["v0", "prenorm"])
def test_half_precision_weights_give_a_float32_vector(hidden, mask, variant):
    head = _random_head(variant)
    expected = head(hidden, mask)
    pooled = head.bfloat16()(hidden.bfloat16(), mask)
    assert pooled.dtype == torch.float32
    # 8 bits of mantissa: within 3 % of the size of the vector, and not equal to it.
    assert 0 < (pooled - expected).norm() / expected.norm() < 0.03


def test_the_parameters_have_the_names_and_shapes_of_the_public_checkpoint():
    with torch.device("meta"):
        head = LatentAttentionPooling(2048, 512, 8, "v0")
    assert {name: tuple(parameter.shape) for name, parameter in head.state_dict().items()} == {
        "latents": (512, 2048),
        "multihead_attn.in_proj_weight": (6144, 2048),
        "multihead_attn.in_proj_bias": (6144,),
        "multihead_attn.out_proj.weight": (2048, 2048),
        "multihead_attn.out_proj.bias": (2048,),
        "mlp.0.weight": (2048, 2048),
        "mlp.0.bias": (2048,),
        "mlp.2.weight": (2048, 2048),
        "mlp.2.bias": (2048,),
    }
    assert sum(parameter.numel() for parameter in head.parameters()) == 26_226_688
    assert head.multihead_attn.num_heads == 8


@pytest.mark.parametrize("variant", ["v0", "prenorm"])
def test_every_parameter_receives_a_gradient(hidden, mask, variant):
    head = _random_head(variant)
    head(hidden, mask).square().sum().backward()
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_masked_mean_matches_a_hand_computed_case():
    hidden = torch.tensor([[[1.0, 10.0], [3.0, -20.0], [8.0, 5.0]]])
    pooled = masked_mean(hidden.to(torch.bfloat16), torch.tensor([[1, 0, 1]]))
    assert pooled.dtype == torch.float32
    assert pooled.tolist() == [[4.5, 7.5]]


def test_the_masked_mean_of_nothing_is_zero():
    assert masked_mean(torch.randn(1, 3, 2), torch.zeros(1, 3)).tolist() == [[0.0, 0.0]]
