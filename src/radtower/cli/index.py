"""``radtower index``: build an index of scans or reports, and look up what is similar."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from radtower.cli.extras import register_models
from radtower.cli.output import NOT_FOR_DIAGNOSIS, print_failures, print_json, print_table, progress_bar
from radtower.cli.push_options import (
    Branch,
    Public,
    PullRequest,
    Tag,
    print_published,
    published_fields,
    push_target,
)

if TYPE_CHECKING:
    from radtower.evaluation.features import Features
    from radtower.evaluation.search.index_about import IndexAbout
    from radtower.evaluation.search.index_contents import IndexContents, TableOptions
    from radtower.evaluation.search.search_index import SearchHits, SearchIndex

index_app = typer.Typer(no_args_is_help=True, help="Search for similar scans and reports.")
PHANTOM_NOTE = "These are phantoms: they show that the software works."


class Of(StrEnum):
    """What of a table is indexed."""

    IMAGES = "images"
    REPORTS = "reports"


class BackendName(StrEnum):
    """How neighbors are found; all but the first need the extra ``faiss``."""

    EXACT = "exact"
    FLAT = "flat"
    HNSW = "hnsw"
    IVF_PQ = "ivf-pq"


class NumberType(StrEnum):
    """How vectors are stored."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


class LeftOut(StrEnum):
    """What is no answer."""

    ITEM = "item"
    STUDY = "study"


