import copy

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import Gemma3TextConfig, GemmaConfig, MistralConfig, Qwen3Config

from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.training.text.frozen_trunk import FrozenTrunk, freeze_lower_layers
from radtower.training.text.lora import add_lora

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
MIXED = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
FAMILIES = {
    "mistral": MistralConfig(**SIZES, sliding_window=4),
    "qwen3": Qwen3Config(**SIZES, use_sliding_window=True, sliding_window=4, layer_types=MIXED),
    "gemma3": Gemma3TextConfig(**SIZES, sliding_window=4, layer_types=MIXED),
}
ROWS = [[5, 9, 3, 7, 20, 31, 11, 12, 13], [8, 2, 40, 41], [5, 9, 3, 7, 20, 31, 11], [17]]


def _encoder(text_config, num_frozen=2, **settings):
    torch.manual_seed(2)
    settings = {"pooling": "mean", **settings}
    encoder = LLMBiEncoder(LLMBiEncoderConfig(text_config=copy.deepcopy(text_config), **settings)).eval()
    freeze_lower_layers(encoder, num_frozen)
    return encoder


@pytest.fixture
def encoder():
    return _encoder(FAMILIES["qwen3"])


def _inputs(rows=ROWS, side="right", embed_mask=False):
    length = max(len(row) for row in rows)
    pads = [[0] * (length - len(row)) for row in rows]
    ids = [row + pad if side == "right" else pad + row for row, pad in zip(rows, pads, strict=True)]
    ones = [[1] * len(row) for row in rows]
    mask = [one + pad if side == "right" else pad + one for one, pad in zip(ones, pads, strict=True)]
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if embed_mask:  # the last token of each text
        chosen = torch.zeros_like(inputs["input_ids"])
        last = [len(row) - 1 if side == "right" else -1 for row in rows]
        chosen[range(len(rows)), last] = 1
        inputs["embed_mask"] = chosen
    return inputs


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_and_gradients_are_those_of_the_whole_model(family, num_layers, bidirectional):
    encoder = _encoder(FAMILIES[family], num_layers, bidirectional=bidirectional)
    with torch.no_grad():
        encoder.model.norm.weight.uniform_(0.5, 1.5)

    def step(**inputs):
        encoder.zero_grad()
        pooled = encoder(**inputs).pooler_output
        (pooled * torch.linspace(-1, 1, pooled.numel()).view_as(pooled)).sum().backward()
        return pooled.detach(), {
            n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None
        }

    for side in ("right", "left"):
        inputs = _inputs(side=side, embed_mask=True)
        whole, gradients = step(**inputs)
        with FrozenTrunk(encoder, num_layers) as trunk:
            begun, begun_gradients = step(**inputs)
            assert len(trunk) == len(ROWS)
        torch.testing.assert_close(begun, whole, rtol=1e-5, atol=1e-5)
        assert begun_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(begun_gradients[name], gradient, rtol=1e-4, atol=1e-4, msg=name)
        assert torch.equal(encoder(**inputs).pooler_output, whole)  # detached: the whole model again


def test_the_frozen_layers_run_once_per_distinct_text(encoder):
    calls = []
    encoder.model.layers[0].register_forward_hook(lambda _m, args, _o: calls.append(tuple(args[0].shape)))
    trunk = FrozenTrunk(encoder, 2, tokens_per_batch=18)
    calls.clear()
    trunk.add([*ROWS, ROWS[1], ROWS[1]])
    assert [shape[:2] for shape in calls] == [
        (2, 4),
        (2, 9),
    ]  # of like length, at most 18 tokens with padding
    encoder(**_inputs())
    encoder(**_inputs(side="left"))
    assert len(calls) == 2
    encoder(**_inputs([[1, 2, 3], *ROWS]))
    assert [shape[:2] for shape in calls[2:]] == [(1, 3)]
    trunk.remove()
    encoder(**_inputs())
    assert len(calls) == 4


def test_a_text_longer_than_a_batch_is_a_batch_of_its_own(encoder):
    trunk = FrozenTrunk(encoder, 2, tokens_per_batch=2)
    trunk.add(ROWS)
    assert len(trunk) == len(ROWS)


