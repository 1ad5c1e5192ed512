import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, ViTConfig, ViTModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.modeling.modeling_zero_shot import (
    ENSEMBLE,
    PROMPT_PAIRS,
    fill_prompt,
    pair_scores,
    prompt_pairs,
)
from radtower.processing.processing_medclip import MedCLIPProcessor

SCANS = torch.rand(3, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
SCALE = math.exp(2.6592)


def test_the_families_and_the_ensemble():
    assert prompt_pairs("seed") == [("{finding}.", "")]
    assert prompt_pairs("ensemble") == [PROMPT_PAIRS[name] for name in ENSEMBLE]
    own = ("The volume shows: {finding}.", "The volume shows: Not {finding_lower}.")
    assert prompt_pairs(["not", own]) == [("{finding}.", "not {finding}."), own]
    assert prompt_pairs(["ensemble", "seed"])[-1] == ("{finding}.", "")


@pytest.mark.parametrize(
    ("template", "finding", "sentence"),
    [
        ("not {finding}.", "CT artifact", "not CT artifact."),
        ("The volume shows: Not {finding_lower}.", "Lung nodule", "The volume shows: Not lung nodule."),
        ("No {finding_lower}.", "CT artifact", "No CT artifact."),
        ("{finding_lower} is seen, {finding}.", "Lung nodule", "Lung nodule is seen, Lung nodule."),
        ("{finding} {x}", "a {finding_lower}", "A {finding_lower} {x}"),
        ("", "nodule", ""),
    ],
)
def test_phrases_are_put_into_templates(template, finding, sentence):
    assert fill_prompt(template, finding) == sentence


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ([], ValueError, "at least one pair, got none"),
        ("has", KeyError, r"one of \['compatible_with', .*'there_is'\], got 'has'"),
        (["{finding}.", ""], KeyError, r"got '\{finding\}\.'"),
        ([("{finding}.",)], TypeError, r"pairs of two texts, got \('\{finding\}\.',\)"),
        ([("{finding}.", None)], TypeError, "pairs of two texts"),
        ([3], TypeError, "pairs of two texts, got 3"),
        ([("Nodule.", "{finding}.")], ValueError, r"must hold \{finding\} .*got \['Nodule\.'"),
        ([("{finding}.", " {finding}.")], ValueError, "differ from the second"),
        (["ensemble", "not"], ValueError, "different pairs, got 1 of 5 twice"),
    ],
)
def test_prompts_that_are_none_are_refused(prompts, error, message):
    with pytest.raises(error, match=message):
        prompt_pairs(prompts)


def test_scores_by_hand():
    images = torch.tensor([[1.0, 0.0], [0.6, -0.8]])
    directions = torch.tensor([[[0.5, 0.0]], [[-0.1, 0.2]]])  # two pairs, one finding
    margins = [[0.5, -0.1], [0.3, -0.06 - 0.16]]
    scale = torch.tensor([10.0])

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    for score, expected in (
        ("margin", [sum(row) / 2 for row in margins]),
        ("softmax", [sigmoid(10 * sum(row) / 2) for row in margins]),
        ("mean_softmax", [sum(sigmoid(10 * margin) for margin in row) / 2 for row in margins]),
    ):
        assert pair_scores(images, directions, scale, score)[:, 0].tolist() == pytest.approx(expected)
    with pytest.raises(ValueError, match="one of softmax, mean_softmax, margin, got 'mean'"):
        pair_scores(images, directions, scale, "mean")


@pytest.mark.parametrize("similarity", ["cosine", "legacy_dot"])
def test_a_tower_is_scored_as_it_compares(tiny_medclip, similarity):
    tiny_medclip.config.similarity = similarity
    is_cosine = similarity == "cosine"
    with torch.no_grad():  # lengths that dot products show
        tiny_medclip.visual_projection.weight *= 40
        tiny_medclip.text_projection.weight *= 30
    images = tiny_medclip.encode_image(SCANS, normalize=is_cosine)
    pairs = [tiny_medclip.encode_text(pair, normalize=is_cosine) for pair in (
        ["Nodule is present.", "Nodule is not present."], ["Nodule.", "not nodule."],
    )]  # fmt: skip
    scale = SCALE if is_cosine else 1.0
    logits = torch.stack([scale * images @ pair.T for pair in pairs], dim=1)
    prompts = ["is_present", "not"]
    expected = {
        "margin": (logits[..., 0] - logits[..., 1]).mean(dim=1) / scale,
        "softmax": logits.mean(dim=1).softmax(dim=-1)[:, 0],
        "mean_softmax": logits.softmax(dim=-1)[..., 0].mean(dim=1),
    }
    for score, values in expected.items():
        found = tiny_medclip.zero_shot(SCANS, ["effusion", "nodule"], prompts, score)
        torch.testing.assert_close(found[:, 1], values, atol=1e-5, rtol=1e-4)
    assert (expected["softmax"] - 0.5).abs().max() > 1e-2
    with pytest.raises(ValueError, match="got 'max'"):
        tiny_medclip.zero_shot("no such file", "nodule", score="max")


