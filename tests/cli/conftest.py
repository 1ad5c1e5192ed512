"""Scans, reports and saved models for the commands, and a way to run a command in this process."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from radtower.cli import main
from radtower.demo.cohort import write_volume as write_phantom
from radtower.demo.phantom import make_phantom
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_heads import LLMBiEncoderForSequenceClassification
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing, write_volume

SPACING_MM = (3.0, 2.0, 2.5)


@dataclass
class Done:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def radtower(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run ``radtower`` with arguments, as the installed command does."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["radtower", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.run()
        captured = capsys.readouterr()
        return Done(int(ended.value.code or 0), captured.out, captured.err)

    monkeypatch.setenv("COLUMNS", "120")
    return run


@pytest.fixture(scope="session")
def phantom_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thorax with lungs."""
    path = tmp_path_factory.mktemp("phantom") / "phantom.nii.gz"
    write_phantom(make_phantom(4, ["lung_nodule"]), path)
    return path


@pytest.fixture
def scans(tmp_path: Path) -> list[Path]:
    """Two small readable scans."""
    paths = []
    for seed in range(2):
        array = np.random.default_rng(seed).integers(-1000, 600, (8, 12, 10)).astype(np.int16)
        volume = Volume(array, SPACING_MM, affine_from_spacing(SPACING_MM), "LPS", VolumeSource("t", "n"))
        paths.append(tmp_path / f"scan{seed}.nii.gz")
        write_volume(volume, paths[-1])
    return paths


@pytest.fixture
def manifest(tmp_path: Path, scans: list[Path]) -> Path:
    """Three training studies; the scan of the second cannot be read."""
    (tmp_path / "bad.nii.gz").write_bytes(b"damaged")
    rows = [
        ("s1", "p1", scans[0].name, "There is no nodule.", "train"),
        ("s2", "p2", "bad.nii.gz", "small effusion", "train"),
        ("s3", "p3", scans[1].name, "nodule present", "train"),
    ]
    lines = ["study_id,patient_id,image_path,report,split", *(",".join(row) for row in rows)]
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "manifest.csv"


@pytest.fixture
def manifest_without_reports(manifest: Path) -> Path:
    """The same studies, as RAD-ChestCT has them."""
    rows = [line.split(",") for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(",".join([*row[:3], row[4]]) + "\n" for row in rows))
    return manifest


@pytest.fixture
def processor_folder(tmp_path: Path) -> Path:
    """A small image processor."""
    CT3DImageProcessor(spacing_mm=(3.0, 3.0, 3.0), size=(8, 8, 8)).save_pretrained(tmp_path / "processor")
    return tmp_path / "processor"


@pytest.fixture
def dual_tower(tiny_medclip: MedCLIPModel, tmp_path: Path) -> Path:
    """A saved dual tower with its processor."""
    tiny_medclip.save_pretrained(tmp_path / "dual")
    tiny_medclip.processor.save_pretrained(tmp_path / "dual")
    return tmp_path / "dual"


@pytest.fixture
def labeler(tiny_llm_folder: Path, tmp_path: Path) -> Path:
    """A saved labeler of two findings of CT-RATE."""
    encoder = LLMBiEncoder.from_llm(
        tiny_llm_folder, pooling="mean", max_length=64, id2label={0: "lung_nodule", 1: "pleural_effusion"}
    )
    model = LLMBiEncoderForSequenceClassification(encoder.config)
    torch.nn.init.normal_(model.finding_attention.score.weight)
    model.save_pretrained(tmp_path / "labeler")
    encoder.tokenizer.save_pretrained(tmp_path / "labeler")
    return tmp_path / "labeler"
