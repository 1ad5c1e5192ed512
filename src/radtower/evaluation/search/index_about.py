"""``index.json``: what the vectors of an index are, and with what they may be compared."""

import json
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from radtower.evaluation.features import FeatureSource, source_differences
from radtower.evaluation.retrieval.ranks import Similarity
from radtower.evaluation.search.vector_file import VectorType

SCHEMA_VERSION = 1
ABOUT_FILE = "index.json"
Backend = Literal["exact", "flat", "hnsw", "ivf-pq"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)


class Recall(BaseModel):
    """Share of the true k nearest items that the backend finds, with an interval over queries.

    The queries are items of the index, themselves left out. Queries of another kind (texts, in an index of
    scans) lie elsewhere, and may fare worse.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    k: int = Field(ge=1)
    value: float = Field(ge=0, le=1)
    ci_low: float = Field(ge=0, le=1)
    ci_high: float = Field(ge=0, le=1)
    num_queries: int = Field(ge=2)
    queries: str = "items of the index, themselves left out"


class IndexAbout(BaseModel):
    """Everything that must agree before a query is answered, and how the index was built.

    ``kind`` is that of the items. ``model_hash`` is null where the features had none. ``finding_columns``
    hold 1, 0 or null. ``recall`` is null for the backends that compare all items.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    schema_version: Literal[1] = 1
    kind: Literal["image", "text"]
    model_id: str = Field(min_length=1)
    model_revision: str | None
    model_hash: str | None
    processor_hash: str | None
    is_normalized: bool
    metric: Similarity
    dimension: int = Field(ge=1)
    count: int = Field(ge=1)
    dtype: VectorType
    backend: Backend
    parameters: dict[str, int] = {}
    faiss_version: str | None = None
    faiss_sha256: str | None = None
    recall: Recall | None = None
    has_text: bool
    finding_columns: tuple[str, ...] = ()
    dataset: str | None = None
    phantom: bool = False
    created: AwareDatetime

    @property
    def source(self) -> FeatureSource:
        """What the vectors are of."""
        return FeatureSource(
            kind=self.kind,
            model_id=self.model_id,
            model_revision=self.model_revision,
            processor_hash=self.processor_hash,
            is_normalized=self.is_normalized,
            model_hash=self.model_hash,
        )

    def require_same_space(self, queries: FeatureSource, dimension: int) -> None:
        """Refuse queries whose vectors cannot be compared with these.

        Raises:
            ValueError: If model, revision, weights, processor, normalization (and with it the metric) or
                dimension differ; all that do are named.
        """
        differing = source_differences(self.source, queries)
        if "is_normalized" in differing:
            differing["metric"] = (self.metric, metric_of(queries))
        if dimension != self.dimension:
            differing["dimension"] = (self.dimension, dimension)
        if differing:
            told = "; ".join(f"{name} {pair[0]!r}, not {pair[1]!r}" for name, pair in differing.items())
            raise ValueError(
                f"queries must be of the model that made the index, got differences: {told}. Query with that "
                "model, or build the index again."
            )


def metric_of(source: FeatureSource) -> Similarity:
    """Unit vectors are compared by their cosine, others by their dot product."""
    return "cosine" if source.is_normalized else "dot"


def write_about(about: IndexAbout, folder: Path) -> None:
    """Write ``index.json``."""
    (folder / ABOUT_FILE).write_text(about.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_about(folder: Path) -> IndexAbout:
    """Read ``index.json`` and check it.

    Raises:
        FileNotFoundError: If there is none: the folder is no index, or was never finished.
        ValueError: If it is damaged or of another schema.
    """
    path = folder / ABOUT_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"an index must have {ABOUT_FILE}, got none in {folder}. Build it with `radtower index build`."
        )
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{ABOUT_FILE} must be JSON, got: {error}. Build the index again.") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"schema_version must be {SCHEMA_VERSION}, got {version!r}. Build the index again with this "
            "version."
        )
    try:
        about = IndexAbout.model_validate(content)
    except ValidationError as error:
        fields = sorted({".".join(map(str, problem["loc"])) for problem in error.errors()})
        raise ValueError(
            f"{ABOUT_FILE} must follow its schema, got invalid or unknown {fields}. Build the index again."
        ) from error
    if about.metric != metric_of(about.source):
        raise ValueError(
            f"metric must be {metric_of(about.source)!r} where is_normalized is {about.is_normalized}, got "
            f"{about.metric!r}. Build the index again."
        )
    return about
