"""RadTower: radiology vision-language models that live on the Hugging Face Hub. Research use only."""

import os as _os  # not a name of the package

__version__ = "0.1.0"

# Set by the `radtower` command alone, while it imports its own modules: --help must not wait for PyTorch.
if "RADTOWER_DEFER_MODELS" not in _os.environ:
    from radtower.configuration.configuration_ct3d import CT3DVisionConfig as CT3DVisionConfig
    from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig as LLMBiEncoderConfig
    from radtower.configuration.configuration_medclip import MedCLIPConfig as MedCLIPConfig
    from radtower.modeling.llm_biencoder.modeling_llm_biencoder_heads import (
        LLMBiEncoderForSequenceClassification as LLMBiEncoderForSequenceClassification,
    )
    from radtower.modeling.llm_biencoder.modeling_llm_biencoder_mntp import (
        LLMBiEncoderForMaskedNTP as LLMBiEncoderForMaskedNTP,
    )
    from radtower.modeling.modeling_ct3d import (
        CT3DVisionForImageClassification as CT3DVisionForImageClassification,
    )
    from radtower.modeling.modeling_ct3d import CT3DVisionModel as CT3DVisionModel
    from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder as LLMBiEncoder
    from radtower.modeling.modeling_medclip import MedCLIPModel as MedCLIPModel
    from radtower.processing.image_processing_ct3d import CT3DImageProcessor as CT3DImageProcessor
    from radtower.processing.processing_medclip import MedCLIPProcessor as MedCLIPProcessor
    from radtower.processing.volume_io import Volume as Volume
    from radtower.processing.volume_io import read_volume as read_volume
    from radtower.registration import register

    register()
