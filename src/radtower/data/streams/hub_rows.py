"""Rows of a data set of the Hub, or of a folder like one, as they come: undecoded images, and reports."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from datasets import DownloadConfig, Image, IterableDataset, Nifti, Value, load_dataset
from datasets.distributed import split_dataset_by_node
from datasets.utils.file_utils import xopen

DEFAULT_BUFFER = 256  # rows; what embeds large scans needs a smaller one
_REMOTE_SCHEMES = ("hf", "http", "https")
TEXT_TYPES = ("string", "large_string")
ID_TYPES = (*TEXT_TYPES, "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """Where the rows are and what their columns mean.

    Args:
        dataset: Id of the Hub, or a folder that ``datasets.load_dataset`` takes.
        config: Of a data set that has several. None takes its only or default one.
        split: Name of the split.
        revision: Commit, branch or tag of the Hub. None takes the newest.
        image_column: Of feature ``Nifti`` (3D) or ``Image`` (2D).
        report_column: Of text.
        study_column: Of text or whole numbers: rows of one study are reconstructions of each other. None
            where there is none.
        shuffle_buffer: Rows that are held to draw the next one from, with the bytes of their images where
            the table has these inside. 1 keeps the order within a file.
    """

    dataset: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    image_column: str
    report_column: str
    study_column: str | None = None
    shuffle_buffer: int = DEFAULT_BUFFER


class HubRow(NamedTuple):
    """One row, nothing of it decoded.

    ``image`` is what :func:`read_volume` and :func:`read_image` take, ``{"path", "bytes"}``; a path may be
    one that only :func:`with_bytes` can open. ``report`` is ``""`` for an empty cell, ``study_id`` None.
    """

    image: Mapping[str, Any]
    report: str
    study_id: str | None


class HubRows:
    """A data set that is read anew in every pass, in an order of its own, by several readers at once.

    Nothing is stored: memory holds the buffer of each reader, and the part of a file it is in.

    Args:
        source: The data set.
        seed: Of the order.
        num_readers: In how many parts it will be read.

    Raises:
        FileNotFoundError: If there is no such data set.
        ValueError: If the features are unknown, a column is missing or of another feature, or there is no
            such split.
    """

    def __init__(self, source: HubSource, seed: int = 0, num_readers: int = 1) -> None:
        self.source = source
        self.num_readers = num_readers
        rows: IterableDataset = load_dataset(
            source.dataset, source.config, split=source.split, revision=source.revision, streaming=True
        )
        self.kind: Literal["volume", "image"] = _checked_features(rows.features, source)
        columns = [source.image_column, source.report_column]
        if source.study_column is not None:
            columns.append(source.study_column)
        # Our readers decode: that of datasets needs nibabel, and takes the rescale of a header at its word.
        # First of all: what is on the Hub comes with a pool of threads that decode, and only this removes it.
        rows = rows.decode(False)
        if num_readers > 1 and rows.num_shards % num_readers:
            rows = rows.reshard()  # by parts of files, where the format has some
        rows = rows.select_columns(columns)
        # As plain rows: the shuffle buffer of tables overflows where it holds 2 GB of images.
        rows = rows.map(_as_it_is)
        self.num_shards = rows.num_shards
        self._rows = rows
        self.seed = seed
        self._is_local = Path(source.dataset).exists()

    def read(self, pass_number: int = 0, reader: int = 0) -> Iterator[HubRow]:
        """Give the rows of one reader's part, in the order of a pass.

        Parts have no row in common, and together they are all rows. They are whole files, or parts of them;
        with fewer of these than readers, every reader reads all and keeps one row in so many.

        Args:
            pass_number: From 0 on.
            reader: Which part, below ``num_readers``.

        Raises:
            ValueError: If a row of the Hub names a file of this machine.
        """
        # By iter() and not by a for loop, which would share the rows out among the workers of a loader again.
        for batch in self._part(pass_number, reader).iter(batch_size=1):
            yield self._row({name: cells[0] for name, cells in batch.items()})

    def _part(self, pass_number: int, reader: int) -> IterableDataset:
        rows, buffer = self._rows, self.source.shuffle_buffer
        if self.num_shards % self.num_readers and self.num_shards > self.num_readers:
            # Unequal parts; split_dataset_by_node would have every reader download everything.
            rows = rows.shard(self.num_readers, reader, contiguous=False).shuffle(
                self.seed, buffer_size=buffer
            )
        else:
            rows = rows.shuffle(self.seed, buffer_size=buffer)
            rows = split_dataset_by_node(rows, reader, self.num_readers)
        rows.set_epoch(pass_number)
        return rows

    def _row(self, cells: Mapping[str, Any]) -> HubRow:
        study = None if self.source.study_column is None else cells[self.source.study_column]
        image = cells[self.source.image_column] or {}
        if not self._is_local:
            _refuse_local_path(image, self.source.dataset)
        return HubRow(
            image,
            cells[self.source.report_column] or "",
            None if study is None else str(study),
        )


def with_bytes(image: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fetch an image that lies on the Hub, or inside an archive; others are given back as they are.

    Raises:
        OSError: If it cannot be fetched, as when a server does not answer; FileNotFoundError, if it is not
            there.
    """
    path = image.get("path")
    if image.get("bytes") is not None or path is None or ("://" not in path and Path(path).exists()):
        return image
    try:
        with xopen(path, "rb", download_config=DownloadConfig()) as file:
            return {"path": path, "bytes": file.read()}
    except FileNotFoundError as error:
        if "http" not in path:
            raise
        # What fsspec says of a server that is down, too: rows must not be left out for that.
        server = urlsplit(path.split("::")[-1]).netloc
        raise ConnectionError(
            f"an image must be where its row says, got no answer from {server}. Resume when the server is "
            "back, or correct the data set."
        ) from error


