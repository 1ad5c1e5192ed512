"""What each model family puts on the Hub: entry files, auto classes, card template, install line."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one ``model_type`` is exported.

    Args:
        model_files: Files of the package that hold the classes of ``auto_map``.
        auto_map: Auto class -> ``module.Class``, for ``config.json``.
        processor_auto_map: The same for the processor's JSON; empty for a tokenizer alone.
        template: Card template in ``templates/``.
        pipeline_tags: Ending of the class that was saved -> task under which the Hub lists it; the first that
            fits.
        install: Packages that suffice to load it.
        papers: arXiv numbers of its methods.
    """

    model_files: tuple[str, ...]
    auto_map: dict[str, str]
    processor_auto_map: dict[str, str]
    template: str
    pipeline_tags: dict[str, str]
    install: str
    papers: tuple[str, ...]

    def pipeline_tag(self, config: dict[str, Any]) -> str:
        """Return the task of a model from the class in its configuration."""
        name = (config.get("architectures") or [""])[0]
        return next(tag for ending, tag in self.pipeline_tags.items() if name.endswith(ending))


FAMILIES = {
    "ct3d_vision": Family(
        model_files=("modeling/modeling_ct3d.py", "processing/image_processing_ct3d.py"),
        auto_map={
            "AutoConfig": "configuration_ct3d.CT3DVisionConfig",
            "AutoModel": "modeling_ct3d.CT3DVisionModel",
            "AutoModelForImageClassification": "modeling_ct3d.CT3DVisionForImageClassification",
        },
        processor_auto_map={"AutoImageProcessor": "image_processing_ct3d.CT3DImageProcessor"},
        template="ct3d_vision.md",
        pipeline_tags={"ForImageClassification": "image-classification", "": "image-feature-extraction"},
        install="torch transformers pillow",
        papers=("2509.13175", "2603.06467"),
    ),
    "llm_biencoder": Family(
        model_files=(
            "modeling/modeling_llm_biencoder.py",
            "modeling/llm_biencoder/modeling_llm_biencoder_heads.py",
            "modeling/llm_biencoder/modeling_llm_biencoder_mntp.py",
        ),
        auto_map={
            "AutoConfig": "configuration_llm_biencoder.LLMBiEncoderConfig",
            "AutoModel": "modeling_llm_biencoder.LLMBiEncoder",
            "AutoModelForMaskedLM": "modeling_llm_biencoder_mntp.LLMBiEncoderForMaskedNTP",
            "AutoModelForSequenceClassification": (
                "modeling_llm_biencoder_heads.LLMBiEncoderForSequenceClassification"
            ),
        },
        processor_auto_map={},
        template="llm_biencoder.md",
        pipeline_tags={"ForSequenceClassification": "text-classification", "": "feature-extraction"},
        install="torch transformers",
        papers=("2509.15234", "2404.05961"),
    ),
    "medclip": Family(
        model_files=(
            "modeling/modeling_medclip.py",
            "processing/processing_medclip.py",
            "processing/image_processing_ct3d.py",
        ),
        auto_map={
            "AutoConfig": "configuration_medclip.MedCLIPConfig",
            "AutoModel": "modeling_medclip.MedCLIPModel",
            "AutoModelForZeroShotImageClassification": "modeling_medclip.MedCLIPModel",
        },
        processor_auto_map={
            "AutoProcessor": "processing_medclip.MedCLIPProcessor",
            "AutoImageProcessor": "image_processing_ct3d.CT3DImageProcessor",
        },
        template="medclip.md",
        pipeline_tags={"": "zero-shot-image-classification"},
        install="torch transformers pillow",
        papers=("2509.13175", "2603.06467", "2509.15234", "2511.13876"),
    ),
}


# The dual tower of 2D images: the image processor is one of transformers.
IMAGE_CLIP = replace(
    FAMILIES["medclip"],
    model_files=("modeling/modeling_medclip.py", "processing/processing_medclip.py"),
    processor_auto_map={"AutoProcessor": "processing_medclip.MedCLIPProcessor"},
    template="medclip_images.md",
    papers=("2509.15234", "2511.13876"),
)


def family_of_config(config: dict[str, Any]) -> Family:
    """Look up the family of a ``config.json``; of dual towers the image tower decides.

    Raises:
        KeyError: If the type is not one of ours.
    """
    family = family_of(config["model_type"])
    vision = config.get("vision_config") or {}
    is_2d = config["model_type"] == "medclip" and vision.get("model_type", "ct3d_vision") != "ct3d_vision"
    return IMAGE_CLIP if is_2d else family


def family_of(model_type: str) -> Family:
    """Look up a family.

    Raises:
        KeyError: If the type is not one of ours.
    """
    if model_type not in FAMILIES:
        raise KeyError(
            f"model_type must be one of {sorted(FAMILIES)}, got {model_type!r}. Export such a model."
        )
    return FAMILIES[model_type]
