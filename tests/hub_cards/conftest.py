"""Trained model folders of every family, and results to put on a card."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.evaluation.results import MetricResult, Results, write_results
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_heads import LLMBiEncoderForSequenceClassification
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_mntp import LLMBiEncoderForMaskedNTP
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification, CT3DVisionModel
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.processing.image_processing_ct3d import CT3DImageProcessor


@pytest.fixture
def make_model_folder(
    tmp_path: Path,
    tiny_vision_config: CT3DVisionConfig,
    tiny_text_config: LLMBiEncoderConfig,
    tiny_llm_folder: Path,
    tiny_medclip: MedCLIPModel,
    tiny_image_clip: MedCLIPModel,
) -> Callable[[str], Path]:
    """Save a model of a kind as training does, beside what training leaves there and nobody may publish."""

    def make(kind: str) -> Path:
        folder = tmp_path / f"trained_{kind}"
        if kind == "medclip":
            tiny_medclip.save_pretrained(folder)
            tiny_medclip.processor.save_pretrained(folder)
        elif kind == "image_clip":
            tiny_image_clip.save_pretrained(folder)
        elif kind.startswith("ct3d"):
            model_class = CT3DVisionModel if kind == "ct3d_bare" else CT3DVisionForImageClassification
            model_class(tiny_vision_config).save_pretrained(folder)
            CT3DImageProcessor(spacing_mm=(3.0, 2.0, 2.5), size=(8, 8, 8)).save_pretrained(folder)
        else:
            pooling = "latent_attention" if kind.startswith("llm_latent") else "mean"
            config = {"pooling": pooling, "num_latents": 6, "num_latent_heads": 4, "max_length": 64}
            encoder = LLMBiEncoder.from_llm(tiny_llm_folder, id2label={0: "effusion", 1: "nodule"}, **config)
            encoder.save_pretrained(folder)
            if kind.endswith("_classifier"):
                LLMBiEncoderForSequenceClassification(encoder.config).save_pretrained(folder)
            if kind == "llm_latent_mntp":
                LLMBiEncoderForMaskedNTP(encoder.config).save_pretrained(folder)
            if kind == "llm_mntp":
                LLMBiEncoderForMaskedNTP.from_llm(tiny_llm_folder, max_length=64).save_pretrained(folder)
        (folder / "run.yaml").write_text(f"manifest: {tmp_path}/manifest.csv\n")
        (folder / "training_log.jsonl").write_text('{"step": 1}\n')
        (folder / "training_args.bin").write_bytes(b"pickle")
        (folder / "checkpoint-2").mkdir()
        (folder / "checkpoint-2" / "optimizer.pt").write_bytes(b"pickle")
        return folder

    return make


def _metric(metric: str, value: float | None, low: float | None, high: float | None, **fields: object):
    given = {
        "ci_method": "percentile, 50 resamples",
        "n": 31,
        "dataset": "phantom scans",
        "class_set": "two findings",
        "label_source": "truth of the phantom",
        "protocol": "prompt ensemble",
    }
    return MetricResult.model_validate(
        {"metric": metric, "value": value, "ci_low": low, "ci_high": high} | given | fields
    )


@pytest.fixture
def make_results(tmp_path: Path) -> Callable[..., Path]:
    """Write a ``results.json`` with five metrics: one is undefined, one compares with another model."""

    def make(phantom: bool = True) -> Path:
        metrics = (
            _metric("macro_auroc", 0.71837, 0.61412, 0.82849),
            _metric("auroc", 0.65213, 0.55191, 0.75931, finding="effusion", n=29, n_positive=11),
            _metric("auroc", None, None, None, finding="nodule", n=17, note="undefined: one class only"),
            _metric("recall_at_5", 0.41671, 0.30123, 0.53377, direction="image_to_report"),
            _metric("recall_at_5_difference", 0.1, 0.05, 0.15, direction="image_to_report"),
            _metric("label_f1_baseline", 0.2, 0.15, 0.25, direction="image_to_report"),
        )
        results = Results(
            model_id="m",
            model_revision=None,
            created=datetime(2026, 1, 1, tzinfo=UTC),
            phantom=phantom,
            metrics=metrics,
        )
        write_results(results, tmp_path / "results.json")
        return tmp_path / "results.json"

    return make
