"""Configuration of the dual tower: both sub-configurations and the space they share."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_ct3d import CT3DVisionConfig
from .configuration_llm_biencoder import LLMBiEncoderConfig

# Resolved here and not through AutoConfig: where they are remote code, these families are not registered.
OWN_FAMILIES = {"ct3d_vision": CT3DVisionConfig, "llm_biencoder": LLMBiEncoderConfig}


@strict
class MedCLIPConfig(PreTrainedConfig):
    """Two towers and what joins them, for :class:`MedCLIPModel`.

    Args:
        vision_config: Configuration of the image tower: ours, or any vision model of transformers that
            returns ``pooler_output``. None is the default 3D ResNet.
        text_config: Configuration of the text tower, likewise. None is the default LLM bi-encoder.
        projection_dim: Size of the shared space.
        vision_projection: ``linear`` (no bias) or ``mlp`` (one hidden GELU layer of ``projection_dim``).
        text_projection: Likewise.
        logit_scale_init: Logarithm of the initial inverse temperature; CLIP's ln(1 / 0.07).
        findings: Names of the findings that the shared head scores on both modalities (GreenRFM, arXiv
            2603.06467); empty for no head.

    Raises:
        StrictDataclassClassValidationError: If ``projection_dim`` is not positive, a finding is named twice,
            or the text tower has a text prefix. ``@strict`` wraps the ValueErrors below in it.
    """

    model_type = "medclip"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=CT3DVisionConfig),
        "text_config": SubConfigSpec(config_class=LLMBiEncoderConfig),
    }

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    projection_dim: int = 512
    vision_projection: Literal["linear", "mlp"] = "linear"
    text_projection: Literal["linear", "mlp"] = "linear"
    logit_scale_init: float | int = 2.6592
    findings: list[str] | tuple[str, ...] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision_config = _resolve(self.vision_config)
        self.text_config = _resolve(self.text_config)
        super().__post_init__(**kwargs)

    def validate_joint_space(self) -> None:
        if self.projection_dim < 1:
            raise ValueError(f"projection_dim must be positive, got {self.projection_dim}. Use e.g. 512.")
        repeated = sorted({name for name in self.findings if list(self.findings).count(name) > 1})
        if repeated:
            raise ValueError(f"findings must be unique, got {repeated} more than once. Name each once.")

    def validate_text_prefix(self) -> None:
        # The processor tokenizes here, and the tower cannot add words to token ids.
        prefix = getattr(self.text_config, "text_prefix", "")
        if prefix:
            raise ValueError(
                f"text_prefix of the text tower must be empty in a dual tower, got {prefix!r}. Make it part "
                "of the processor's instruction, as in instruction='Query:{text}'."
            )


def _resolve(config: dict[str, Any] | PreTrainedConfig | None) -> PreTrainedConfig | None:
    """Build the configuration of a tower from its dict, whatever its family; None stays None, the default."""
    if not isinstance(config, dict):
        return config
    if "model_type" not in config:
        raise ValueError(f"a tower's configuration must name its model_type, got {sorted(config)}. Add it.")
    family = OWN_FAMILIES.get(config["model_type"])
    return AutoConfig.for_model(**config) if family is None else family(**config)
