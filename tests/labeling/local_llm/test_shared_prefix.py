import dataclasses

import pytest
import torch

from radtower.labeling.local_llm.full_prompts import score_full_prompts
from radtower.labeling.local_llm.scoring_prompt import ScoringPrompt
from radtower.labeling.local_llm.shared_prefix import SharedPrefixScorer

# Longer than the sliding windows; the answers of the third question branch twice.
PROMPT = ScoringPrompt(
    head=tuple(range(100, 140)),
    tail=(50, 51, 52),
    questions=(
        ((60, 61, 62, 10), (60, 61, 62, 11), (60, 61, 62, 12), (60, 61, 62, 13, 14)),
        ((70, 10), (70, 11), (70, 12), (70, 13, 14)),
        ((80, 81, 10, 15, 16), (80, 81, 10, 17), (80, 81, 13, 18), (80, 81, 13, 14)),
    ),
)
REPORTS = ((3, 4, 5), (), tuple(range(200, 237)), (6, 7, 8, 9, 3, 4, 5, 201))
SLIDING = {"sliding_window": 24}
KINDS = {
    "llama": ("llama", {}),
    "qwen3": ("qwen3", {}),
    "mistral, every layer slides": ("mistral", SLIDING),
    "qwen2, one layer slides": (
        "qwen2",
        {**SLIDING, "use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gemma3, two layers slide": (
        "gemma3_text",
        {
            **SLIDING,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "phi3, every layer slides": ("phi3", SLIDING),
    "gpt_oss, attention sinks": (
        "gpt_oss",
        {**SLIDING, "num_local_experts": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gpt_neox, no grouped heads": ("gpt_neox", {}),
    "gpt2, learned positions": ("gpt2", {"n_positions": 4096, "n_embd": 32, "n_layer": 2, "n_head": 4}),
}


def full_prompts(model, report):
    return score_full_prompts(model, [*PROMPT.head, *report, *PROMPT.tail], PROMPT.questions)


@pytest.mark.parametrize(
    ("kind", "attention"),
    # gpt_oss has no sdpa in transformers.
    [(kind, name) for kind in KINDS for name in ("sdpa", "eager") if (name, kind[:7]) != ("sdpa", "gpt_oss")],
)
def test_one_pass_gives_the_probabilities_of_whole_prompts(kind, attention, tiny_llm):
    model_type, settings = KINDS[kind]
    model = tiny_llm(model_type, **settings, attn_implementation=attention)
    scores = SharedPrefixScorer(model, PROMPT).log_probabilities(REPORTS)
    assert scores.shape == (4, 3, 4)
    expected = torch.stack([full_prompts(model, report) for report in REPORTS])
    assert expected.std(dim=0).min() > 1e-3  # the report matters, so that its mask is tested
    torch.testing.assert_close(scores, expected, atol=2e-5, rtol=2e-5)


def test_padding_longer_than_the_head_has_no_position_below_zero(tiny_llm):
    prompt = dataclasses.replace(PROMPT, head=PROMPT.head[:2])
    model_type, settings = KINDS["gpt2, learned positions"]
    model = tiny_llm(model_type, **settings)
    scores = SharedPrefixScorer(model, prompt).log_probabilities(REPORTS)
    for row, report in enumerate(REPORTS):
        expected = score_full_prompts(model, [*prompt.head, *report, *prompt.tail], prompt.questions)
        torch.testing.assert_close(scores[row], expected, atol=2e-5, rtol=2e-5)


def test_a_report_scores_the_same_alone_in_a_batch_and_twice(tiny_llm):
    scorer = SharedPrefixScorer(tiny_llm("llama"), PROMPT)
    batch = scorer.log_probabilities(REPORTS)
    alone = torch.cat([scorer.log_probabilities([report]) for report in reversed(REPORTS)]).flip(0)
    torch.testing.assert_close(batch, alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(scorer.log_probabilities(REPORTS), batch)


@pytest.mark.parametrize(
    ("model_type", "settings", "kind"),
    [
        ("qwen2", {"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "conv"),
    ],
)
def test_layers_that_no_mask_reaches_are_refused(model_type, settings, kind, tiny_llm):
    with pytest.raises(ValueError, match=rf"in every layer, got \[.*{kind}"):
        SharedPrefixScorer(tiny_llm(model_type, **settings), PROMPT)
