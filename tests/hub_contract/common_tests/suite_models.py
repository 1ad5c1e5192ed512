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
MAPS = "our models return no states of inner layers and no attention maps; `output_hidden_states` is refused"
OWN_RECOMPUTATION = (
    "the image tower recomputes by itself, so that batch norm counts a batch once; tests/modeling/ compares "
    "the gradients"
)
SOME_CONFIGURATIONS = "the list names parts that only some configurations have; tests/modeling/ tests each"
OWN_COPY = (
    "a model takes a copy of its decoder's configuration, for the next one may read in the other direction; "
    "the test edits the original between two models"
)
EVERY_MODEL = {
    "test_hidden_states_output": MAPS,
    "test_retain_grad_hidden_states_attentions": MAPS,
    "test_can_capture_specific_layers_hidden_states": MAPS,
    "test_capture_outputs_decorator": MAPS,
    "test_get_image_features_hidden_states": MAPS,
    "test_get_text_features_hidden_states": MAPS,
    "test_model_outputs_equivalence": MAPS + "; `return_dict` has tests in tests/hub_contract/",
}
DUAL = {
    "test_keep_in_fp32_modules_exist": SOME_CONFIGURATIONS,
    "test_model_main_input_name": (
        "texts come first, as in CLIP, but scans are the main input: recomputation goes by that name, and a "
        "frozen text tower needs no gradients at its embeddings"
    ),
}


class _Tester:
    """What the mixins ask for: a small configuration and inputs that fit it."""

    batch_size = NUM_SAMPLES
    is_training = True

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def get_config(self) -> Any:
        return CONFIGS[self.kind]()

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
    has_attentions = False
    test_resize_embeddings = False

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
    EVERY_MODEL,
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
    config_class = CT3DVisionConfig
    all_model_classes = (CT3DVisionModel, CT3DVisionForImageClassification)


@not_for_us(
    EVERY_MODEL,
    {
        "test_keep_in_fp32_modules_exist": SOME_CONFIGURATIONS,
        "test_model_rope_scaling_from_config_0_linear": OWN_COPY,
        "test_model_rope_scaling_from_config_1_dynamic": OWN_COPY,
        "test_model_rope_scaling_from_config_2_yarn": OWN_COPY,
    },
)
class LLMBiEncoderTest(_Common, unittest.TestCase):
    kind = "text"
    config_class = LLMBiEncoderConfig
    all_model_classes = (LLMBiEncoder, LLMBiEncoderForSequenceClassification, LLMBiEncoderForMaskedNTP)


@not_for_us(EVERY_MODEL, DUAL)
class MedCLIPTest(_Common, unittest.TestCase):
    kind = "pair"
    config_class = MedCLIPConfig
    all_model_classes = (MedCLIPModel,)
    _is_composite = True
    skip_test_image_features_output_shape = True  # the map of the 3D tower is (B, E, z, y, x)


@not_for_us(EVERY_MODEL, DUAL)
class MedCLIPOfPicturesTest(_Common, unittest.TestCase):
    kind = "picture"
    config_class = MedCLIPConfig
    all_model_classes = (MedCLIPModel,)
    _is_composite = True