@index_app.command()
def build(  # noqa: PLR0913 -- one argument per flag
    source: Annotated[
        str, typer.Argument(help="Folder or Hub id of a model, or folder of `radtower embed`.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the index.")],
    table: Annotated[
        Path | None,
        typer.Argument(
            metavar="MANIFEST",
            help="Manifest; for reports a report table, too. Needed with a model; with embedded features it "
            "brings split, study and findings along.",
        ),
    ] = None,
    of: Annotated[Of | None, typer.Option(help="What to embed, with a model.")] = None,
    backend: Annotated[
        BackendName, typer.Option(help="exact compares all items; the others are of faiss.")
    ] = BackendName.EXACT,
    parameter: Annotated[
        list[str] | None, typer.Option(help="Of the backend, NAME=NUMBER, such as ef_search=256; repeatable.")
    ] = None,
    dtype: Annotated[NumberType, typer.Option(help="Of the stored vectors.")] = NumberType.FLOAT32,
    split: Annotated[str | None, typer.Option(help="Split to index. Without: all.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="labels.parquet with the findings. Without: the label columns of the table."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of `radtower preprocess`, for a 3D tower.")
    ] = None,
    with_text: Annotated[
        bool, typer.Option("--with-text", help="Store the reports in the index, and not only their hashes.")
    ] = False,
    dataset: Annotated[str | None, typer.Option(help="Name of the data, for the card.")] = None,
    phantom: Annotated[bool, typer.Option("--phantom", help="Say that the items are synthetic.")] = False,
    seed: Annotated[
        int, typer.Option(help="Of training and of the queries that recall is measured with.")
    ] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Build an index of scans or reports; what cannot be embedded is listed at the end."""
    register_models()
    from radtower.evaluation.search.build_index import IndexOptions, check_buildable, write_features_index
    from radtower.evaluation.search.index_contents import TableOptions

    options = IndexOptions(
        backend=backend.value,
        dtype=dtype.value,
        parameters=_numbers(parameter or []),
        seed=seed,
        dataset=dataset,
        is_phantom=phantom,
    )
    check_buildable(output, options)
    table_options = TableOptions(split=split, labels=labels, with_text=with_text)
    contents = _contents(source, table, of, table_options, cache)
    with progress_bar("Building the index", len(contents.items)) as on_progress:
        about = write_features_index(contents.features, contents.items, output, options, on_progress)
        on_progress(about.count)
    if json:
        print_json({**about.model_dump(mode="json"), "failures": contents.failures})
    else:
        _print_about(about, output)
    print_failures(contents.failures)
    if contents.failures:
        raise typer.Exit(1)


@index_app.command()
def query(  # noqa: PLR0913 -- one argument per flag
    index: Annotated[str, typer.Argument(help="Folder of an index, or data set of the Hub.")],
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the model that made the index.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Find what a text describes.")] = None,
    text_file: Annotated[Path | None, typer.Option(help="The same, read from a file.")] = None,
    scan: Annotated[
        list[Path] | None, typer.Option(help="Find what a scan or image is like; repeatable.")
    ] = None,
    reports: Annotated[Path | None, typer.Option(help="Find what each report of a table is like.")] = None,
    features: Annotated[
        Path | None, typer.Option(help="Folder of `radtower embed`; needs no --model.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Answers per query.")] = 10,
    filter_: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="COLUMN=VALUE, or finding=NAME; repeatable. Values of one column are alternatives, all else "
            "must hold.",
        ),
    ] = None,
    leave_out: Annotated[
        LeftOut | None, typer.Option(help="Not the item of the query's id, or nothing of its study.")
    ] = None,
    id_column: Annotated[str, typer.Option(help="Ids of --reports.")] = "study_id",
    text_column: Annotated[str, typer.Option(help="Texts of --reports.")] = "report",
    limit: Annotated[int | None, typer.Option(help="Rows of --reports, from the top.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of an index on the Hub.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the items that are most similar to a text, a scan, reports or features."""
    given = {
        "--text": text,
        "--text-file": text_file,
        "--scan": scan,
        "--reports": reports,
        "--features": features,
    }
    chosen = [flag for flag, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise ValueError(f"one of {', '.join(given)} must be given, got {', '.join(chosen) or 'none'}.")
    if (model is None) is (features is None):
        raise ValueError(
            f"--model must be given unless --features is, got {'neither' if model is None else 'both'}. Name "
            "the model that made the index."
        )
    register_models()
    from radtower.data.report_table import read_reports
    from radtower.evaluation.embedding import embed_reports, embed_scans
    from radtower.evaluation.features import read_features
    from radtower.evaluation.search.search_index import SearchIndex

    opened = SearchIndex.from_pretrained(index, revision)
    opened.num_matching(filter_ or ())
    failures: dict[str, str] = {}
    if features is not None:
        queries = read_features(features)
    elif scan is not None:
        queries, failures = embed_scans(str(model), scan)
    elif reports is not None:
        pairs = read_reports(reports, id_column, text_column, limit)
        queries, failures = embed_reports(str(model), pairs, show_progress=True)
    else:
        written = text if text_file is None else text_file.read_text(encoding="utf-8")
        queries, _ = embed_reports(str(model), [("text", str(written))])
    hits = opened.search(queries, k, filter_ or (), None if leave_out is None else leave_out.value)
    _print_hits(opened, hits, as_json=json)
    if hits.k < k:
        typer.echo(f"{hits.num_matching} of {len(opened)} items match: these are all, not {k}.", err=True)
    print_failures(failures)
    if failures:
        raise typer.Exit(1)


@index_app.command()
def push(  # noqa: PLR0913 -- one argument per flag
    index: Annotated[Path, typer.Argument(help="Folder of an index.")],
    repo_id: Annotated[str, typer.Argument(help="owner/name of the data set on the Hub.")],
    public: Public = False,
    branch: Branch = None,
    tag: Tag = None,
    pr: PullRequest = False,
    include_text: Annotated[
        bool, typer.Option("--include-text", help="The index holds text of reports, and may go up with it.")
    ] = False,
    accept_phi: Annotated[
        int, typer.Option(help="Matches of the privacy check in the texts that you judged harmless.")
    ] = 0,
    keep_ids: Annotated[
        bool, typer.Option("--keep-ids", help="Ids like record numbers or dates are public names.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Publish an index as a data set with a card: private, and without report text, unless asked."""
    from radtower.evaluation.search.search_index import SearchIndex

    published = SearchIndex(index).push_to_hub(
        repo_id,
        private=not public,
        include_text=include_text,
        keep_ids=keep_ids,
        num_accepted_matches=accept_phi,
        target=push_target(branch, tag, pr),
    )
    if json:
        print_json({"repo_id": repo_id, **published_fields(published)})
    else:
        print_published(published)


def _contents(
    source: str, table: Path | None, of: Of | None, options: "TableOptions", cache: Path | None
) -> "IndexContents":
    from radtower.data.manifest import read_manifest
    from radtower.evaluation.features import VECTORS_FILE, read_features
    from radtower.evaluation.search.index_contents import (
        embedded_before,
        reports_of_table,
        scans_of_manifest,
    )

    if (Path(source) / VECTORS_FILE).is_file():
        return embedded_before(_of_kind(read_features(source), of), table, options)
    if table is None or of is None:
        raise ValueError(
            "a model must come with a manifest and --of images or reports, got none. Name them, or a folder "
            "of `radtower embed`."
        )
    if of is Of.REPORTS:
        return reports_of_table(source, table, options, show_progress=True)
    manifest = read_manifest(table, needs_reports=False)
    chosen = manifest if options.split is None else manifest.split(options.split)  # type: ignore[arg-type]
    with progress_bar("Embedding scans", len(chosen)) as on_progress:
        return scans_of_manifest(source, table, options, cache, on_progress)


def _of_kind(features: "Features", of: Of | None) -> "Features":
    kind = Of.IMAGES if features.source.kind == "image" else Of.REPORTS
    if of not in (None, kind):
        raise ValueError(f"--of must be {kind.value} for these features, got {of}. Leave it out.")
    return features


def _numbers(parameters: list[str]) -> dict[str, int]:
    numbers = {}
    for text in parameters:
        name, _, value = text.partition("=")
        if not value.isdecimal():
            raise ValueError(f"--parameter must be NAME=NUMBER, got {text!r}. Write ef_search=256, say.")
        numbers[name] = int(value)
    return numbers


def _print_about(about: "IndexAbout", output: Path) -> None:
    what = "scans" if about.kind == "image" else "reports"
    print(
        f"{about.count} {what}, {about.dimension} numbers each, {about.metric}, {about.backend}, in {output}"
    )
    print(f"findings to filter by: {', '.join(about.finding_columns) or 'none'}")
    if about.parameters:
        print("parameters: " + ", ".join(f"{name} {value}" for name, value in about.parameters.items()))
    recall = about.recall
    if recall is not None:
        print(
            f"recall@{recall.k} against exact search: {recall.value:.3f} ({recall.ci_low:.3f}-"
            f"{recall.ci_high:.3f}), n={recall.num_queries} queries: {recall.queries}"
        )
    elif about.backend in ("hnsw", "ivf-pq"):
        print("recall was not measured: there are too few items")
    if about.has_text:
        print("The index holds the text of reports: treat it as you treat them.")


def _print_hits(index: "SearchIndex", hits: "SearchHits", *, as_json: bool) -> None:
    answers = [(query, index.hits_of(hits, row)) for row, query in enumerate(hits.query_ids)]
    about = index.about
    if as_json:
        content: dict[str, Any] = {
            "index": {"kind": about.kind, "model_id": about.model_id, "metric": about.metric},
            "backend": about.backend,
            "num_items": len(index),
            "num_matching": hits.num_matching,
            "phantom": about.phantom,
            "queries": [{"id": query, "hits": found} for query, found in answers],
            "note": NOT_FOR_DIAGNOSIS,
        }
        print_json(content)
        return
    columns = ("rank", "id", "score", "findings", *(("report",) if about.has_text else ()))
    for query, found in answers:
        rows = [
            (
                str(hit["rank"]),
                hit["item_id"],
                f"{hit['score']:.4f}",
                ", ".join(hit["findings"]) or "-",
                *((hit["report"] or "",) if about.has_text else ()),
            )
            for hit in found
        ]
        title = f"{query}: {len(found)} of {hits.num_matching} matching items, by {about.metric}"
        print_table(title, columns, rows, is_numeric=False)
    if about.phantom:
        print(PHANTOM_NOTE)
    print(NOT_FOR_DIAGNOSIS)


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.add_typer(index_app, name="index")
