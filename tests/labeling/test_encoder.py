import json

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from radtower.labeling.classifier.report_windows import read_in_windows
from radtower.labeling.encoder import EncoderLabeler
from radtower.labeling.findings import Status, load_findings
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_heads import LLMBiEncoderForSequenceClassification
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.processing.report_sentences import split_sentences

REPORTS = ["There is no nodule", "effusion"]
LONG = "There is no nodule. There is a small effusion. Describe the nodule. Effusion is present"


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


def logits_of(labeler, text):
    inputs = labeler.classifier.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        return labeler.classifier.model(inputs["input_ids"]).logits[0]


def test_labels_are_the_thresholded_probabilities_of_the_model(labeler_folder):
    labeler = EncoderLabeler(labeler_folder, max_length=64)
    assert (labeler.name, labeler.model_id, labeler.prompt_version) == ("encoder", "labeler", None)
    assert labeler.keys == ("nodule", "effusion")
    labels = label_all(labeler, REPORTS)
    for report, got in zip(REPORTS, labels, strict=True):
        logits = logits_of(labeler, report)
        expected = 1 / (1 + torch.exp(-logits))
        assert list(got.score) == ["nodule", "effusion"]
        torch.testing.assert_close(torch.tensor(list(got.score.values())), expected, atol=1e-5, rtol=0)
        assert [status == Status.PRESENT for status in got.status.values()] == (logits >= 0).tolist()
        assert got.tokens_in == len(labeler.classifier.tokenizer(report)["input_ids"])
        assert (got.tokens_out, got.cost_usd, got.error) == (0, 0.0, None)
    values = {status for got in labels for status in got.status.values()}
    assert values == {Status.PRESENT, Status.ABSENT}
    assert (labeler.num_windowed_reports, labeler.num_split_sentences) == (0, 0)


def test_the_temperature_divides_the_logits_and_the_threshold_decides(labeler_folder):
    config = json.loads((labeler_folder / "config.json").read_text())
    (labeler_folder / "config.json").write_text(json.dumps(config | {"label_temperature": 4.0}))
    labeler = EncoderLabeler(labeler_folder)
    logits = logits_of(labeler, REPORTS[0])
    score = label_all(labeler, REPORTS[:1])[0].score["nodule"]
    assert score == pytest.approx(float(torch.sigmoid(logits[0] / 4)), abs=1e-5)
    assert score > 0.5
    for threshold, status in ((score - 1e-3, Status.PRESENT), (score + 1e-3, Status.ABSENT)):
        strict = EncoderLabeler(labeler_folder, threshold=threshold)
        assert label_all(strict, REPORTS[:1])[0].status["nodule"] == status
        assert strict.settings["threshold"] == threshold


def test_settings_are_what_answers_depend_on(labeler_folder):
    settings = EncoderLabeler(labeler_folder, batch_size=3).settings
    assert settings == EncoderLabeler(labeler_folder).settings
    assert len(settings["model_sha256"]) == 64
    assert {name: settings[name] for name in settings if name != "model_sha256"} == {
        "temperature": 1.0,
        "threshold": 0.5,
        "max_length": 64,
        "dtype": "float32",
        "windows": "sentences-1",
        "evidence": "attention-1",
    }


def test_one_half_counts_as_present(labeler_folder):
    labeler = EncoderLabeler(labeler_folder)
    with torch.no_grad():
        for weight, bias in ((0.0, [0.0, -1e-4]),):
            labeler.classifier.model.finding_attention.score.weight.fill_(weight)
            labeler.classifier.model.finding_attention.score.bias.copy_(torch.tensor(bias))
    assert label_all(labeler, ["effusion"])[0].status == {
        "nodule": Status.PRESENT,
        "effusion": Status.ABSENT,
    }


@torch.no_grad()
def test_attention_runs_over_the_tokens_of_all_windows(labeler_folder):
    labeler = EncoderLabeler(labeler_folder, max_length=16)
    model = labeler.classifier.model
    torch.nn.init.normal_(model.finding_attention.query.weight, std=2.0)
    windows = read_in_windows(labeler.classifier.tokenizer, LONG, 16).windows
    assert len(windows) == 3
    states = [
        model.encoder(torch.tensor([w.input_ids]), torch.ones(1, len(w.input_ids))).last_hidden_state
        for w in windows
    ]
    hidden = torch.cat(states, dim=1)
    logits, weights, _ = model.finding_attention(hidden, torch.ones(hidden.shape[:2]))
    (got,) = label_all(labeler, [LONG])
    torch.testing.assert_close(
        torch.tensor(list(got.score.values())), logits[0].sigmoid(), atol=1e-5, rtol=1e-4
    )
    assert got.tokens_in == hidden.shape[1]
    assert (labeler.num_windowed_reports, labeler.num_split_sentences) == (1, 0)
    marks = torch.tensor([mark for window in windows for mark in window.sentence_of])
    sentences = [sentence.text for sentence in split_sentences(LONG)]
    for row, key in enumerate(labeler.keys):
        mass = [float(weights[0, row][marks == number].sum()) for number in range(len(sentences))]
        best = max(range(len(mass)), key=mass.__getitem__)
        is_quoted = got.status[key] == Status.PRESENT or mass[best] >= 0.5
        assert got.evidence[key] == (sentences[best] if is_quoted else None)
    assert any(got.evidence.values())


