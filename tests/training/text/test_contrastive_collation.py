import pytest
import torch

from radtower.modeling.losses import shares_key
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.training.text.contrastive_batches import Pair
from radtower.training.text.contrastive_collation import PairCollator, pair_keys, text_key

PAIRS = [
    Pair("There is no effusion. There is no nodule.", "no nodule", ("nodule present",)),
    Pair("small effusion", "effusion present", ("no effusion", "nodule present")),
    Pair("There is", "no nodule"),
]


@pytest.fixture
def encoder(tiny_llm_folder):
    return LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean", max_length=64)


def _vectors(encoder, batch, side):
    chunks = torch.cat([encoder(**chunk).pooler_output for chunk in batch[f"{side}_chunks"]])
    return chunks[batch[f"{side}_rows"]]


@torch.no_grad()
@pytest.mark.parametrize("chunk_size", [1, 2, 16])
def test_each_text_has_the_vector_it_has_alone(encoder, chunk_size):
    batch = PairCollator(encoder.tokenizer, encoder.config, chunk_size)(PAIRS)
    queries = encoder.encode_text([pair.query for pair in PAIRS])
    documents = [
        "no nodule",
        "effusion present",
        "no nodule",
        "nodule present",
        "no effusion",
        "nodule present",
    ]
    torch.testing.assert_close(_vectors(encoder, batch, "query"), queries, rtol=1e-5, atol=1e-5)
    expected = torch.cat([encoder.encode_text(text) for text in documents])
    torch.testing.assert_close(_vectors(encoder, batch, "document"), expected, rtol=1e-5, atol=1e-5)


def test_a_text_is_encoded_once_per_side_and_with_those_of_its_length(encoder):
    batch = PairCollator(encoder.tokenizer, encoder.config, 2)(PAIRS)
    sizes = [len(chunk["input_ids"]) for chunk in batch["document_chunks"]]
    assert sizes == [2, 2]  # four distinct documents of six
    lengths = [chunk["attention_mask"].sum(dim=1).tolist() for chunk in batch["query_chunks"]]
    assert max(lengths[0]) <= min(lengths[1])
    again = PairCollator(encoder.tokenizer, encoder.config, 2)([Pair("no nodule", "no nodule")])
    assert len(again["query_chunks"]) == len(again["document_chunks"]) == 1


@torch.no_grad()
def test_an_instruction_is_before_its_query_only_and_not_pooled(encoder):
    pairs = [
        Pair("no effusion", "no nodule", instruction="Describe the nodule"),
        Pair("no effusion", "small nodule"),
        Pair("nodule", "effusion", instruction="Describe the effusion"),
    ]
    batch = PairCollator(encoder.tokenizer, encoder.config, 16)(pairs)
    queries = _vectors(encoder, batch, "query")
    expected = [
        encoder.encode("no effusion", instruction="Describe the nodule"),
        encoder.encode("no effusion"),
        encoder.encode("nodule", instruction="Describe the effusion"),
    ]
    torch.testing.assert_close(queries, torch.cat(expected), rtol=1e-5, atol=1e-5)
    assert (queries[0] - queries[1]).abs().max() > 1e-3
    documents = encoder.encode(["no nodule", "small nodule", "effusion"])
    torch.testing.assert_close(_vectors(encoder, batch, "document"), documents, rtol=1e-5, atol=1e-5)


def test_token_ids_are_those_of_the_batch(encoder):
    collator = PairCollator(encoder.tokenizer, encoder.config, 16)
    batch = collator([Pair("no effusion", "small", instruction="Describe")])
    ids = collator.token_ids([("Describe", "no effusion"), (None, "small")])
    assert [ids[0]] == batch["query_chunks"][0]["input_ids"].tolist()
    assert [ids[1]] == batch["document_chunks"][0]["input_ids"].tolist()


def test_an_error_behind_the_last_token_that_is_read_is_none(encoder):
    pairs = [Pair("nodule", "There is no nodule", ("There is no effusion", "There is a nodule"))]
    for max_length, expected in ((None, [True, False, False]), (4, [True, True, False])):
        batch = PairCollator(encoder.tokenizer, encoder.config, 16, max_length)(pairs)
        keys = batch["document_keys"]
        assert shares_key(keys[:1], keys).tolist() == [expected]


def test_what_is_no_negative_of_what():
    pairs = [
        Pair("a", "x", ("z",)),
        Pair("b", " X "),  # the same positive
        Pair("A", "y"),  # the same query as the first
        Pair("c", "v", label_key="normal"),
        Pair("d", "w", label_key="normal"),
        Pair("e", "z"),  # its positive is the hard negative of the first
        Pair("f", "normal"),  # a text is no label
    ]
    keys = torch.tensor([pair_keys(pair) for pair in pairs])
    expected = torch.eye(7, dtype=torch.bool)
    for left, right in ((0, 1), (0, 2), (3, 4)):
        expected[left, right] = expected[right, left] = True
    assert torch.equal(shares_key(keys, keys), expected)
    hard = torch.tensor([[text_key("z"), 0, 0]])
    assert shares_key(keys, hard).flatten().tolist() == [False] * 5 + [True, False]


def test_the_keys_of_a_batch_are_the_positives_then_the_hard_negatives(encoder):
    batch = PairCollator(encoder.tokenizer, encoder.config, 4)(PAIRS)
    expected = [pair_keys(pair) for pair in PAIRS]
    expected += [(text_key(text), 0, 0) for text in ("nodule present", "no effusion", "nodule present")]
    assert batch["document_keys"][:, :3].tolist() == [list(keys) for keys in expected]
    assert next(iter(batch)) == "query_rows"
