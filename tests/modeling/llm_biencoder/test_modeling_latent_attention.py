import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrize

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


def _pool_as_published(
    head: LatentAttentionPooling, hidden: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Multi-head attention over the latents, then the MLP, then the masked mean (arXiv 2509.15234)."""
    if head.variant == "v0":
        return _mean_as_published(head.mlp(_attend_as_published(head, hidden)), mask)
    norm_attention, norm_mlp = head.norm_attention, head.norm_mlp
    normed = F.layer_norm(hidden, (WIDTH,), norm_attention.weight, norm_attention.bias)
    attended = hidden + _attend_as_published(head, normed)
    tokens = attended + head.mlp(F.layer_norm(attended, (WIDTH,), norm_mlp.weight, norm_mlp.bias))
    return _mean_as_published(tokens, mask)


@torch.no_grad()
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("variant", ["v0", "prenorm"])
def test_equals_the_published_description(hidden, mask, variant, is_training):
    head = _random_head(variant).train(is_training)
    expected = _pool_as_published(head, hidden, mask)
    for _ in range(2):  # the second call takes what the first one kept
        torch.testing.assert_close(head(hidden, mask), expected, atol=1e-6, rtol=1e-6)
    assert (head._fused is None) is is_training


@torch.no_grad()
def test_prenorm_with_zero_output_parameters_is_mean_pooling(hidden, mask):
    head = _random_head("prenorm")
    for parameter in head.output_parameters():
        parameter.zero_()
    torch.testing.assert_close(head(hidden, mask), _mean_as_published(hidden, mask))


@torch.no_grad()
@pytest.mark.parametrize("variant", ["v0", "prenorm"])
def test_tokens_outside_the_mask_have_no_influence(hidden, mask, variant):
    head = _random_head(variant).eval()
    assert head(hidden.masked_fill(mask[..., None] == 0, float("nan")), mask).isfinite().all()
    head.train()
    changed = torch.where(mask[..., None] == 1, hidden, torch.full_like(hidden, 1e3))
    assert torch.equal(head(hidden, mask), head(changed, mask))


@torch.no_grad()
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("variant", ["v0", "prenorm"])
def test_half_precision_weights_give_a_float32_vector(hidden, mask, variant, is_training):
    head = _random_head(variant).train(is_training)
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


def _step(head):
    head.train()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    head(torch.randn(1, 3, WIDTH), torch.ones(1, 3)).sum().backward()
    optimizer.step()


def _add_to_the_data(head):
    for parameter in head.parameters():
        parameter.data.add_(0.1)  # leaves no trace in the version counter


def _rescale_in_inference_mode(head):
    with torch.inference_mode():
        head.mlp[0].weight.mul_(1.5)
        head.latents.neg_()


def _share_and_change(head):
    head.share_memory()
    head.multihead_attn.in_proj_weight.data.mul_(-1)


CHANGES = {
    "optimizer step": _step,
    "data": _add_to_the_data,
    "inference mode": _rescale_in_inference_mode,
    "loading": lambda head: head.load_state_dict(_random_head(head.variant).state_dict()),
    "shared memory": _share_and_change,
    "new parameter": lambda head: setattr(head, "latents", nn.Parameter(torch.randn(LATENTS + 2, WIDTH))),
    "latents": lambda head: head.latents.data.add_(0.5),
    "in_proj_weight": lambda head: head.multihead_attn.in_proj_weight.data.add_(0.5),
    "in_proj_bias": lambda head: head.multihead_attn.in_proj_bias.data.add_(0.5),
    "out_proj.weight": lambda head: head.multihead_attn.out_proj.weight.data.add_(0.5),
    "out_proj.bias": lambda head: head.multihead_attn.out_proj.bias.data.add_(0.5),
    "mlp.0.weight": lambda head: head.mlp[0].weight.data.add_(0.5),
    "mlp.0.bias": lambda head: head.mlp[0].bias.data.add_(0.5),
    "mlp.2.weight": lambda head: head.mlp[2].weight.data.add_(0.5),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("variant", ["v0", "prenorm"])
def test_a_changed_weight_is_seen(hidden, mask, variant, change):
    head = _random_head(variant).eval()
    with torch.no_grad():
        before = head(hidden, mask)
    CHANGES[change](head)
    with torch.no_grad():
        after = head.eval()(hidden, mask)
        assert head._fused is not None
        expected = _pool_as_published(head, hidden, mask)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["v0", "prenorm"])
def test_a_change_of_precision_is_seen(hidden, mask, variant):
    head = _random_head(variant).eval()
    head(hidden, mask)
    head.double()
    expected = _pool_as_published(head, hidden.double(), mask)
    torch.testing.assert_close(head(hidden.double(), mask).double(), expected, atol=1e-6, rtol=1e-5)


@torch.inference_mode()
def test_weights_born_in_inference_mode_have_no_version_and_are_watched_all_the_same(hidden, mask):
    head = _random_head("v0").eval()
    head(hidden, mask)
    head.latents.add_(0.5)
    expected = _pool_as_published(head, hidden, mask)
    torch.testing.assert_close(head(hidden, mask), expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_what_is_kept_is_neither_saved_nor_copied_nor_pickled(hidden, mask):
    head = _random_head("v0").eval()
    names, size = list(head.state_dict()), len(pickle.dumps(head))
    expected = head(hidden, mask)
    assert list(head.state_dict()) == names
    assert len(pickle.dumps(head)) == size
    for twin in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert twin._fused is None
        assert torch.equal(twin(hidden, mask), expected)
    assert head._fused is not None


@torch.no_grad()
def test_what_is_kept_does_not_carry_the_rounding_of_autocast(hidden, mask):
    head = _random_head("v0").eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = head(hidden, mask)
    expected = _pool_as_published(head, hidden, mask)
    assert (rounded - expected).abs().max() > 1e-4
    torch.testing.assert_close(head(hidden, mask), expected, atol=1e-6, rtol=1e-6)


def test_gradients_flow_in_eval_mode(hidden, mask):
    head = _random_head("v0").eval()
    head(hidden, mask).square().sum().backward()
    assert head._fused is None
    assert head.latents.grad.abs().max() > 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["mlp.0", "mlp.1", "mlp.2", "multihead_attn", "multihead_attn.out_proj"])
def test_a_hook_on_a_part_is_called(hidden, mask, name):
    head = _random_head("v0").eval()
    expected, calls = head(hidden, mask), []
    head.get_submodule(name).register_forward_hook(lambda *_: calls.append(name))
    torch.testing.assert_close(head(hidden, mask), expected, atol=1e-6, rtol=1e-6)
    assert calls == [name]


class _Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@torch.no_grad()
@pytest.mark.parametrize("name", ["mlp.0", "mlp.2", "multihead_attn.out_proj"])
def test_a_parametrized_weight_is_used(hidden, mask, name):
    head = _random_head("v0").eval()
    head(hidden, mask)
    twin = copy.deepcopy(head)
    twin.get_submodule(name).weight.mul_(2)
    parametrize.register_parametrization(head.get_submodule(name), "weight", _Doubled())
    torch.testing.assert_close(
        head(hidden, mask), _pool_as_published(twin, hidden, mask), atol=1e-6, rtol=1e-6
    )


@torch.no_grad()
@pytest.mark.parametrize("name", ["mlp.0", "mlp.2", "multihead_attn"])
def test_an_adapter_counts_and_equals_its_merge(hidden, mask, name):
    head = _random_head("v0").eval()
    plain = head(hidden, mask)
    adapted = get_peft_model(copy.deepcopy(head), LoraConfig(r=2, target_modules=[name]))
    for parameter_name, parameter in adapted.named_parameters():
        if "lora_" in parameter_name:
            nn.init.normal_(parameter, std=0.3)
    pooled = adapted.eval()(hidden, mask)
    assert (pooled - plain).abs().max() > 1e-2
    torch.testing.assert_close(adapted.merge_and_unload()(hidden, mask), pooled, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["v0", "prenorm"])
def test_compiles_and_exports_in_one_graph(hidden, mask, variant):
    head = _random_head(variant).eval()
    expected = head(hidden, mask)
    compiled = torch.compile(head, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(hidden, mask), expected, atol=1e-6, rtol=1e-6)
    exported = torch.export.export(head, (hidden, mask)).module()
    torch.testing.assert_close(exported(hidden, mask), expected, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_a_replaced_forward_is_called(hidden, mask):
    head = _random_head("v0").eval()
    plain, first = head(hidden, mask), head.mlp[0]
    first.forward = lambda h: 2 * F.linear(h, first.weight, first.bias)
    twin = copy.deepcopy(head)
    del twin.mlp[0].forward
    for parameter in twin.mlp[0].parameters():
        parameter.mul_(2)
    pooled = head(hidden, mask)
    assert (pooled - plain).abs().max() > 1e-2
    torch.testing.assert_close(pooled, twin(hidden, mask), atol=1e-6, rtol=1e-6)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
def test_a_traced_head_does_not_remember_the_mask(hidden, mask):
    head = _random_head("v0").eval()
    traced = torch.jit.trace(head, (hidden, mask), check_trace=False)
    torch.testing.assert_close(traced(hidden, mask.flip(0)), head(hidden, mask.flip(0)), atol=1e-6, rtol=1e-6)