def test_frozen_layers_have_no_dropout_and_the_modes_come_back():
    config = copy.deepcopy(FAMILIES["mistral"])
    config.attention_dropout = 0.5
    encoder = _encoder(config, 4)
    whole = encoder(**_inputs()).pooler_output
    encoder.train()
    encoder.model.layers[1].eval()
    with FrozenTrunk(encoder, 4):
        torch.testing.assert_close(encoder(**_inputs()).pooler_output, whole, rtol=1e-5, atol=1e-5)
    assert encoder.model.layers[0].training
    assert not encoder.model.layers[1].training
    assert not torch.allclose(
        encoder(**_inputs()).pooler_output, whole, atol=1e-3
    )  # dropout, were they to run


def test_what_is_saved_is_the_whole_model(encoder, tmp_path):
    expected = encoder(**_inputs()).pooler_output
    with FrozenTrunk(encoder, 2):
        encoder(**_inputs())
        encoder.save_pretrained(tmp_path)
    again = LLMBiEncoder.from_pretrained(tmp_path)
    assert len(again.model.layers) == 4
    assert again.config.text_config.layer_types == MIXED
    assert torch.equal(again(**_inputs()).pooler_output, expected)


def test_an_error_within_leaves_the_model_whole(encoder):
    with FrozenTrunk(encoder, 2):
        handle = encoder.model.layers[3].register_forward_pre_hook(_fail)
        with pytest.raises(OverflowError, match="planted"):
            encoder(**_inputs())
        handle.remove()
        assert len(encoder.model.layers) == 4
        assert encoder.model.config.layer_types == MIXED
        encoder(**_inputs())


def _fail(*_args):
    raise OverflowError("planted")


def test_bf16_states_take_half_the_place_and_are_near(encoder):
    whole = encoder(**_inputs()).pooler_output
    with FrozenTrunk(encoder, 2, dtype=torch.bfloat16) as trunk:
        near = encoder(**_inputs()).pooler_output
        assert trunk._states.get(next(iter(trunk._states._by_key))).dtype == torch.bfloat16
    assert 1e-6 < (near - whole).abs().max() < 0.05 * whole.abs().max()


def test_states_are_in_full_precision_whatever_the_training_is_in(encoder):
    found = []
    for is_short in (False, True):
        with FrozenTrunk(encoder, 2) as trunk, torch.autocast("cpu", torch.bfloat16, enabled=is_short):
            inputs = _inputs()
            found.append(trunk.states(inputs["input_ids"], inputs["attention_mask"]))
    assert found[1].dtype == torch.float32
    assert torch.equal(found[0], found[1])


def test_what_is_stored_takes_no_more_place_than_it_needs(encoder):
    with FrozenTrunk(encoder, 2) as trunk:
        trunk.add(ROWS)
        sizes = [states.untyped_storage().nbytes() for states in trunk._states._by_key.values()]
    assert sorted(sizes) == [4 * 32 * length for length in (1, 4, 7, 9)]


def test_states_on_disk_serve_later_runs_of_the_same_weights_only(encoder, tmp_path):
    expected = encoder(**_inputs()).pooler_output
    with FrozenTrunk(encoder, 2, folder=tmp_path) as trunk:
        trunk.add(ROWS)
    (folder,) = tmp_path.iterdir()
    assert [path.suffix for path in folder.iterdir()] == [".safetensors"]
    with FrozenTrunk(encoder, 2, folder=tmp_path) as trunk:
        assert len(trunk) == len(ROWS)
        calls = []
        encoder.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
        torch.testing.assert_close(encoder(**_inputs()).pooler_output, expected, rtol=1e-5, atol=1e-5)
        assert calls == []
    for other in ({"dtype": torch.bfloat16}, {}):
        if not other:
            encoder.model.layers[0].mlp.up_proj.weight.data += 0.1
        with FrozenTrunk(encoder, 2, folder=tmp_path, **other) as trunk:
            assert len(trunk) == 0
    assert len(FrozenTrunk(_encoder(FAMILIES["qwen3"], bidirectional=False), 2, folder=tmp_path)) == 0


def test_weights_that_come_back_from_a_checkpoint_are_the_same(encoder):
    state = copy.deepcopy(encoder.state_dict())
    with FrozenTrunk(encoder, 2):
        expected = encoder(**_inputs()).pooler_output
        encoder.load_state_dict(state)
        assert torch.equal(encoder(**_inputs()).pooler_output, expected)
        state["model.layers.1.mlp.up_proj.weight"] += 0.1
        encoder.load_state_dict(state)
        with pytest.raises(ValueError, match="frozen weights must stay as they are, got others"):
            encoder(**_inputs())


