"""``results.json`` -> a folder: ``report.html``, ``tables.md``, ``tables.tex`` and the pictures as PNG."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from radtower.evaluation.reports.html_parts import PageFigure
from radtower.evaluation.reports.page import Section, render_page
from radtower.evaluation.reports.page_figures import Resampling, Where, section_figures
from radtower.evaluation.reports.result_tables import result_tables
from radtower.evaluation.reports.runs import Run, read_runs
from radtower.evaluation.reports.text_tables import latex_tables, markdown_tables
from radtower.evaluation.reports.wording import where
from radtower.evaluation.results import Provenance

PAGE, MARKDOWN, LATEX = "report.html", "tables.md", "tables.tex"


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
        folder: Made if needed; files of earlier reports of the same name are replaced.
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
    figures = [*(f for section in sections for f in section.figures), *(figure for _, figure in pictures)]
    contents.update({f"{figure.name}.png": figure.png for figure in figures})
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
    tables = result_tables([run.results for run in runs])
    places: dict[Where, Provenance] = {}
    for table in tables:
        places.setdefault(where(table.provenance), table.provenance)
    titles = _titles(list(places.values()))
    return [
        Section(
            title,
            tuple(section_figures(runs, place, number, resampling)),
            tuple(table for table in tables if where(table.provenance) == place),
        )
        for number, (place, title) in enumerate(zip(places, titles, strict=True), start=1)
    ]


def _titles(places: Sequence[Provenance]) -> list[str]:
    """Data set and protocol; class set, and then label source, where these do not tell sections apart."""
    titles = [": ".join(filter(None, [place.dataset, place.protocol])) for place in places]
    for more in ("class_set", "label_source"):
        titles = [
            title if titles.count(title) == 1 else f"{title}; {getattr(place, more)}"
            for title, place in zip(titles, places, strict=True)
        ]
    return titles


def _page_figure(run: Run, place: int, number: int) -> PageFigure:
    picture = run.pictures[place]
    told = picture.caption
    name = f"picture-{number}-{told.file.removesuffix('.png')}"
    return PageFigure(name, told.title, told.caption, told.alt, None, picture.png)


def _write(contents: dict[str, bytes], folder: Path) -> list[Path]:
    """Write all files, each whole or not at all."""
    written = []
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for file, content in contents.items():
            temporary = Path(name) / file
            temporary.write_bytes(content)
            temporary.replace(folder / file)
            written.append(folder / file)
    return written
