"""transformers' common tests of configurations and models, on ours. ``conformance.py`` runs it."""

import copy
import unittest
from typing import Any

import torch
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from hub_contract.common_tests.skipping import not_for_us
from hub_contract.stock_models import (
    FINDINGS,
    NUM_SAMPLES,
    NUM_TOKENS,
    build_samples,
    pair_config,
    picture_config,
    text_config,
    vision_config,
)
from radtower import (
    CT3DVisionConfig,
    CT3DVisionForImageClassification,
    CT3DVisionModel,
    LLMBiEncoder,
    LLMBiEncoderConfig,
    LLMBiEncoderForMaskedNTP,
    LLMBiEncoderForSequenceClassification,
    MedCLIPConfig,
    MedCLIPModel,
)

# The tests know by these names which models have no loss.
MODEL_MAPPING_NAMES |= {"ct3d_vision": "CT3DVisionModel", "llm_biencoder": "LLMBiEncoder"}
CONFIGS = {"image": vision_config, "text": text_config, "pair": pair_config, "picture": picture_config}
REMOVED_TOKENS = 15  # the tests make vocabularies smaller by so many
OWN_RECOMPUTATION = (
    "looks for `GradientCheckpointingLayer`, which runs a layer a second time, batch norm included: the "
    "running statistics would count a batch twice. The image tower recomputes halves of its blocks on copies "
    "of the statistics; tests/modeling/ compares gradients and statistics"
)
NO_ATTENTION = "the image tower is a convolutional network, without attention"
OUTPUTS_OF_TOWERS = (
    "as in CLIP, states and attention maps are in `text_model_output` and `vision_model_output` and not in "
    "the output itself; tests/modeling/ compares them with those of the towers"
)
DUAL = {
    "test_model_main_input_name": (
        "texts come first, as in CLIP, but scans are the main input: where it is `input_ids`, recomputation "
        "makes the output of the embedding require gradients, and a frozen language model is run backwards"
    ),
    "test_hidden_states_output": OUTPUTS_OF_TOWERS,
    "test_retain_grad_hidden_states_attentions": OUTPUTS_OF_TOWERS,
    "test_attention_outputs": OUTPUTS_OF_TOWERS,
}


class _Tester:
    """What the mixins ask for: a small configuration, inputs that fit it, and sizes of what comes out."""

    batch_size = NUM_SAMPLES
    is_training = True

    def __init__(self, kind: str) -> None:
        self.kind = kind
        if kind == "image":
            # Of token states the mixin checks the last two axes: here Y and X of the map behind the stem.
            self.seq_length = self.hidden_size = 4
            self.num_hidden_layers = len(vision_config().hidden_sizes)
            return
        decoder: Any = text_config().text_config
        self.seq_length, self.hidden_size = NUM_TOKENS, decoder.hidden_size
        self.num_hidden_layers = decoder.num_hidden_layers
        self.num_attention_heads = decoder.num_attention_heads
        if kind == "pair":
            self.vision_config = {"num_hidden_layers": len(vision_config().hidden_sizes)}

    def get_config(self) -> Any:
        config = CONFIGS[self.kind]()
        if self.kind != "image":
            config.get_text_config().vocab_size = 2 * REMOVED_TOKENS
        if self.kind in ("pair", "picture"):
            config.logit_scale_init = 0.0  # times 14, half precision is outside of the tolerances of cosines
        return config

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        samples = build_samples("pair" if self.kind == "picture" else self.kind)
        names = [name for name in samples[0] if name != "labels"]
        inputs = {name: torch.stack([sample[name] for sample in samples]) for name in names}
        if self.kind == "picture":
            inputs["pixel_values"] = inputs["pixel_values"][:, :, 0]
        return self.get_config(), inputs


class _Common(ModelTesterMixin):
    kind = ""
    config_class: Any = None

    def setUp(self) -> None:
        self.model_tester = _Tester(self.kind)

    def _prepare_for_class(self, inputs_dict: Any, model_class: type, return_labels: bool = False) -> Any:
        inputs = copy.deepcopy(inputs_dict)
        if return_labels and model_class is LLMBiEncoderForMaskedNTP:
            inputs["labels"] = inputs["input_ids"].where(torch.arange(NUM_TOKENS) > 1, -100)
        if return_labels and (self.kind == "pair" or "Classification" in model_class.__name__):
            inputs["labels"] = torch.zeros(NUM_SAMPLES, len(FINDINGS))
        return inputs

    def test_config(self) -> None:
        ConfigTester(
            self, config_class=self.config_class, has_text_modality=False, common_properties=[]
        ).run_common_tests()


@not_for_us(
    {
        "test_gradient_checkpointing_enable_disable": OWN_RECOMPUTATION,
        "test_training_gradient_checkpointing": OWN_RECOMPUTATION,
        "test_training_gradient_checkpointing_use_reentrant_false": OWN_RECOMPUTATION,
        "test_training_gradient_checkpointing_use_reentrant_true": OWN_RECOMPUTATION,
        "test_model_get_set_embeddings": "a convolutional network has no embedding of tokens",
    },
)
class CT3DVisionTest(_Common, unittest.TestCase):
    kind = "image"
    has_attentions = test_resize_embeddings = False  # a convolutional network
    config_class = CT3DVisionConfig
    all_model_classes = (CT3DVisionModel, CT3DVisionForImageClassification)


class LLMBiEncoderTest(_Common, unittest.TestCase):
    kind = "text"
    config_class = LLMBiEncoderConfig
    all_model_classes = (LLMBiEncoder, LLMBiEncoderForSequenceClassification, LLMBiEncoderForMaskedNTP)


@not_for_us(DUAL, {"test_get_image_features_attentions": NO_ATTENTION})
class MedCLIPTest(_Common, unittest.TestCase):
    kind = "pair"
    config_class = MedCLIPConfig
    all_model_classes = (MedCLIPModel,)
    _is_composite = True
    additional_model_inputs = ["input_ids"]
    skip_test_image_features_output_shape = True  # the map of the 3D tower is (B, E, z, y, x)


@not_for_us(DUAL)
class MedCLIPOfPicturesTest(_Common, unittest.TestCase):
    kind = "picture"
    config_class = MedCLIPConfig
    all_model_classes = (MedCLIPModel,)
    _is_composite = True
    additional_model_inputs = ["input_ids"]
