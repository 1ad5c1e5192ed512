"""The folder of a label data set: parquet files, a card and a plot; it appears complete or not at all."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from radtower.data.release_check import RECORD_FILE, refuse_private_content
from radtower.data.splits import SPLITS
from radtower.hub_cards.labels.class_balance_plot import plot_class_balance
from radtower.hub_cards.labels.label_card import PLOT_FILE, class_counts, is_phantom, label_card
from radtower.hub_cards.labels.label_release import LabelRelease

# All that a folder holds, and so all that a push may replace or delete.
_DATA_FILES = tuple(f"data/{split}.parquet" for split in SPLITS)
FILES = ("README.md", PLOT_FILE, RECORD_FILE, *_DATA_FILES)


def write_label_dataset(
    release: LabelRelease, output: str | Path, measured: dict[str, Any] | None = None
) -> Path:
    """Write what ``datasets.load_dataset`` reads and the Hub shows.

    Args:
        release: What to publish.
        output: New folder; an earlier label data set there is replaced, anything else is left alone.
        measured: Content of ``results.json``, for the card. None says that nothing was measured.

    Returns:
        ``output``.

    Raises:
        ValueError: If the texts, ids or card may identify a patient and nobody accepted that.
        FileExistsError: If ``output`` holds anything that this does not write.
    """
    release.refuse_risks()
    output = Path(output)
    if output.exists() and not _is_label_dataset(output):
        raise FileExistsError(
            f"output must be new or an earlier label data set, got {output}, which is neither. Choose "
            "another folder."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    # Beside the output, where a rename is atomic.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        partial = Path(scratch) / output.name
        for name in ("data", "assets"):
            (partial / name).mkdir(parents=True)
        for split in release.splits:
            pq.write_table(release.table(split), partial / "data" / f"{split}.parquet")
        title = f"{release.options.repo_id.rpartition('/')[2]}: {sum(release.splits.values())} rows"
        phantom = " (synthetic reports)" if is_phantom(release, measured) else ""
        plot_class_balance(class_counts(release), title + phantom, partial / PLOT_FILE)
        (partial / "README.md").write_text(label_card(release, measured), encoding="utf-8")
        reason = release.options.allowed_reason
        # Without a reason texts and ids are judged above: by their number, and by a flag.
        if reason is None:
            refuse_private_content(partial, checked=_DATA_FILES)
        else:
            refuse_private_content(partial, allowed_reason=reason, analyzers=release.options.analyzers)
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
    return output


def _is_label_dataset(folder: Path) -> bool:
    files = {str(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if not path.is_dir()}
    return folder.is_dir() and "README.md" in files and files <= set(FILES)
