"""Pipelines of transformers give what the models of texts give."""

import pytest
import torch
from transformers import pipeline

from hub_contract.stock_models import FINDINGS, build, build_tokenizer

TEXTS = ["small nodule", "there is no effusion"]


def _saved(model, folder):
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def test_feature_extraction_gives_the_states_of_the_tokens_of_an_encoder(tmp_path):
    encoder = build("text").encoder.eval()
    extract = pipeline("feature-extraction", model=_saved(encoder, tmp_path), device="cpu")
    found = extract(TEXTS, return_tensors=True)
    for text, states in zip(TEXTS, found, strict=True):
        expected = encoder(**build_tokenizer()(text, return_tensors="pt")).last_hidden_state
        assert states.shape == (1, len(text.split()), 16)
        torch.testing.assert_close(states, expected)


@torch.no_grad()
def test_text_classification_gives_a_probability_per_finding_that_excludes_no_other(tmp_path):
    model = build("text").eval()
    model.config.problem_type = "multi_label_classification"  # as training writes it
    classify = pipeline("text-classification", model=_saved(model, tmp_path), device="cpu")
    for text, found in zip(TEXTS, classify(TEXTS, top_k=None), strict=True):
        logits = model(**build_tokenizer()(text, return_tensors="pt")).logits[0]
        expected = dict(zip(FINDINGS.values(), logits.sigmoid().tolist(), strict=True))
        assert {one["label"]: one["score"] for one in found} == pytest.approx(expected, abs=1e-6)
        assert sum(expected.values()) != pytest.approx(1.0, abs=1e-3)