def _refuse_local_path(image: Mapping[str, Any], dataset: str) -> None:
    """A row of the Hub must not have this machine read a file of its own."""
    path = image.get("path")
    # Of a file inside an archive, the last part says where that is.
    is_local = path and urlsplit(path.split("::")[-1]).scheme not in _REMOTE_SCHEMES
    if is_local and image.get("bytes") is None:
        raise ValueError(
            f"the images of a data set of the Hub must come with it, got a row of {dataset} that names a "
            "file of this machine. Tell its owner to save the images inside the table."
        )


def _as_it_is(row: dict[str, Any]) -> dict[str, Any]:
    return row


def _checked_features(features: Any, source: HubSource) -> Literal["volume", "image"]:
    if features is None:
        raise ValueError(
            f"the features of a data set must be known before it is read, got none of {source.dataset}. "
            "Write it as parquet, or name them in its card."
        )
    named = (source.image_column, source.report_column, source.study_column)
    missing = [name for name in named if name is not None and name not in features]
    if missing:
        raise ValueError(
            f"the data set must have the columns of the recipe, got no {', '.join(missing)} among "
            f"{', '.join(features)}. Correct the names."
        )
    _require_values("report_column", features[source.report_column], TEXT_TYPES)
    if source.study_column is not None:
        _require_values("study_column", features[source.study_column], ID_TYPES)
    image = features[source.image_column]
    if isinstance(image, Nifti):
        return "volume"
    if isinstance(image, Image):
        return "image"
    raise ValueError(
        f"image_column must have the feature Nifti (3D) or Image (2D), got {type(image).__name__} for "
        f"{source.image_column}. Cast it with cast_column and save the data set again."
    )


def _require_values(name: str, feature: Any, types: tuple[str, ...]) -> None:
    found = feature.dtype if isinstance(feature, Value) else type(feature).__name__
    if found not in types:
        raise ValueError(
            f"{name} must be a column of {'text' if types == TEXT_TYPES else 'text or whole numbers'}, got "
            f"{found}. Name another column, or cast it."
        )
