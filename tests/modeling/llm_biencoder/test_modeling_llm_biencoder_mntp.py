import logging

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaForCausalLM,
)

from radtower.modeling.llm_biencoder import modeling_llm_biencoder_mntp as mntp
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_mntp import LLMBiEncoderForMaskedNTP
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

HIDDEN = {(0, 2): 17, (0, 4): 8, (1, 1): 40}


@pytest.fixture(params=[False, True], ids=["own head", "tied head"])
def folder(request, tiny_text_config, tiny_tokenizer, tmp_path):
    config = tiny_text_config.text_config
    config.tie_word_embeddings = request.param
    config.is_causal = True
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llm")
    tiny_tokenizer.save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


@pytest.fixture
def model(folder):
    return LLMBiEncoderForMaskedNTP.from_llm(folder)


def _inputs(side="right"):
    ids = torch.tensor([[5, 9, 3, 7, 3, 31], [8, 3, 40, 41, 0, 0]])
    labels = torch.full_like(ids, -100)
    for place, target in HIDDEN.items():
        labels[place] = target
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}
    if side == "left":
        inputs = {name: torch.stack([row[0], row[1].roll(2)]) for name, row in inputs.items()}
    return inputs


def test_a_token_is_predicted_from_the_state_before_it_by_the_head_of_the_llm(model, folder):
    inputs = _inputs()
    llm = AutoModelForCausalLM.from_pretrained(folder).eval()
    llm.config.is_causal = False  # the decoder reads it
    states = model.encoder(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
    losses = {
        (row, place): -F.log_softmax(llm.lm_head.weight @ states[row, place - 1], dim=0)[target]
        for (row, place), target in HIDDEN.items()
    }
    output = model(**inputs)
    torch.testing.assert_close(output.loss, sum(losses.values()) / 3)
    torch.testing.assert_close(
        output.text_losses, torch.stack([losses[0, 2] + losses[0, 4], losses[1, 1]]).detach()
    )
    assert output.num_targets.tolist() == [2, 1]
    assert output.logits is None
    # As the language model itself gives them, were it not causal.
    expected = llm(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    logits = model(inputs["input_ids"], inputs["attention_mask"]).logits
    assert logits.shape == (2, 6, len(llm.lm_head.weight))
    torch.testing.assert_close(logits[0, 1:], expected[0, :-1], rtol=1e-5, atol=1e-5)
    assert logits[:, 0].abs().max() == 0


def test_reads_both_directions_and_either_padding(model):
    right, left = _inputs(), _inputs("left")
    assert model(**right).loss.item() == pytest.approx(model(**left).loss.item(), rel=1e-5)
    later = {**right, "input_ids": right["input_ids"].clone()}
    later["input_ids"][0, 5] += 1
    assert (model(**later).text_losses - model(**right).text_losses).abs()[0] > 1e-3
    no_mask = {name: value[:1] for name, value in right.items() if name != "attention_mask"}
    assert model(**no_mask).loss.item() == pytest.approx(float(model(**right).text_losses[0]) / 2, rel=1e-5)


def test_few_logits_at_a_time_give_the_same_loss_and_gradients(model, monkeypatch):
    inputs = _inputs()
    found = []
    for size in (512, 1, 2):
        monkeypatch.setattr(mntp, "TARGETS_AT_A_TIME", size)
        model.zero_grad()
        output = model(**inputs)
        output.loss.backward()
        found.append((output, {n: p.grad.clone() for n, p in model.named_parameters()}))
    for output, gradients in found[1:]:
        torch.testing.assert_close(output.loss, found[0][0].loss)
        torch.testing.assert_close(output.text_losses, found[0][0].text_losses)
        for name, gradient in gradients.items():
            assert gradient.abs().max() > 0, name
            torch.testing.assert_close(gradient, found[0][1][name], msg=name)


def test_a_saved_folder_loads_as_either_class_without_a_word(model, folder, tmp_path, caplog):
    model.save_pretrained(tmp_path / "saved")
    model.encoder.tokenizer.save_pretrained(tmp_path / "saved")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        encoder, report = LLMBiEncoder.from_pretrained(tmp_path / "saved", output_loading_info=True)
        again = LLMBiEncoderForMaskedNTP.from_pretrained(tmp_path / "saved")
    assert not caplog.records
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert (again.lm_head is None) == (model.lm_head is None)
    assert again(**_inputs()).loss.item() == pytest.approx(model(**_inputs()).loss.item(), rel=1e-6)
    inputs = {name: value for name, value in _inputs().items() if name != "labels"}
    torch.testing.assert_close(
        encoder(**inputs).last_hidden_state, model.encoder(**inputs).last_hidden_state, rtol=1e-6, atol=1e-6
    )
    assert encoder.config.pooling == "mean"
    assert type(AutoModelForMaskedLM.from_pretrained(tmp_path / "saved")) is LLMBiEncoderForMaskedNTP
    assert type(AutoModel.from_pretrained(tmp_path / "saved")) is LLMBiEncoder


def test_fits_four_texts_with_the_stock_trainer(model, fit_with_stock_trainer):
    samples = []
    for seed in range(4):
        ids = torch.randint(3, 300, (9,), generator=torch.Generator().manual_seed(seed))
        labels = torch.full_like(ids, -100)
        labels[3], labels[7] = ids[3], ids[7]
        hidden = torch.where(labels != -100, 4, ids)
        samples.append({"input_ids": hidden, "attention_mask": torch.ones_like(ids), "labels": labels})
    losses, eval_loss = fit_with_stock_trainer(model, samples, 40, 5e-3)
    assert losses[0] > 3
    assert eval_loss < 0.1


def test_keeps_the_lowest_layers_and_the_precision(folder):
    model = LLMBiEncoderForMaskedNTP.from_llm(
        folder, num_hidden_layers=1, dtype=torch.bfloat16, max_length=33
    )
    assert len(model.encoder.model.layers) == 1
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.max_length == 33
    assert model(**_inputs()).loss.dtype == torch.float32


def test_takes_the_precision_and_the_backend_by_their_names(folder):
    model = LLMBiEncoderForMaskedNTP.from_llm(folder, torch_dtype="bfloat16", attn_implementation="eager")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.encoder.model.config._attn_implementation == "eager"
    model = LLMBiEncoderForMaskedNTP.from_llm(folder, dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_refuses_a_pooling_with_weights(folder):
    with pytest.raises(ValueError, match="pooling must have no weights, got 'latent_attention'"):
        LLMBiEncoderForMaskedNTP.from_llm(folder, pooling="latent_attention")


def test_refuses_a_folder_without_a_head(tiny_text_config, tiny_tokenizer, tmp_path):
    tiny_text_config.text_config.is_causal = True
    LlamaForCausalLM(tiny_text_config.text_config).model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must hold the language-model head, got lm_head\.weight missing"):
        LLMBiEncoderForMaskedNTP.from_llm(tmp_path)


def test_refuses_a_head_that_is_more_than_a_matrix(tiny_tokenizer, tmp_path):
    config = Gemma2Config(
        vocab_size=len(tiny_tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.5,
        final_logit_softcapping=2.0,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"relative difference of .* for Gemma2ForCausalLM"):
        LLMBiEncoderForMaskedNTP.from_llm(tmp_path)


@pytest.mark.parametrize(("side", "place"), [("right", (1, 0)), ("right", (1, 4)), ("left", (1, 2))])
def test_refuses_hidden_tokens_that_nothing_stands_before(model, side, place):
    inputs = _inputs(side)
    inputs["labels"][place] = 7
    with pytest.raises(ValueError, match=r"must follow a real one, got .* hidden in rows \[1\]"):
        model(**inputs)


def test_refuses_a_batch_where_nothing_is_hidden(model):
    inputs = _inputs()
    inputs["labels"][:] = -100
    with pytest.raises(ValueError, match="must hide at least one token, got only -100"):
        model(**inputs)
