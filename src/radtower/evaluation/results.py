"""``results.json``: no number without its interval, size, class set and label source."""

import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from radtower.evaluation.bootstrap import Interval

SCHEMA_VERSION = 1
ROWS = ("scores", "queries")  # what may lie beside results
CAPTIONS = "captions.json"  # of the pictures beside results
Direction = Literal[
    "image_to_report",
    "report_to_image",
    "image_to_image",
    "report_to_report",
    "findings_to_impression",
    "impression_to_findings",
]


class Provenance(BaseModel):
    """What a number was measured on; every metric carries it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str = Field(min_length=1)
    class_set: str = Field(min_length=1)
    label_source: str = Field(min_length=1)
    threshold_source: str | None = None
    protocol: str | None = None


class MetricResult(Provenance):
    """One number.

    ``value`` is null where the metric is undefined; ``note`` then says why. ``n`` counts rows, ``n_positive``
    those that have the finding. ``protocol`` names a variant (prompt family, exact row or duplicates aware).
    ``chance`` is what a random answer gets, where that is not plain. Scores of at least ``threshold`` were
    called positive, for decisions on one finding.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    metric: str = Field(min_length=1)
    value: float | None
    ci_low: float | None
    ci_high: float | None
    ci_level: float = Field(default=0.95, gt=0, lt=1)
    ci_method: str = Field(min_length=1)
    n: int = Field(ge=0)
    n_positive: int | None = Field(default=None, ge=0)
    finding: str | None = None
    direction: Direction | None = None
    chance: float | None = None
    threshold: float | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _check_interval(self) -> "MetricResult":
        num_bounds = sum(bound is not None for bound in (self.ci_low, self.ci_high))
        if self.value is None and (num_bounds or not self.note):
            raise ValueError(
                f"{self.metric} must have a note and no interval where its value is null, "
                f"got note {self.note!r} and {num_bounds} bounds. Say why it is undefined."
            )
        if self.value is not None and num_bounds < 2:
            raise ValueError(
                f"{self.metric} must have an interval, got value {self.value} without one. "
                "Bootstrap the patients."
            )
        if self.ci_low is not None and self.ci_high is not None and self.ci_low > self.ci_high:
            raise ValueError(f"ci_low must not exceed ci_high, got {self.ci_low} and {self.ci_high}.")
        return self


