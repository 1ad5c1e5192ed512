import torch

from radtower.data.collation import ReportCollator


def test_pads_to_the_longest_and_stacks_the_labels(tiny_tokenizer):
    samples = [
        {"text": "There is no nodule", "labels": torch.tensor([0.0, -100.0])},
        {"text": "effusion", "labels": torch.tensor([1.0, 0.25])},
    ]
    batch = ReportCollator(tiny_tokenizer)(samples)
    assert sorted(batch) == ["attention_mask", "input_ids", "labels"]
    alone = tiny_tokenizer("effusion")["input_ids"]
    longest = tiny_tokenizer("There is no nodule")["input_ids"]
    assert len(alone) < len(longest)
    num_pads = len(longest) - len(alone)
    pads = [tiny_tokenizer.pad_token_id] * num_pads
    assert batch["input_ids"].tolist() == [
        longest,
        pads + alone,
    ]  # padded on the left, as this tokenizer does
    assert batch["attention_mask"].tolist() == [
        [1] * len(longest),
        [0] * num_pads + [1] * len(alone),
    ]
    assert batch["labels"].tolist() == [[0, -100], [1, 0.25]]
    assert batch["labels"].dtype == torch.float32


def test_cuts_a_report_at_max_length(tiny_tokenizer):
    collator = ReportCollator(tiny_tokenizer, max_length=3)
    batch = collator([{"text": "There is no small nodule present", "labels": [1.0]}])
    expected = tiny_tokenizer("There is no small nodule present")["input_ids"][:3]
    assert batch["input_ids"].tolist() == [expected]
    assert batch["labels"].tolist() == [[1.0]]