def test_the_end_of_a_long_report_is_read_and_a_long_sentence_is_counted(labeler_folder):
    labeler = EncoderLabeler(labeler_folder, max_length=12)
    one, two = label_all(labeler, [f"{LONG} nodule", f"{LONG} small"])
    assert one.score != two.score
    assert (labeler.num_windowed_reports, labeler.num_split_sentences) == (2, 2)
    label_all(labeler, ["There is no nodule and there is no effusion present in this scan"])
    assert (labeler.num_windowed_reports, labeler.num_split_sentences) == (3, 3)
    assert labeler.notes() == [
        "3 reports have more than the 12 tokens of a window: read in several, none cut off.",
        "3 sentences have more than the 12 tokens of a window: read in pieces.",
    ]
    assert EncoderLabeler(labeler_folder).notes() == []


@pytest.mark.parametrize("batch_size", ["auto", 1, 3])
def test_answers_do_not_depend_on_the_batch(labeler_folder, batch_size):
    labeler = EncoderLabeler(labeler_folder, max_length=20, batch_size=batch_size)
    reports = [*REPORTS, LONG, "no", f"{LONG} {LONG}"]
    together = label_all(labeler, reports)
    for report, got in zip(reports, together, strict=True):
        alone = label_all(labeler, [report])[0]
        assert list(got.score.values()) == pytest.approx(list(alone.score.values()), abs=1e-5)
        assert got.evidence == alone.evidence
        assert got.tokens_in == alone.tokens_in


def test_a_batch_that_does_not_fit_in_memory_is_halved(labeler_folder, monkeypatch):
    labeler = EncoderLabeler(labeler_folder)
    expected = label_all(labeler, REPORTS * 4)
    forward, sizes = EncoderLabeler._forward, []

    def small(self, windows):
        sizes.append(len(windows))
        if len(windows) > 3:
            raise torch.OutOfMemoryError
        return forward(self, windows)

    monkeypatch.setattr(EncoderLabeler, "_forward", small)
    got = label_all(EncoderLabeler(labeler_folder), REPORTS * 4)
    assert sizes[0] == 8
    assert max(sizes[2:]) <= 4
    for left, right in zip(got, expected, strict=True):
        assert list(left.score.values()) == pytest.approx(list(right.score.values()), abs=1e-5)
    fixed = label_all(EncoderLabeler(labeler_folder, batch_size=8), REPORTS * 4)
    assert {labels.error for labels in fixed} == {None}  # each alone, after the batch has failed
    monkeypatch.setattr(EncoderLabeler, "_forward", lambda self, windows: _raise(torch.OutOfMemoryError()))
    failed = label_all(EncoderLabeler(labeler_folder), REPORTS)
    assert {labels.error for labels in failed} == {"exception:OutOfMemoryError"}


def _raise(error):
    raise error


def test_a_classifier_of_another_family_has_the_largest_logit_and_no_evidence(tiny_tokenizer, tmp_path):
    config = BertConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        initializer_range=1.0,
        problem_type="multi_label_classification",
        id2label={0: "Pleural effusion", 1: "Lung nodule", 2: "No Finding"},
    )
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "bert")
    tiny_tokenizer.save_pretrained(tmp_path / "bert")
    labeler = EncoderLabeler(tmp_path / "bert", load_findings("ct_rate_18"), should_skip_unmatched=True)
    assert labeler.keys == ("lung_nodule", "pleural_effusion")
    assert labeler.settings["evidence"] is None
    (got,) = label_all(labeler, [LONG])
    windows = read_in_windows(tiny_tokenizer, LONG, 16).windows
    with torch.no_grad():
        logits = torch.cat([model(torch.tensor([window.input_ids])).logits for window in windows])
    assert len(windows) == 3
    assert (logits.argmax(dim=0) != logits.argmin(dim=0)).all()
    expected = logits.amax(dim=0).sigmoid()[[1, 0]].tolist()
    assert list(got.score.values()) == pytest.approx(expected, abs=1e-5)
    assert set(got.evidence.values()) == {None}


def test_bf16_is_asked_for_and_is_in_the_settings(labeler_folder):
    labeler = EncoderLabeler(labeler_folder, dtype="bfloat16")
    assert labeler.classifier.model.dtype == torch.bfloat16
    assert labeler.settings["dtype"] == "bfloat16"
    assert labeler.settings["model_sha256"] != EncoderLabeler(labeler_folder).settings["model_sha256"]
    assert label_all(labeler, REPORTS)[0].error is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.0}, "threshold must be between 0 and 1, got 0.0"),
        ({"threshold": 1.0}, "threshold must be between 0 and 1, got 1.0"),
        ({"batch_size": 0}, "batch_size must be 'auto' or at least 1, got 0"),
        ({"batch_size": "big"}, "batch_size must be 'auto' or at least 1, got 'big'"),
        ({"dtype": "float16"}, "dtype must be float32 or bfloat16, got 'float16'"),
    ],
)
def test_refuses_settings_that_mean_nothing(labeler_folder, settings, message):
    with pytest.raises(ValueError, match=message):
        EncoderLabeler(labeler_folder, **settings)
