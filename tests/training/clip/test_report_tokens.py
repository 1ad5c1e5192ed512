import pytest
import torch

from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.processing_medclip import MedCLIPProcessor
from radtower.training.clip.report_tokens import ReportPadding, StudiesWithReports, tokenize_reports

REPORTS = ["no nodule", "There is a small effusion", "no nodule"]


@pytest.fixture
def processor(tiny_tokenizer):
    return MedCLIPProcessor(CT3DImageProcessor(), tiny_tokenizer, max_length=5)


def _scan(volume_id):
    return torch.full((1, 2, 2, 2), float(volume_id))


def test_samples_become_the_batch_that_the_processor_makes(processor):
    tokens = tokenize_reports(processor, REPORTS)
    assert tokens[0] is tokens[2]
    studies = StudiesWithReports(["3", "5", "7"], _scan, token_ids=tokens)
    batch = ReportPadding(processor.tokenizer)([studies[0], studies[1]])
    expected = processor(text=REPORTS[:2])
    assert batch["input_ids"].shape == (2, 5)  # cut, and padded on the left
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(batch[name], expected[name])
    assert batch["pixel_values"][:, 0, 0, 0, 0].tolist() == [3.0, 5.0]


def test_samples_without_reports_are_stacked(processor):
    batch = ReportPadding(processor.tokenizer)(
        [{"labels": torch.tensor([1.0])}, {"labels": torch.tensor([0.0])}]
    )
    assert {name: value.tolist() for name, value in batch.items()} == {"labels": [[1.0], [0.0]]}


def test_refuses_empty_reports_and_another_number_of_rows(processor):
    with pytest.raises(
        ValueError, match=r"reports must not be empty, got nothing to read at positions \[1\]"
    ):
        tokenize_reports(processor, ["no nodule", " "])
    with pytest.raises(ValueError, match="token_ids must have one row per volume, got 3 for 2"):
        StudiesWithReports(["3", "5"], _scan, token_ids=tokenize_reports(processor, REPORTS))
