"""``results.json`` -> a folder: ``report.html``, ``tables.md``, ``tables.tex``, the pictures as PNG."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from radtower.evaluation.reports.html_parts import PageFigure
from radtower.evaluation.reports.page import (
    PICTURE_NAME,
    WRITTEN_META,
    Section,
    picture_digest,
    render_page,
)
from radtower.evaluation.reports.page_figures import Resampling, Where, section_figures
from radtower.evaluation.reports.result_tables import result_tables
from radtower.evaluation.reports.runs import Run, read_runs
from radtower.evaluation.reports.text_tables import latex_tables, markdown_tables
from radtower.evaluation.reports.variants import section_of, variant_of
from radtower.evaluation.reports.wording import where
from radtower.evaluation.results import Provenance, Results

PAGE, MARKDOWN, LATEX = "report.html", "tables.md", "tables.tex"
PICTURES = "pictures.json"  # which pictures are of numbers alone, for model cards


@dataclass(frozen=True)
class ReportOptions:
    """What a report says beside its numbers.

    Args:
        title: Of the page; None names the models.
        commands: Command lines that made the results.
        num_resamples: Resamples of the bands of curves.
    """

    title: str | None = None
    commands: tuple[str, ...] = ()
    num_resamples: int = 1000


def write_report(
    paths: Sequence[str | Path], folder: str | Path, options: ReportOptions | None = None
) -> list[Path]:
    """Write a report of one or several results.

    The same results give the same files, byte for byte: nothing in them depends on the clock.

    Args:
        paths: Of ``results.json`` files; rows and pictures beside them are taken along.
        folder: Made if needed; files of an earlier report are replaced, and
            its pictures that are not there any more removed.
        options: Title, commands, resamples.

    Returns:
        What was written, the page first.

    Raises:
        FileNotFoundError: If a file of results is missing.
        ValueError: If there are no results, or no number in them.
    """
    options = options or ReportOptions()
    if not paths:
        raise ValueError("paths must name a results.json, got none. Evaluate first.")
    check_report_folder(folder)
    runs = read_runs(paths)
    results = [run.results for run in runs]
    contents: dict[str, bytes] = {
        MARKDOWN: markdown_tables(results).encode(),
        LATEX: latex_tables(results).encode(),
    }
    sections = _sections(runs, Resampling(options.num_resamples))
    pictures = [
        (run.name, _page_figure(run, place, number))
        for number, run in enumerate(runs, start=1)
        for place in range(len(run.pictures))
    ]
    drawn = [figure for section in sections for figure in section.figures]
    figures = [*drawn, *(figure for _, figure in pictures)]
    contents.update({f"{figure.name}.png": figure.png for figure in figures})
    contents[PICTURES] = _told(results, drawn)
    title = options.title or f"Evaluation of {', '.join(run.name for run in runs)}"
    page = render_page(title, runs, sections, pictures, options.commands)
    return _write({PAGE: page.encode(), **contents}, Path(folder))


def check_report_folder(folder: str | Path) -> None:
    """Refuse a folder that cannot be written to; ask before the work.

    Raises:
        ValueError: If it is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"-o must be a folder, got the file {folder.name!r}. Name another.")
    folder.mkdir(parents=True, exist_ok=True)


def _sections(runs: Sequence[Run], resampling: Resampling) -> list[Section]:
    """One per data set, labels and protocol, with all class sets, baselines and ways of it."""
    tables = result_tables([run.results for run in runs])
    sections: dict[tuple[str, str, str | None], Provenance] = {}
    for table in tables:
        sections.setdefault(section_of(table.provenance), table.provenance)
    places: dict[Where, tuple[str, str, str | None]] = {}  # rows know what they are of, and no section
    for run in runs:
        for item in run.results.metrics:
            places.setdefault(where(item), section_of(variant_of(run.name, item)[1]))
    made = []
    for number, (section, title) in enumerate(
        zip(sections, _titles(list(sections.values())), strict=True), start=1
    ):
        figures: list[PageFigure] = []
        for part, place in enumerate((place for place, of in places.items() if of == section), start=1):
            label = f"{number}" if part == 1 else f"{number}-{part}"
            figures += section_figures(runs, place, label, resampling)
        of_section = tuple(table for table in tables if section_of(table.provenance) == section)
        made.append(Section(title, tuple(figures), of_section))
    return made


def _titles(places: Sequence[Provenance]) -> list[str]:
    """Data set and protocol; label source, where these do not tell sections apart."""
    titles = [": ".join(filter(None, [place.dataset, place.protocol])) for place in places]
    return [
        title if titles.count(title) == 1 else f"{title}; {place.label_source}"
        for title, place in zip(titles, places, strict=True)
    ]


def _page_figure(run: Run, place: int, number: int) -> PageFigure:
    picture = run.pictures[place]
    told = picture.caption
    name = f"picture-{number}-{told.file.removesuffix('.png')}"
    return PageFigure(name, told.title, told.caption, told.alt, None, picture.png)


def _told(results: Sequence[Results], drawn: Sequence[PageFigure]) -> bytes:
    """Whose numbers were drawn, and what the pictures show; pictures of scans are not among them."""
    content = {
        "runs": [{"model_id": one.model_id, "created": str(one.created)} for one in results],
        "figures": [
            {"file": f"{one.name}.png", "title": one.title, "caption": one.caption, "alt": one.alt}
            for one in drawn
        ],
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def _write(contents: dict[str, bytes], folder: Path) -> list[Path]:
    """Write all files, each whole or not at all; pictures of an earlier report are removed right before."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for file, content in contents.items():
            (Path(name) / file).write_bytes(content)
        for stale in _earlier_pictures(folder):
            stale.unlink()
        for file in contents:
            (Path(name) / file).replace(folder / file)
    return [folder / file for file in contents]


def _earlier_pictures(folder: Path) -> list[Path]:
    """Pictures that the report in this folder names and that are still as it wrote them."""
    page = folder / PAGE
    if not page.is_file():
        return []
    told = WRITTEN_META.search(page.read_text(encoding="utf-8", errors="replace"))
    found = []
    for word in told[1].split() if told else ():
        name, _, digest = word.partition(":")
        path = folder / name
        is_ours = PICTURE_NAME.fullmatch(name) and path.is_file() and not path.is_symlink()
        if is_ours and picture_digest(path.read_bytes()) == digest:
            found.append(path)
    return found
