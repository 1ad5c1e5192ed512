"""A label table of four unique reports, one of them failed, and a manifest of six volumes that have them."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from radtower.hub_cards.labels.label_release import LabelRelease, ReleaseOptions, prepare_release
from radtower.labeling.label_table import LabelRow, stream_labels
from radtower.processing.report_text import report_sha256

TEXTS = {
    "s1": "A small nodule. No effusion.",
    "s2": "Perhaps an effusion.",
    "s3": "The lungs are clear and quiet.",
    "s4": "Illegible.",
}
# nodule, effusion
STATUS = {
    "s1": ("present", "absent"),
    "s2": ("not_mentioned", "uncertain"),
    "s3": ("absent", "not_mentioned"),
    "s4": (None, None),
}
SCORES = {"s1": (0.875, 0.125), "s2": (0.25, None), "s3": (0.0625, 0.03125), "s4": (None, None)}
EVIDENCE = {"s1": ("A small nodule.", "No effusion."), "s2": (None, "Perhaps an effusion.")}
KEYS = ("nodule", "effusion")
VOLUMES = [  # volume, study, patient, split, text of
    ("v1a", "s1", "p1", "train", "s1"),
    ("v1b", "s1", "p1", "train", "s1"),
    ("v2", "s2", "p2", "validation", "s2"),
    ("v5", "s5", "p5", "validation", "s1"),  # another patient, the same text
    ("v4", "s4", "p4", "test", "s4"),
    ("v6", "s6", "p6", "train", None),  # never labeled
]


def _make_row(report_id: str, text: str, **fields: object) -> LabelRow:
    empty = (None, None)
    given = {
        "report_id": report_id,
        "report_sha256": report_sha256(text),
        "status": dict(zip(KEYS, STATUS[report_id], strict=True)),
        "score": dict(zip(KEYS, SCORES[report_id], strict=True)),
        "evidence": dict(zip(KEYS, EVIDENCE.get(report_id, empty), strict=True)),
        "labeler": "endpoint",
        "model_id": "some/model-7b",
        "prompt_version": "ct-v3",
        "findings_set": "two_findings",
        "tokens_in": 411,
        "tokens_out": 37,
        "cost_usd": 0.0021,
        "error": "reply:no_json" if report_id == "s4" else None,
        "num_dropped_evidence": 3 if report_id == "s2" else 0,
    }
    return LabelRow(**(given | fields))


@pytest.fixture
def write_label_table(tmp_path: Path) -> Callable[..., Path]:
    """Write the four rows with other fields in some: ``s1={"model_id": ...}``; ``all_rows`` is for all."""

    def write(
        all_rows: dict[str, object] | None = None,
        generation: dict[str, str | int | None] | None = None,
        **changed: dict[str, object],
    ) -> Path:
        rows = [
            _make_row(name, text, **((all_rows or {}) | changed.get(name, {})))
            for name, text in TEXTS.items()
        ]
        stream_labels(rows, tmp_path / "labels.parquet", list(rows[0].status), generation)
        return tmp_path / "labels.parquet"

    return write


@pytest.fixture
def labels_path(write_label_table: Callable[..., Path]) -> Path:
    return write_label_table()


@pytest.fixture
def findings_path(tmp_path: Path) -> Path:
    content = {
        "name": "two_findings",
        "findings": [
            {"key": "nodule", "name": "Lung nodule", "definition": "A round thing.", "prompts": ["nodule"]},
            {"key": "effusion", "name": "Effusion", "definition": "Fluid.", "prompts": ["effusion"]},
        ],
    }
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "two.yaml"


@pytest.fixture
def manifest_frame() -> pd.DataFrame:
    columns = ["volume_id", "study_id", "patient_id", "split", "report"]
    rows = [(*ids, TEXTS.get(text or "", "Never labeled.")) for *ids, text in VOLUMES]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture
def manifest_path(tmp_path: Path, manifest_frame: pd.DataFrame) -> Path:
    # Spaces and line breaks do not make another report.
    manifest_frame.assign(report=manifest_frame["report"].str.replace(" ", "  ")).to_csv(
        tmp_path / "manifest.csv", index=False
    )
    return tmp_path / "manifest.csv"


@pytest.fixture
def make_release(labels_path: Path, manifest_path: Path, findings_path: Path) -> Callable[..., LabelRelease]:
    def make(**options: object) -> LabelRelease:
        given = {"repo_id": "tester/silver", "reports": manifest_path, "findings": findings_path}
        return prepare_release(labels_path, ReleaseOptions(**(given | options)))

    return make
