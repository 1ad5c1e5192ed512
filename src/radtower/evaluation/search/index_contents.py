"""What an index is made of: scans or reports of a table, or features that were embedded before.

Axes: N items.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from radtower.data.datasets import study_targets
from radtower.data.manifest import read_manifest
from radtower.data.reports.report_corpus import label_columns, read_report_table
from radtower.data.targets import TargetPolicy
from radtower.evaluation.embedding import embed_manifest, embed_reports
from radtower.evaluation.features import Features
from radtower.evaluation.search.items import REPORT, REPORT_HASH, SPLIT, STUDY_ID, make_items
from radtower.processing.report_text import normalize_report, report_sha256


@dataclass(frozen=True)
class IndexContents:
    """Row i of the features is item i; ``failures`` are reasons by id, of what is left out."""

    features: Features
    items: pd.DataFrame
    failures: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """What of a manifest or report table goes into the table of items.

    Args:
        split: Of the rows; None takes all.
        labels: ``labels.parquet`` with the findings of the reports. None takes the label columns of the
            table.
        with_text: Whether the reports themselves are stored, too, and not only their hashes.
    """

    split: str | None = None
    labels: str | Path | None = None
    with_text: bool = False

    @property
    def needs_reports(self) -> bool:
        """Whether a manifest of scans must have reports: a label table is joined by them."""
        return self.with_text or self.labels is not None


def scans_of_manifest(
    model: str | Path,
    manifest: str | Path,
    options: TableOptions = TableOptions(),
    cache: str | Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> IndexContents:
    """Embed the scans of a manifest; see :func:`embed_manifest`. Item ids are volume ids."""
    chosen = read_manifest(manifest, needs_reports=options.needs_reports)
    if options.split is not None:
        chosen = chosen.split(options.split)  # type: ignore[arg-type]
    rows, labels = _table_of_scans(chosen.frame, options)
    features, failures = embed_manifest(model, chosen, cache, on_progress)
    return IndexContents(features, _items(features.ids, rows, labels, options), failures)


def reports_of_table(
    model: str | Path,
    table: str | Path,
    options: TableOptions = TableOptions(),
    show_progress: bool = False,
) -> IndexContents:
    """Embed the reports of a manifest or report table, one per study. Item ids are study ids.

    Raises:
        ValueError: If the vectors of the model depend on their batch; and see :func:`embed_reports`.
    """
    rows, labels = _table_of_reports(table, options)
    pairs = zip(rows.index, rows[REPORT], strict=True)
    features, failures = embed_reports(model, pairs, show_progress, is_stored=True)
    return IndexContents(features, _items(features.ids, rows, labels, options), failures)


def embedded_before(
    features: Features, table: str | Path | None = None, options: TableOptions = TableOptions()
) -> IndexContents:
    """Take features as they are, of which those in the split of the table are kept.

    Args:
        features: Of ``radtower embed``.
        table: Manifest that has the scans by volume id, or manifest or report table that has the reports by
            study id. None knows the ids only.
        options: What of the table goes along.

    Raises:
        ValueError: If an id is not in the table, or an option needs one and there is none.
    """
    if table is None:
        if options != TableOptions():
            raise ValueError("split, labels and text must come with a table, got none. Name the manifest.")
        return IndexContents(features, make_items(features.ids), {})
    everything = TableOptions(labels=options.labels, with_text=options.with_text)
    if features.source.kind == "image":
        rows, labels = _table_of_scans(
            read_manifest(table, needs_reports=options.needs_reports).frame, everything
        )
    else:
        rows, labels = _table_of_reports(table, everything)
    unknown = sum(item not in rows.index for item in features.ids)
    if unknown:
        kind = "volume" if features.source.kind == "image" else "study"
        raise ValueError(
            f"features must have the {kind} ids of the table, got {unknown} of {len(features.ids)} others. "
            "Embed that table, or leave it out."
        )
    kept = features if options.split is None else _of_split(features, rows, options.split)
    return IndexContents(kept, _items(kept.ids, rows, labels, options), {})


def _of_split(features: Features, rows: pd.DataFrame, split: str) -> Features:
    is_in = rows[SPLIT].loc[features.ids].to_numpy() == split
    if not is_in.any():
        raise ValueError(f"split must be one of the features, got {split!r} with none. Choose another.")
    ids = [item for item, kept in zip(features.ids, is_in, strict=True) if kept]
    return Features(features.vectors[torch.from_numpy(is_in)], ids, features.source)


def _table_of_scans(frame: pd.DataFrame, options: TableOptions) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows and labels by volume id."""
    rows = frame[["volume_id", STUDY_ID, SPLIT, REPORT]].set_index("volume_id")
    return _with_labels(rows.assign(**{REPORT: rows[REPORT].map(normalize_report)}), frame, options)


def _table_of_reports(table: str | Path, options: TableOptions) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows and labels by study id."""
    read = read_report_table(table)
    if options.split is not None:
        read = read.split(options.split)  # type: ignore[arg-type]
    labels = pd.DataFrame(read.labels, columns=list(read.label_names))
    rows = read.frame[[STUDY_ID, SPLIT, REPORT]].set_index(STUDY_ID, drop=False)
    return _with_labels(rows.rename_axis(None), labels, options)


def _with_labels(
    rows: pd.DataFrame, labels: pd.DataFrame, options: TableOptions
) -> tuple[pd.DataFrame, pd.DataFrame]:
    if options.labels is None:
        return rows, label_columns(labels).set_axis(rows.index)
    targets = study_targets(rows, options.labels, TargetPolicy())
    return rows, pd.DataFrame(targets.values, columns=list(targets.keys), index=rows.index)


def _items(
    ids: Sequence[str], rows: pd.DataFrame, labels: pd.DataFrame, options: TableOptions
) -> pd.DataFrame:
    """The table of the items that could be embedded, in their order."""
    chosen = rows.loc[list(ids)]
    columns: dict[str, Sequence[str]] = {name: chosen[name].tolist() for name in (STUDY_ID, SPLIT)}
    columns[REPORT_HASH] = [report_sha256(text) if text else "" for text in chosen[REPORT]]
    if options.with_text:
        columns[REPORT] = chosen[REPORT].tolist()
    return make_items(ids, columns, labels.loc[list(ids)])