def test_the_empty_half_of_the_seed_is_its_special_tokens(tiny_medclip):
    direction = tiny_medclip.finding_directions(["nodule", "effusion"], "seed")
    bos = torch.tensor([[tiny_medclip.processor.tokenizer.bos_token_id]])
    with torch.no_grad():
        nothing = torch.nn.functional.normalize(tiny_medclip.get_text_features(bos).pooler_output, dim=-1)
    expected = tiny_medclip.encode_text(["Nodule.", "Effusion."]) - nothing
    torch.testing.assert_close(direction, expected, atol=1e-5, rtol=1e-4)
    together = tiny_medclip.pair_directions(["nodule", "effusion"], ["there_is", "seed"])
    torch.testing.assert_close(together[1], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        together[0], tiny_medclip.finding_directions(["nodule", "effusion"], "there_is")
    )


def test_the_empty_half_is_read_in_evaluation_mode_with_the_instruction(tiny_medclip):
    tiny_medclip.processor.instruction = "Describe {text}"
    ids = tiny_medclip.processor.tokenizer("Describe ")["input_ids"]
    with torch.no_grad():
        nothing = tiny_medclip.get_text_features(torch.tensor([ids])).pooler_output
    tiny_medclip.config.similarity = "legacy_dot"
    tiny_medclip.train()
    expected = tiny_medclip.encode_text("Nodule.", normalize=False) - nothing
    torch.testing.assert_close(tiny_medclip.finding_directions("nodule", "seed"), expected, atol=1e-5, rtol=0)
    assert tiny_medclip.training


def test_a_prompt_does_not_depend_on_the_others(tiny_medclip, tiny_tokenizer):
    tower = tiny_medclip.text_model
    tower.tokenizer = tiny_tokenizer
    tower.set_prompt("Describe", "small nodule")
    tower.config.prompt_padding = "legacy_middle"
    together = tiny_medclip.finding_directions(["nodule", "a long and winding effusion"], "there_is")
    alone = tiny_medclip.finding_directions(["nodule"], "there_is")
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=0)


def _bert_clip(tokenizer):
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = BertConfig(vocab_size=len(tokenizer), initializer_range=0.3, **small)
    vision = ViTConfig(image_size=8, patch_size=4, initializer_range=0.3, **small)
    model = MedCLIPModel.from_towers(ViTModel(vision), BertModel(text), projection_dim=6, text_pooling="cls")
    model.processor = MedCLIPProcessor(ViTImageProcessorPil(size={"height": 8, "width": 8}), tokenizer)
    return model.eval()


def test_a_tower_of_transformers_reads_nothing_as_its_special_tokens(tiny_tokenizer):
    model = _bert_clip(tiny_tokenizer)
    with torch.no_grad():
        nothing = model.get_text_features(torch.tensor([[tiny_tokenizer.bos_token_id]])).pooler_output
    expected = model.encode_text("Nodule.") - torch.nn.functional.normalize(nothing, dim=-1)
    torch.testing.assert_close(model.finding_directions("nodule", "seed"), expected, atol=1e-5, rtol=0)


def test_dropout_is_off_for_the_empty_half(tiny_tokenizer):
    model = _bert_clip(tiny_tokenizer)
    expected = model.finding_directions("nodule", "seed")
    model.train()
    torch.testing.assert_close(model.finding_directions("nodule", "seed"), expected, atol=1e-5, rtol=0)
    assert model.text_model.training


def test_a_long_instruction_is_cut_as_for_every_text(tiny_medclip):
    tiny_medclip.processor.instruction = "There is no small nodule {text}"
    tiny_medclip.processor.max_length = 3
    direction = tiny_medclip.finding_directions("nodule", "seed")
    torch.testing.assert_close(direction, torch.zeros(1, 12), atol=1e-5, rtol=0)  # both are "There is"


def test_nothing_to_read_in_place_of_nothing_is_refused():
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "Nodule": 1, ".": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    model = _bert_clip(PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[UNK]"))
    assert model.finding_directions("nodule", "not").shape == (1, 6)
    with pytest.raises(ValueError, match=r"special tokens around a text, got none.*such as 'not'"):
        model.finding_directions("nodule", "seed")
