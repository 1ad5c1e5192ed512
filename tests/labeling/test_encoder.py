import pytest
import torch
from safetensors.torch import load_file, save_file

from radtower.labeling.encoder import EncoderLabeler
from radtower.labeling.findings import Status
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_heads import LLMBiEncoderForSequenceClassification
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

REPORTS = ["There is no nodule", "effusion"]


@pytest.fixture
def labeler_folder(tiny_llm_folder, tmp_path):
    encoder = LLMBiEncoder.from_llm(
        tiny_llm_folder, pooling="mean", max_length=64, id2label={0: "nodule", 1: "effusion"}
    )
    model = LLMBiEncoderForSequenceClassification(encoder.config)
    torch.nn.init.normal_(model.finding_attention.score.weight, std=1.0)
    with torch.no_grad():
        model.finding_attention.score.bias.copy_(torch.tensor([3.0, -3.0]))
    model.save_pretrained(tmp_path / "labeler")
    encoder.tokenizer.save_pretrained(tmp_path / "labeler")
    return tmp_path / "labeler"


def label_all(labeler, reports):
    answers = dict(labeler.label(reports))
    return [answers[position] for position in range(len(reports))]


def test_labels_are_the_thresholded_probabilities_of_the_model(labeler_folder):
    labeler = EncoderLabeler(labeler_folder, max_length=64)
    assert (labeler.name, labeler.model_id, labeler.prompt_version) == ("encoder", "labeler", None)
    assert labeler.keys == ("nodule", "effusion")
    assert labeler.settings == {"max_length": 64, "present_from": 0.5}
    labels = label_all(labeler, REPORTS)
    for report, got in zip(REPORTS, labels, strict=True):
        inputs = labeler.tokenizer(report, return_tensors="pt")
        logits = labeler.model(inputs["input_ids"]).logits[0].detach()
        expected = 1 / (1 + torch.exp(-logits))
        assert list(got.score) == ["nodule", "effusion"]
        torch.testing.assert_close(torch.tensor(list(got.score.values())), expected, atol=1e-5, rtol=0)
        assert [status == Status.PRESENT for status in got.status.values()] == (logits >= 0).tolist()
        assert got.tokens_in == inputs["input_ids"].shape[1]
        assert (got.tokens_out, got.cost_usd, got.error) == (0, 0.0, None)
        assert got.evidence == {"nodule": None, "effusion": None}
    values = {status for got in labels for status in got.status.values()}
    assert values == {Status.PRESENT, Status.ABSENT}


def test_one_half_counts_as_present(labeler_folder):
    labeler = EncoderLabeler(labeler_folder)
    got = labeler._labels([0.5, 0.4999], 3)
    assert got.status == {"nodule": Status.PRESENT, "effusion": Status.ABSENT}


def test_reads_no_more_than_max_length(labeler_folder):
    labeler = EncoderLabeler(labeler_folder, max_length=2)
    whole = EncoderLabeler(labeler_folder)
    long_report = "There is no small nodule present"
    assert label_all(labeler, [long_report])[0].tokens_in == 2
    assert label_all(whole, [long_report])[0].tokens_in > 2
    assert label_all(labeler, [long_report])[0].score != label_all(whole, [long_report])[0].score


def test_refuses_a_folder_without_the_trained_head(labeler_folder):
    path = labeler_folder / "model.safetensors"
    weights = load_file(path)
    del weights["finding_attention.score.bias"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"got .*labeler without \['finding_attention.score.bias'\]"):
        EncoderLabeler(labeler_folder)
