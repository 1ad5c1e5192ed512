"""Make the families known to the Auto classes of transformers; let the processors read files."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.configuration.configuration_medclip import MedCLIPConfig
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_heads import LLMBiEncoderForSequenceClassification
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_mntp import LLMBiEncoderForMaskedNTP
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification, CT3DVisionModel
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.modeling.pipelines.zero_shot_ct import TASK, ZeroShotCTPipeline
from radtower.processing.image_io import read_image
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.processing_medclip import MedCLIPProcessor
from radtower.processing.volume_io import read_volume


def register() -> None:
    """Register every family; calling it twice changes nothing."""
    for config in (CT3DVisionConfig, LLMBiEncoderConfig, MedCLIPConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(CT3DVisionConfig, CT3DVisionModel, exist_ok=True)
    AutoModel.register(LLMBiEncoderConfig, LLMBiEncoder, exist_ok=True)
    AutoModel.register(MedCLIPConfig, MedCLIPModel, exist_ok=True)
    AutoModelForImageClassification.register(
        CT3DVisionConfig, CT3DVisionForImageClassification, exist_ok=True
    )
    AutoModelForMaskedLM.register(LLMBiEncoderConfig, LLMBiEncoderForMaskedNTP, exist_ok=True)
    AutoModelForSequenceClassification.register(
        LLMBiEncoderConfig, LLMBiEncoderForSequenceClassification, exist_ok=True
    )
    AutoModelForZeroShotImageClassification.register(MedCLIPConfig, MedCLIPModel, exist_ok=True)
    processors: dict[str, type] = {"pil": CT3DImageProcessor}
    AutoImageProcessor.register(CT3DVisionConfig, image_processor_classes=processors, exist_ok=True)
    AutoProcessor.register(MedCLIPConfig, MedCLIPProcessor, exist_ok=True)
    if TASK not in PIPELINE_REGISTRY.supported_tasks:  # a second registration would warn
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=ZeroShotCTPipeline,
            pt_model=AutoModelForZeroShotImageClassification,
            type="multimodal",
        )
    # The exported processors may not import an I/O library; inside the package they are handed one.
    CT3DImageProcessor.reader = staticmethod(read_volume)  # type: ignore[assignment]
    MedCLIPProcessor.image_reader = staticmethod(read_image)
