"""An index of scans or reports that knows which model made it: search, save, load, share.

Axes: N items, Q queries, E embedding.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from radtower.data.publish import Published, PushTarget
from radtower.evaluation.features import Features
from radtower.evaluation.retrieval.top_k import NO_ROW, TopK
from radtower.evaluation.search.build_index import (
    DATA_FILES,
    FAISS_FILE,
    VECTORS_FILE,
    IndexOptions,
    check_buildable,
    file_sha256,
    require_faiss,
    write_features_index,
)
from radtower.evaluation.search.filters import matching_items
from radtower.evaluation.search.index_about import ABOUT_FILE, IndexAbout, read_about
from radtower.evaluation.search.items import ITEM_ID, STUDY_ID, present_findings, read_items
from radtower.evaluation.search.nearest import CandidateSource, nearest
from radtower.evaluation.search.publish_index import PushOptions, publish_index
from radtower.evaluation.search.vector_file import check_vectors, read_vectors

LeaveOut = Literal["item", "study"]


@dataclass(frozen=True)
class SearchHits:
    """What was found, the most similar first.

    Args:
        rows: ``(Q, k)`` items; -1 at the end where fewer were left.
        scores: ``(Q, k)`` similarity by the metric of the index; minus infinity where ``rows`` is -1.
        query_ids: Q ids.
        num_matching: Items that pass the filters.
    """

    rows: np.ndarray
    scores: np.ndarray
    query_ids: list[str]
    num_matching: int

    @property
    def k(self) -> int:
        """Answers per query: what was asked for, or the items that pass."""
        return int(self.rows.shape[1])


class SearchIndex:
    """A folder: ``index.json``, ``vectors.safetensors``, ``items.parquet``, of faiss ``index.faiss``.

    Args:
        folder: Of :func:`write_index`. Vectors stay on the disk and are read as they are needed.
        revision: Commit on the Hub that the folder is of; None for a local one.

    Raises:
        FileNotFoundError: If the folder is no index.
        ImportError: If it needs faiss, which is not installed.
        ValueError: If a file is damaged or not the one that ``index.json`` describes.
    """

    def __init__(self, folder: str | Path, revision: str | None = None) -> None:
        self.folder = Path(folder)
        self.revision = revision
        self.about: IndexAbout = read_about(self.folder)
        _check_files(self.folder, self.about)
        self.vectors = _checked_vectors(self.folder, self.about)
        self.items: pd.DataFrame = read_items(
            self.folder, self.about.count, self.about.finding_columns, has_text=self.about.has_text
        )
        self._source = _candidate_source(self.folder, self.about)

    @classmethod
    def from_features(
        cls,
        features: Features,
        items: pd.DataFrame,
        folder: str | Path,
        options: IndexOptions | None = None,
    ) -> "SearchIndex":
        """Build an index in a folder and open it; see :func:`write_index`."""
        write_features_index(features, items, folder, options or IndexOptions())
        return cls(folder)

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path, revision: str | None = None) -> "SearchIndex":
        """Open a folder, or a data set of the Hub, of which only the files of an index are fetched.

        Args:
            path_or_repo: Folder, or ``owner/name``.
            revision: Commit, branch or tag on the Hub.

        Raises:
            FileNotFoundError: If it is neither.
            ValueError: If a folder comes with a revision, or the index is refused; see the class.
        """
        if Path(path_or_repo).is_dir():
            if revision is not None:
                raise ValueError(f"revision must be None for a folder, got {revision!r}. Leave it out.")
            return cls(path_or_repo)
        try:
            folder = snapshot_download(
                str(path_or_repo),
                repo_type="dataset",
                revision=revision,
                allow_patterns=[ABOUT_FILE, *DATA_FILES],
                library_name="radtower",
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
            raise FileNotFoundError(
                f"an index must be a folder or a data set of the Hub, got {str(path_or_repo)!r} and "
                f"{type(error).__name__}. Check the name, the revision, the token and the network."
            ) from error
        return cls(folder, Path(folder).name)

    def __len__(self) -> int:
        return self.about.count

    def search(
        self,
        queries: Features,
        k: int = 10,
        filters: Sequence[str] = (),
        leave_out: LeaveOut | None = None,
    ) -> SearchHits:
        """Find the k items most similar to each query.

        Filters are exact: what does not pass is never compared, and no item that passes is missed for them.

        Args:
            queries: Vectors of the model that made the index.
            k: At least 1. Where fewer items pass, all of them come back.
            filters: ``COLUMN=VALUE``; see :func:`matching_items`.
            leave_out: ``item``: not the item of the query's id; ``study``: nothing of its study.

        Raises:
            KeyError: If a filter names no column.
            ValueError: If the queries are of another model or no valid vectors, k is below 1, or nothing
                passes.
        """
        self.about.require_same_space(queries.source, queries.vectors.shape[1])
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}. Ask for 10.")
        passes = matching_items(self.items, self.about.finding_columns, filters) if filters else None
        num_matching = len(self) if passes is None else int(passes.sum())
        keys = None if leave_out is None else _keys(self.items, queries.ids, leave_out)
        surplus = 0 if keys is None else _largest_group(keys)
        vectors = queries.vectors.detach().to("cpu", torch.float32).contiguous()
        check_vectors(vectors.numpy(), self.about.dimension, self.about.metric)
        found = nearest(self.vectors, vectors, min(k + surplus, num_matching), passes, self._source)
        if keys is not None:
            found = _without(found, keys)
        return SearchHits(found.rows[:, :k], found.similarities[:, :k], list(queries.ids), num_matching)

    def num_matching(self, filters: Sequence[str] = ()) -> int:
        """Return how many items pass the filters; ask before queries are embedded.

        Raises:
            KeyError: If a filter names no column.
            ValueError: If nothing passes.
        """
        return int(matching_items(self.items, self.about.finding_columns, filters).sum())

    def hits_of(self, hits: SearchHits, query: int) -> list[dict[str, Any]]:
        """Return the answers to one query: rank, item_id, score, findings, and the columns of the item."""
        told = []
        plain = [str(name) for name in self.items if name not in self.about.finding_columns]
        for rank, (row, score) in enumerate(zip(hits.rows[query], hits.scores[query], strict=True), start=1):
            if row == NO_ROW:
                break
            cells: dict[str, Any] = {name: _or_none(self.items[name].iloc[row]) for name in plain}
            findings = present_findings(self.items, self.about.finding_columns, int(row))
            told.append({"rank": rank, **cells, "score": float(score), "findings": findings})
        return told

    def save_pretrained(self, folder: str | Path) -> Path:
        """Copy the files of the index into a new folder, ``index.json`` last.

        Raises:
            ValueError: If the folder holds something else than an index.
        """
        check_buildable(folder, IndexOptions())
        target = Path(folder)
        if target.resolve() == self.folder.resolve():
            return target
        target.mkdir(exist_ok=True)
        (target / ABOUT_FILE).unlink(missing_ok=True)
        for name in (*DATA_FILES, ABOUT_FILE):
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, target / name)
            else:
                (target / name).unlink(missing_ok=True)
        return target

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        include_text: bool = False,
        keep_ids: bool = False,
        num_accepted_matches: int = 0,
        target: PushTarget = PushTarget(),  # noqa: B008 -- frozen
    ) -> Published:
        """Push the index with a card to a data set of the Hub, in one commit; its name loads it from there.

        The ids of items and studies go along: without them nothing can be found. Patterns look for dates and
        record numbers in them, and in texts.

        Args:
            repo_id: ``owner/name``.
            private: Whether a new repository is private. One that is public already must be asked for.
            include_text: Needed for an index with text of reports, which stays private.
            keep_ids: Ids that look like those of patients are public names.
            num_accepted_matches: Matches in the texts that you judged harmless; exactly the number found.
            target: Branch, tag or pull request; without: main.

        Raises:
            PermissionError: If there is no token, or it may not write there.
            ValueError: If text would go along unasked or in public, ids or texts look like those of patients,
                or the repository is public and ``private`` was not false.
            ConnectionError: If the Hub cannot be reached.
        """
        return publish_index(
            self.folder,
            self.about,
            self.items,
            repo_id,
            PushOptions(
                is_public=not private,
                has_text=include_text,
                are_ids_public=keep_ids,
                num_accepted_matches=num_accepted_matches,
            ),
            target,
        )


def _or_none(cell: Any) -> Any:
    return None if pd.isna(cell) else cell


def _check_files(folder: Path, about: IndexAbout) -> None:
    expected = [name for name in DATA_FILES if name != FAISS_FILE or about.backend != "exact"]
    missing = [name for name in expected if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"the index must have its files, got no {missing} in {folder}. Build it again.")


def _checked_vectors(folder: Path, about: IndexAbout) -> torch.Tensor:
    vectors = read_vectors(folder / VECTORS_FILE)
    found = (*vectors.shape, str(vectors.dtype).removeprefix("torch."))
    wanted = (about.count, about.dimension, about.dtype)
    if found != wanted:
        raise ValueError(
            f"{VECTORS_FILE} must be {wanted} as {ABOUT_FILE} says, got {found}. Build the index again."
        )
    return vectors


def _candidate_source(folder: Path, about: IndexAbout) -> CandidateSource | None:
    if about.backend == "exact":
        return None
    require_faiss()
    from radtower.evaluation.search.faiss_backend import read_faiss  # noqa: PLC0415 -- an extra

    found = file_sha256(folder / FAISS_FILE)
    if found != about.faiss_sha256:
        raise ValueError(
            f"{FAISS_FILE} must be the file that {ABOUT_FILE} describes, sha256 {about.faiss_sha256}, got "
            f"{found}. Build the index again."
        )
    return read_faiss(about.backend, folder / FAISS_FILE, about.parameters, (about.count, about.dimension))


def _keys(
    items: pd.DataFrame, query_ids: Sequence[str], leave_out: LeaveOut
) -> tuple[np.ndarray, np.ndarray]:
    """``(Q,)`` and ``(N,)`` numbers: an item of the number of the query is left out."""
    ids = items[ITEM_ID]
    names = ids if leave_out == "item" or STUDY_ID not in items else items[STUDY_ID].fillna(ids)
    of_item = dict(zip(ids, names, strict=True))
    codes, known = pd.factorize(names)
    number = {name: code for code, name in enumerate(known)}
    wanted = [number.get(of_item.get(query, query), NO_ROW) for query in query_ids]
    return np.array(wanted, dtype=np.int64), codes


def _largest_group(keys: tuple[np.ndarray, np.ndarray]) -> int:
    """How many items at most are left out of the answers to one query."""
    counts = np.bincount(keys[1])
    return max((int(counts[code]) for code in keys[0] if code != NO_ROW), default=0)


def _without(found: TopK, keys: tuple[np.ndarray, np.ndarray]) -> TopK:
    """Move what is left out behind the end."""
    of_row = np.where(found.rows == NO_ROW, NO_ROW - 1, keys[1][found.rows])
    is_out = of_row == keys[0][:, None]
    order = np.argsort(is_out, axis=1, kind="stable")
    rows = np.take_along_axis(np.where(is_out, NO_ROW, found.rows), order, axis=1)
    scores = np.where(is_out, -np.inf, found.similarities).astype(np.float32)
    return TopK(rows, np.take_along_axis(scores, order, axis=1))
