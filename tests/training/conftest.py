"""A data set of eight tiny studies, with everything that the three trainings read."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import TrainingArguments

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.data.volume_cache import build_volume_cache
from radtower.labeling.findings import Status
from radtower.labeling.label_table import LabelRow, write_labels
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.report_text import report_sha256
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing, write_volume
from radtower.training.arguments import DEFAULTS
from radtower.training.runs import VisionRun

SPACING_MM = (3.0, 2.0, 2.0)
UNREADABLE = "study-2"
REPORTS = [
    "There is no nodule. There is no effusion.",
    "There is a small nodule.",
    "Effusion is present.",
    "small effusion, no nodule",
    "Possible nodule. Describe effusion.",
    "There is a small nodule.",  # as study 1: one row of labels, one text feature
    "no effusion",
    "nodule and effusion present",
]
STATUSES = [
    (Status.ABSENT, Status.ABSENT),
    (Status.PRESENT, Status.NOT_MENTIONED),
    (Status.NOT_MENTIONED, Status.PRESENT),
    (Status.ABSENT, Status.PRESENT),
    (Status.UNCERTAIN, Status.PRESENT),
    (Status.PRESENT, Status.NOT_MENTIONED),
    (Status.NOT_MENTIONED, Status.ABSENT),
    (Status.PRESENT, Status.PRESENT),
]
KEYS = ("nodule", "effusion")


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``manifest.csv``, ``gold.csv``, ``labels.parquet`` and ``cache``; the last two studies are ``test``."""
    folder = tmp_path_factory.mktemp("studies")
    rng = np.random.default_rng(0)
    rows = []
    for number, report in enumerate(REPORTS):
        study_id = f"study-{number}"
        image = folder / f"{study_id}.nii.gz"
        if study_id == UNREADABLE:
            image.write_bytes(b"damaged")
        else:
            array = rng.integers(-1000, 600, (8, 12, 12)).astype(np.int16)
            volume = Volume(
                array, SPACING_MM, affine_from_spacing(SPACING_MM), "LPS", VolumeSource("test", "none")
            )
            write_volume(volume, image)
        split = "test" if number >= 6 else "train"
        rows.append((study_id, f"patient-{number}", image.name, report, split))
    columns = ["study_id", "patient_id", "image_path", "report", "split"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "manifest.csv", index=False)
    gold = pd.DataFrame(STATUSES, columns=list(KEYS)).map(str)
    gold.insert(0, "study_id", [row[0] for row in rows])
    gold.iloc[:6].to_csv(folder / "gold.csv", index=False)
    _write_labels(folder / "labels.parquet")
    processor = CT3DImageProcessor(spacing_mm=(3.0, 3.0, 3.0), size=(8, 8, 8))
    build_volume_cache({row[0]: folder / row[2] for row in rows}, processor, folder / "cache")
    return folder


def _write_labels(path: Path) -> None:
    by_report = dict(zip(REPORTS, STATUSES, strict=True))
    rows = [
        LabelRow(
            report_id=f"r{number}",
            report_sha256=report_sha256(report),
            status=dict(zip(KEYS, statuses, strict=True)),
            score=dict.fromkeys(KEYS),
            evidence=dict.fromkeys(KEYS),
            labeler="test",
            model_id="m",
            prompt_version=None,
            findings_set="pair",
        )
        for number, (report, statuses) in enumerate(by_report.items())
    ]
    write_labels(rows, path)


@pytest.fixture(scope="session")
def text_folder(tiny_llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text tower with its tokenizer. Read-only."""
    folder = tmp_path_factory.mktemp("towers") / "text"
    torch.manual_seed(3)
    LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean", max_length=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vision_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier as the supervised stage saves it. Read-only."""
    folder = tmp_path_factory.mktemp("towers") / "vision"
    torch.manual_seed(4)
    config = CT3DVisionConfig(
        hidden_sizes=[8, 16], layers=[1, 1], image_size=[8, 8, 8], id2label=dict(enumerate(KEYS))
    )
    CT3DVisionForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def make_arguments(tmp_path: Path) -> Callable[..., TrainingArguments]:
    """Training arguments as a recipe gives them; keyword arguments override."""

    def make(name: str = "model", **settings: Any) -> TrainingArguments:
        given = {
            "max_steps": 2,
            "per_device_train_batch_size": 3,
            "learning_rate": 0.01,
            "logging_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        return TrainingArguments(output_dir=str(tmp_path / name), **DEFAULTS | given | settings)

    return make


@pytest.fixture
def run_workers() -> Callable[..., None]:
    """Run a script as processes that find each other: ``script RANK WORLD_SIZE FOLDER [OPTION...]``."""

    def run(script: Path, world_size: int, folder: Path, *options: object) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        arguments = [str(world_size), str(folder), *map(str, options)]
        workers = [
            subprocess.Popen(
                [sys.executable, str(script), str(rank), *arguments],
                env=os.environ | {"OMP_NUM_THREADS": "1"} | meeting,
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
            )
            for rank in range(world_size)
        ]
        try:
            for worker in workers:
                _, errors = worker.communicate(timeout=300)
                assert worker.returncode == 0, errors[-2000:]
        finally:
            for worker in workers:  # those that wait for one that failed
                worker.kill()
                worker.communicate()

    return run


@pytest.fixture
def vision_run(study_folder: Path) -> VisionRun:
    """A small 3D tower on the silver labels of ``study_folder``."""
    return VisionRun(
        manifest=str(study_folder / "manifest.csv"),
        labels=str(study_folder / "labels.parquet"),
        cache=str(study_folder / "cache"),
        hidden_sizes=(4, 8),
        layers=(1, 1),
    )
