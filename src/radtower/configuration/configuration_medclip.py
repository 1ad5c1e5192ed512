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
        vision_projection: ``linear`` (no bias), ``mlp`` (one hidden GELU layer of ``projection_dim``),
            ``ln_linear`` (a linear layer with bias behind a layer norm), ``slice`` (the first numbers of the
            tower's vector, for Matryoshka towers) or ``identity``.
        text_projection: Likewise.
        vision_pooling: How the states of the image tower become one vector: its ``pooler`` output, the first
            state (``cls``), their ``mean``, or the ``last`` one. Our own towers have ``pooler`` only.
        text_pooling: Likewise, over real tokens. A BERT whose pooler was not trained needs ``cls`` or
            ``mean``; a raw decoder ``last``.
        similarity: ``cosine``, times the learned scale; or ``legacy_dot``: the dot product of vectors of any
            length and no scale, as the published CT systems train (GreenRFM, arXiv 2603.06467).
        loss: ``infonce``; ``siglip``, which has a bias, too; or ``soft_infonce``, whose positive mass goes by
            shared findings.
        label_share: Mass that ``soft_infonce`` spreads by shared findings, in (0, 1]; the rest stays with the
            pair.
        matryoshka_dims: Cuts of the vectors that are trained together. Empty trains whole vectors.
        logit_scale_init: Logarithm of the initial inverse temperature; CLIP's ln(1 / 0.07). SigLIP begins at
            ln 10.
        logit_bias_init: First bias of ``siglip``.
        findings: Names of the findings that the shared head scores on both modalities (GreenRFM, arXiv
            2603.06467); empty for no head.

    Raises:
        StrictDataclassClassValidationError: If ``projection_dim`` is not positive, a finding is named twice,
            the text tower has a text prefix, or settings do not go together. ``@strict`` wraps the
            ValueErrors below in it.
    """

    model_type = "medclip"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=CT3DVisionConfig),
        "text_config": SubConfigSpec(config_class=LLMBiEncoderConfig),
    }

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    projection_dim: int = 512
    vision_projection: Literal["linear", "mlp", "ln_linear", "slice", "identity"] = "linear"
    text_projection: Literal["linear", "mlp", "ln_linear", "slice", "identity"] = "linear"
    vision_pooling: Literal["pooler", "cls", "mean", "last"] = "pooler"
    text_pooling: Literal["pooler", "cls", "mean", "last"] = "pooler"
    similarity: Literal["cosine", "legacy_dot"] = "cosine"
    loss: Literal["infonce", "siglip", "soft_infonce"] = "infonce"
    label_share: float | int = 0.5
    matryoshka_dims: list[int] | tuple[int, ...] = ()
    logit_scale_init: float | int = 2.6592
    logit_bias_init: float | int = -10.0
    findings: list[str] | tuple[str, ...] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision_config = _resolve(self.vision_config)
        self.text_config = _resolve(self.text_config)
        super().__post_init__(**kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """Configuration that has the vocabulary, which transformers writes to where tokens are added."""
        tower = super().get_text_config(decoder=decoder, encoder=encoder)
        return tower if tower is self else tower.get_text_config(decoder=decoder, encoder=encoder)

    def validate_joint_space(self) -> None:
        if self.projection_dim < 1:
            raise ValueError(f"projection_dim must be positive, got {self.projection_dim}. Use e.g. 512.")
        repeated = sorted({name for name in self.findings if list(self.findings).count(name) > 1})
        if repeated:
            raise ValueError(f"findings must be unique, got {repeated} more than once. Name each once.")

    def validate_projections(self) -> None:
        for name in ("vision", "text"):
            kind, width = getattr(self, f"{name}_projection"), tower_width(getattr(self, f"{name}_config"))
            if kind == "identity" and width != self.projection_dim:
                raise ValueError(
                    f"projection_dim must be the width of the {name} tower where its projection is the "
                    f"identity, got {self.projection_dim} for {width}. Set it, or choose linear."
                )
            if kind == "slice" and width < self.projection_dim:
                raise ValueError(
                    f"projection_dim must be at most the width of the {name} tower where it is cut, got "
                    f"{self.projection_dim} for {width}. Make it smaller, or choose linear."
                )

    def validate_objective(self) -> None:
        if self.similarity == "legacy_dot" and (self.loss == "siglip" or self.matryoshka_dims):
            raise ValueError(
                f"similarity must be cosine for siglip and for matryoshka_dims, got {self.similarity!r} with "
                f"{self.loss} and {list(self.matryoshka_dims)}. Choose cosine."
            )
        if not 0 < self.label_share <= 1:
            raise ValueError(
                f"label_share must be in (0, 1], got {self.label_share}. Use loss='infonce' for no share."
            )
        dims = list(self.matryoshka_dims)
        if len(set(dims)) < len(dims) or not all(1 <= dim <= self.projection_dim for dim in dims):
            raise ValueError(
                f"matryoshka_dims must be different sizes between 1 and {self.projection_dim}, got {dims}. "
                "Name each cut once."
            )

    def validate_pooling(self) -> None:
        for name in ("vision", "text"):
            kind = getattr(getattr(self, f"{name}_config"), "model_type", "")
            pooling = getattr(self, f"{name}_pooling")
            if kind in OWN_FAMILIES and pooling != "pooler":
                raise ValueError(
                    f"{name}_pooling must be 'pooler' for {kind}, which pools itself, got {pooling!r}. "
                    "Set the pooling of the tower."
                )

    def validate_text_prefix(self) -> None:
        # The processor tokenizes here, and the tower cannot add words to token ids.
        prefix = getattr(self.text_config, "text_prefix", "")
        if prefix:
            raise ValueError(
                f"text_prefix of the text tower must be empty in a dual tower, got {prefix!r}. Make it part "
                "of the processor's instruction, as in instruction='Query:{text}'."
            )


def tower_width(config: Any) -> int:
    """Size of the vector that a tower gives; convolutional networks name one per stage.

    Raises:
        ValueError: If the configuration names none.
    """
    width = getattr(config, "hidden_size", None)
    if width is None:
        stages = getattr(config, "hidden_sizes", None) or ()
        if not stages:
            raise ValueError(
                "a tower's configuration must have hidden_size or hidden_sizes, got none in a "
                f"{getattr(config, 'model_type', type(config).__name__)}. Choose a tower of another family."
            )
        width = stages[-1]
    return int(width)


def _resolve(config: dict[str, Any] | PreTrainedConfig | None) -> PreTrainedConfig | None:
    """Build the configuration of a tower from its dict, whatever its family; None stays None, the default."""
    if not isinstance(config, dict):
        return config
    if "model_type" not in config:
        raise ValueError(f"a tower's configuration must name its model_type, got {sorted(config)}. Add it.")
    family = OWN_FAMILIES.get(config["model_type"])
    return AutoConfig.for_model(**config) if family is None else family(**config)