def test_recomputed_activations_give_the_same_gradients(encoder, checkpointed_copy):
    thrifty = checkpointed_copy(encoder)
    for model in (encoder.train(), thrifty):
        with FrozenTrunk(model, 2):
            model(**_inputs()).pooler_output.square().sum().backward()
    trained = dict(thrifty.named_parameters())
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 0, name
            torch.testing.assert_close(trained[name].grad, parameter.grad, msg=name)


def test_adapters_above_the_stored_states_are_trained(encoder):
    add_lora(encoder, 2, 4, num_frozen_layers=2)
    with FrozenTrunk(encoder, 2):
        encoder(**_inputs()).pooler_output.square().sum().backward()
    trained = [p for p in encoder.parameters() if p.requires_grad]
    assert len(trained) == 28
    assert (
        sum(float(p.grad.abs().max()) > 0 for p in trained) == 14
    )  # lora_A waits for lora_B, which starts at 0


@pytest.mark.parametrize("num_layers", [0, 5])
def test_refuses_layers_that_are_not_there(encoder, num_layers):
    with pytest.raises(ValueError, match=f"num_layers must be between 1 and 4, got {num_layers}"):
        FrozenTrunk(encoder, num_layers)
    with pytest.raises(ValueError, match="num_frozen_layers must be between 0 and 4, got 5"):
        freeze_lower_layers(encoder, 5)


def test_refuses_layers_that_are_trained(encoder):
    with pytest.raises(ValueError, match=r"must be frozen, got 11 trained weights such as layers\.2\."):
        FrozenTrunk(encoder, 3)
    encoder.get_input_embeddings().requires_grad_(True)
    with pytest.raises(ValueError, match=r"must be frozen, got 1 trained weights such as embedding\.weight"):
        FrozenTrunk(encoder, 2)
    encoder.get_input_embeddings().requires_grad_(False)
    add_lora(encoder, 2, 4)
    with pytest.raises(ValueError, match=r"must be frozen, got 28 trained weights such as layers\.0.*lora"):
        FrozenTrunk(encoder, 2)


def test_refuses_a_prompt(encoder):
    encoder.config.num_soft_tokens = 3
    with pytest.raises(ValueError, match="must have no prompt tokens, got 3"):
        FrozenTrunk(encoder, 2)


def test_refuses_embeddings_in_place_of_ids(encoder):
    embeds = encoder.get_input_embeddings()(_inputs()["input_ids"])
    with (
        FrozenTrunk(encoder, 2),
        pytest.raises(ValueError, match=r"must come as token ids.*got \['attention_m"),
    ):
        encoder(inputs_embeds=embeds, attention_mask=_inputs()["attention_mask"])


def test_refuses_a_family_that_cannot_begin_in_the_middle():
    sizes = {name: value for name, value in SIZES.items() if name != "initializer_range"}
    encoder = _encoder(GemmaConfig(**sizes, initializer_range=0.2))
    scale = encoder.model.config.hidden_size**0.5
    # As the first release of this family did, and as others do: the sum of the embeddings is scaled in
    # forward.
    encoder.model.layers[2].register_forward_pre_hook(
        lambda _m, args: (args[0] * scale, *args[1:]) if len(encoder.model.layers) < 4 else None
    )
    with pytest.raises(ValueError, match=r"relative difference of .* for GemmaModel"):
        FrozenTrunk(encoder, 2)
    assert len(encoder.model.layers) == 4


def test_refuses_gaps_in_a_mask(encoder):
    inputs = _inputs()
    inputs["attention_mask"][1, 1] = 0
    with (
        FrozenTrunk(encoder, 2),
        pytest.raises(ValueError, match=r"one block per text, got gaps in rows \[1\]"),
    ):
        encoder(**inputs)


def test_a_worker_process_must_find_every_text_stored(encoder):
    trunk = FrozenTrunk(encoder, 2)
    trunk.add(ROWS[:1])
    samples = [{name: value[n] for name, value in _inputs().items()} for n in range(2)]

    def states(batch):
        inputs = {name: torch.stack([sample[name] for sample in batch]) for name in batch[0]}
        return trunk.states(**inputs).sum()

    loader = DataLoader(samples, batch_size=1, num_workers=1, collate_fn=states)
    batches = iter(loader)
    next(batches)
    with pytest.raises(RuntimeError, match="must find every text stored, got a new one among 1"):
        next(batches)
