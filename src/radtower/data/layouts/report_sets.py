"""Public sets of reports as they are downloaded -> report tables with a fixed split.

Open-i (Demner-Fushman et al. 2016, doi 10.1093/jamia/ocv080) and the manually labeled reports of CT-CLIP
(Hamamci et al. 2024, arXiv 2403.17834).
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from radtower.data.layouts.downloaded_set import read_columns, rows_of
from radtower.data.reports.report_corpus import COLUMNS, assign_splits
from radtower.data.targets import MASKED_TARGET
from radtower.labeling.findings import load_findings
from radtower.processing.report_text import join_sections, normalize_report

OPENI_COLUMNS = ("Problems", "findings", "impression")
NOT_INDEXED = "No Indexing"  # what Open-i writes where nobody assigned terms
NOT_IN_CT_RATE = "not in CT-RATE"
# The first mark opens the impression; further ones separate its items.
IMPRESSION_MARK = re.compile(r'["\u2022\u00b7]')


def read_openi_reports(path: str | Path) -> pd.DataFrame:
    """Read Open-i's table (uid, Problems, findings, impression) as a report table.

    A study is its own patient: the collection has one study per patient. ``XXXX``, which stands for removed
    identifiers, stays. Every term of ``Problems`` becomes a label column; a study that nobody indexed has
    unknown labels.

    Args:
        path: ``reports.csv``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, or a uid is empty or repeated.
    """
    table = read_columns(Path(path), "uid", OPENI_COLUMNS).fillna("")
    terms = [
        {_slug(term) for term in cell.split(";") if term.strip() and term.strip() != NOT_INDEXED}
        for cell in table["Problems"]
    ]
    ids = [f"openi_{uid}" for uid in table.index]
    labels = {
        name: [int(name in found) if found else int(MASKED_TARGET) for found in terms]
        for name in sorted(set().union(*terms))
    }
    findings, impressions = (_items(table[name]) for name in ("findings", "impression"))
    reports = [join_sections(*sections) for sections in zip(findings, impressions, strict=True)]
    return _with_labels(_table(ids, ids, "open_i", findings, impressions, reports), labels)


def read_ct_rate_reports(path: str | Path, volume_names: str | Path) -> pd.DataFrame:
    """Read the 800 reports that were labeled by hand for CT-CLIP's text classifier, as a report table.

    The report keeps its text. Its impression begins at the first quotation mark or bullet, and the items
    after it become sentences; a report without one is all findings.

    Args:
        path: ``train.csv`` with AccessionNo, report_text and the 18 label columns.
        volume_names: ``map_train_classifier.csv``: AccessionNo to NameinCTRATE, which holds the patient. A
            report that is not in CT-RATE is its own patient.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column or the name of a report is missing, or an AccessionNo repeats.
    """
    findings_set = load_findings("ct_rate_18")
    table = read_columns(Path(path), "AccessionNo", ("report_text", *findings_set.names))
    names = rows_of(
        read_columns(Path(volume_names), "AccessionNo", ("NameinCTRATE",)), list(table.index), "volume_names"
    )
    patients = [
        f"accession_{accession}" if name == NOT_IN_CT_RATE else name.rpartition("_")[0]
        for accession, name in names["NameinCTRATE"].items()
    ]
    reports = _items(table["report_text"].fillna(""))
    sections = [_ct_sections(report) for report in reports]
    labels = {finding.key: pd.to_numeric(table[finding.name]).to_numpy() for finding in findings_set.findings}
    study_ids = [f"accession_{accession}" for accession in table.index]
    findings, impressions = zip(*sections, strict=True)
    return _with_labels(_table(study_ids, patients, "ct_rate", findings, impressions, reports), labels)


def _ct_sections(report: str) -> tuple[str, str]:
    """Findings, and the items of the impression as sentences."""
    findings, *items = IMPRESSION_MARK.split(report)
    kept = [item.strip(" ,") for item in items if item.strip(" ,.")]
    return findings.strip(" ,"), " ".join(item if item[-1] in ".!?:" else f"{item}." for item in kept)


def _table(
    study_ids: Sequence[str],
    patient_ids: Sequence[str],
    source: str,
    findings: Sequence[str],
    impressions: Sequence[str],
    reports: Sequence[str],
) -> pd.DataFrame:
    splits = assign_splits(patient_ids, reports, findings)
    sources = [source] * len(study_ids)
    columns = (study_ids, patient_ids, splits, sources, findings, impressions, reports)
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


def _with_labels(table: pd.DataFrame, labels: dict[str, Any]) -> pd.DataFrame:
    # Not assign: a hundred inserted columns fragment the table.
    return pd.concat([table, pd.DataFrame(labels, index=table.index)], axis=1)


def _items(texts: Iterable[str]) -> list[str]:
    return [normalize_report(text) for text in texts]


def _slug(term: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", term.lower()).strip("_")
