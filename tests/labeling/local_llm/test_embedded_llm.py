"""A real language model, out of a GGUF file."""

import pytest

from radtower.demo.walkthrough import embedded_llm
from radtower.labeling.findings import load_findings
from radtower.labeling.local_llm.full_prompts import score_full_prompts
from radtower.labeling.local_llm.scoring_labeler import ScoringLabeler
from radtower.labeling.local_llm.scoring_prompt import encode_report

REPORT = "Small right pleural effusion. No nodule. Possible emphysema in the apices. Heart size is normal."


@pytest.mark.slow
def test_the_embedded_llm_scores_as_with_whole_prompts():
    findings = load_findings("ct_rate_18").subset(["pleural_effusion", "lung_nodule", "emphysema"])
    labeler = ScoringLabeler(embedded_llm(), findings, device="cpu")
    ids = encode_report(labeler.local.tokenizer, REPORT)
    prompt = [*labeler.prompt.head, *ids, *labeler.prompt.tail]
    expected = score_full_prompts(labeler.local.model, prompt, labeler.prompt.questions).softmax(dim=-1)
    scores = labeler.scorer.log_probabilities([ids])[0].softmax(dim=-1)
    assert (scores - expected).abs().max() < 1e-4
    text = labeler.local.tokenizer.decode(prompt)
    assert text.startswith("<|im_start|>system\nYou are a radiologist")
    assert text.endswith(
        f"{REPORT}\n[END REPORT]\n\nWrite one line per finding, as name: status.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    (labels,) = labeler.label_batch([REPORT])
    assert labels.error is None
    assert labeler.model_id.endswith(".gguf")