class Results(BaseModel):
    """All metrics of one model.

    ``phantom`` says that scans or reports are synthetic; ``not_measured`` names the tasks that the data had
    no question for, and why. ``confusion`` counts reports by finding, gold status and silver status.
    ``model_revision`` of labels is the generation of their table: prompt, findings and settings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    model_id: str = Field(min_length=1)
    model_revision: str | None
    created: AwareDatetime
    phantom: bool
    metrics: tuple[MetricResult, ...]
    not_measured: tuple[str, ...] = ()
    confusion: dict[str, dict[str, dict[str, int]]] = {}

    @model_validator(mode="after")
    def _check_unique(self) -> "Results":
        seen = set()
        for item in self.metrics:
            identity = item.model_dump_json(
                include={*Provenance.model_fields, "metric", "finding", "direction"}
            )
            if identity in seen:
                raise ValueError(f"a metric must occur once, got {item.metric} ({item.finding}) twice.")
            seen.add(identity)
        return self

    def get(
        self,
        metric: str,
        finding: str | None = None,
        direction: Direction | None = None,
        **provenance: str | None,
    ) -> MetricResult:
        """Return the one result that fits; ``provenance`` (dataset, protocol, ...) narrows it further.

        Raises:
            KeyError: If none fits.
            ValueError: If several fit.
        """
        wanted = {"metric": metric, "finding": finding, "direction": direction, **provenance}
        found = [r for r in self.metrics if all(getattr(r, name) == value for name, value in wanted.items())]
        if not found:
            known = sorted({item.metric for item in self.metrics})
            raise KeyError(f"results must hold {wanted}, got none that fits. Metrics: {', '.join(known)}.")
        if len(found) > 1:
            raise ValueError(
                f"{metric!r} must be one result, got {len(found)}. Narrow it by dataset, class_set, "
                "label_source, threshold_source or protocol."
            )
        return found[0]


def measured(
    metric: str,
    value: float,
    interval: Interval,
    provenance: Provenance,
    *,
    n: int,
    undefined_because: str = "one class only",
    **details: Any,
) -> MetricResult:
    """Make a result of a number and its interval; NaN becomes a null with its reason.

    Args:
        metric: Name of the metric.
        value: NaN where undefined.
        interval: Its interval; a value without one is reported as null, because nobody can judge it.
        provenance: What it was measured on.
        n: Number of rows.
        undefined_because: Goes to the note when ``value`` is NaN.
        details: ``finding``, ``n_positive``, ``direction``, ``chance``, ``threshold``, ``note``.
    """
    notes = [details.pop("note", None)]
    has_interval = not (math.isnan(interval.low) or math.isnan(interval.high))
    if math.isnan(value):
        notes.append(f"undefined: {undefined_because}")
    elif not has_interval:
        notes.append("no interval: fewer than two patients, or undefined in most resamples")
    elif interval.num_undefined:
        notes.append(f"{interval.num_undefined} of {interval.num_resamples} resamples undefined and left out")
    is_defined = has_interval and not math.isnan(value)
    if is_defined and not interval.low <= value <= interval.high:
        notes.append("the value lies outside its percentile interval: there are too few patients for one")
    return MetricResult.model_validate(
        {
            **provenance.model_dump(),
            "metric": metric,
            "value": value if is_defined else None,
            "ci_low": interval.low if is_defined else None,
            "ci_high": interval.high if is_defined else None,
            "ci_level": interval.level,
            "ci_method": f"{interval.method}, {interval.num_resamples} resamples",
            "n": n,
            "note": "; ".join(filter(None, notes)) or None,
            **details,
        }
    )


def write_results(results: Results, path: str | Path) -> None:
    """Write ``results.json``, atomically, before the rows behind it; rows and pictures of an earlier run go.

    They are removed last: a write that fails leaves the earlier results whole. A folder of pictures that
    holds anything else stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8"
    ) as file:
        temporary = Path(file.name)
        try:
            file.write(results.model_dump_json(indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())  # to be shared, unlike a temporary file
            _remove_what_lies_beside(path)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def figures_folder(results: str | Path) -> Path:
    """Return where the pictures of a ``results.json`` lie."""
    return Path(results).with_suffix(".figures")


def _remove_what_lies_beside(path: Path) -> None:
    for kind in ROWS:
        path.with_suffix(f".{kind}.parquet").unlink(missing_ok=True)
    folder = figures_folder(path)
    if (folder / CAPTIONS).is_file() and not folder.is_symlink() and not foreign_files(folder):
        shutil.rmtree(folder)


def foreign_files(folder: Path) -> list[str]:
    """Return the names of what is neither a picture nor the captions, in a folder of pictures."""
    return sorted(p.name for p in folder.glob("*") if p.name != CAPTIONS and p.suffix != ".png")


def _umask() -> int:
    """The only way to read it is to set it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def read_results(path: str | Path) -> Results:
    """Read ``results.json`` and check it.

    Raises:
        ValueError: If it is no JSON, the schema version is not ours, or a metric is incomplete; the message
            names the file and what is wrong in it.
    """
    name = file_name(path)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise ValueError(
            f"{name} must be the JSON of an evaluation, got {error}. Evaluate again, or name another file."
        ) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"schema_version must be {SCHEMA_VERSION} in {name}, got {version!r}. Evaluate again with this "
            "version."
        )
    try:
        return Results.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file as a whole"
        more = f" and {error.error_count() - 1} more" if error.error_count() > 1 else ""
        raise ValueError(
            f"{name} must have every field of results, got {where}: {first['msg']}{more}. Evaluate again."
        ) from error


def file_name(path: str | Path) -> str:
    """Name a file in a message: with its folder, as many are a ``results.json``, and not with those above."""
    return "/".join(Path(path).parts[-2:])
