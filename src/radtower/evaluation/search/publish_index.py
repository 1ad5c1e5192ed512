"""An index -> a private data set of the Hub, with a card; without text of reports unless asked."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from huggingface_hub import DatasetCard, DatasetCardData

from radtower.data.privacy import refuse_identifiers, refuse_identifying_ids, search_ids, search_texts
from radtower.data.publish import Published, PushTarget, push_folder, require_token
from radtower.evaluation.search.build_index import DATA_FILES
from radtower.evaluation.search.index_about import ABOUT_FILE, IndexAbout
from radtower.evaluation.search.items import ITEM_ID, REPORT, STUDY_ID

TEMPLATE = Path(__file__).parent / "index_card.md"
CARD_FILE = "README.md"


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """What may go up; see :meth:`SearchIndex.push_to_hub`."""

    is_public: bool = False
    has_text: bool = False
    are_ids_public: bool = False
    num_accepted_matches: int = 0


def publish_index(
    folder: Path,
    about: IndexAbout,
    items: pd.DataFrame,
    repo_id: str,
    options: PushOptions,
    target: PushTarget = PushTarget(),  # noqa: B008 -- frozen
) -> Published:
    """Push the files of an index and its card in one commit; see :meth:`SearchIndex.push_to_hub`."""
    require_token()
    refuse_risks(about, items, options)
    with tempfile.TemporaryDirectory() as name:
        release = Path(name)
        for file in (ABOUT_FILE, *DATA_FILES):
            if (folder / file).exists():
                (release / file).symlink_to((folder / file).resolve())  # gigabytes are not copied
        (release / CARD_FILE).write_text(index_card(about, items, repo_id), encoding="utf-8")
        return push_folder(
            release,
            repo_id,
            repo_type="dataset",
            message=f"Index of {about.count} items by {about.model_id}",
            is_public=options.is_public,
            owned_files=DATA_FILES,
            target=target,
        )


def refuse_risks(about: IndexAbout, items: pd.DataFrame, options: PushOptions) -> None:
    """Refuse what may identify a patient, and text that nobody asked to share.

    Raises:
        ValueError: If texts or ids hold more than the options accept.
    """
    if about.has_text and not options.has_text:
        raise ValueError(
            "an index to push must hold no text of reports unless that is asked for, got one with text. "
            "Build it again without, or include the text."
        )
    if about.has_text and options.is_public:
        raise ValueError(
            "an index with text of reports must stay private, got a public push. Build it without text."
        )
    for column in (ITEM_ID, STUDY_ID):
        if column in items:
            refuse_identifying_ids(search_ids(items[column].dropna().unique()), options.are_ids_public)
    refuse_identifiers(search_texts(_texts(about, items)), options.num_accepted_matches)


def _texts(about: IndexAbout, items: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Reports, and what else the rows say, such as the device of a scan."""
    ids = {ITEM_ID, STUDY_ID, *about.finding_columns}
    for column in (name for name in items if name not in ids):
        for item, cell in zip(items[ITEM_ID], items[column], strict=True):
            if isinstance(cell, str):
                yield str(item), cell if column == REPORT else cell.replace("_", " ")


def index_card(about: IndexAbout, items: pd.DataFrame, repo_id: str) -> str:
    """Return the text of ``README.md``: every number is one of ``index.json``, and no id is in it."""
    others = [str(name) for name in items if name not in (ITEM_ID, REPORT, *about.finding_columns)]
    name = repo_id.rpartition("/")[2]
    card = DatasetCard.from_template(
        DatasetCardData(
            pretty_name=name,
            tags=["radiology", "radtower", "search-index", "research-only"],
            viewer=False,
        ),
        template_path=str(TEMPLATE),
        about=about,
        name=name,
        repo_id=repo_id,
        item="scan" if about.kind == "image" else "report",
        filters=", ".join(f"`{column}`" for column in (*others, *about.finding_columns)) or "none",
        radtower_version=version("radtower"),
    )
    return str(card)
