"""``radtower export``, ``push-labels``, ``export-metric`` and ``push-metric``: what goes to the Hub."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from radtower.cli.card_pictures import ExampleScan, ExampleSource, Report, example_pictures
from radtower.cli.extras import register_models, require
from radtower.cli.output import print_failures, print_json
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
    from radtower.data.privacy import Analyzer
    from radtower.data.publish import Published
    from radtower.hub_cards.labels.label_release import LabelRelease


def export(
    model: Annotated[Path, typer.Argument(help="Folder of a trained model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder.")],
    results: Annotated[Path | None, typer.Option(help="results.json for the card.")] = None,
    license_id: Annotated[
        str | None, typer.Option("--license", help="Of the weights, e.g. apache-2.0.")
    ] = None,
    report: Report = None,
    example_scan: ExampleScan = None,
    example_source: ExampleSource = None,
) -> None:
    """Write weights, processor, flat remote code and a card."""
    register_models()  # else transformers does not know whose tokenizer it reads, and says so
    from radtower.hub_cards.export import export_model

    if results is None and (model / "results.json").exists():
        results = model / "results.json"
    pictures = example_pictures(model, example_scan, example_source)
    print(f"Exported {export_model(model, output, results, license_id, report, pictures)}")


def push_labels(  # noqa: PLR0913 -- one argument per flag
    labels: Annotated[Path, typer.Argument(help="labels.parquet of radtower label.")],
    repo_id: Annotated[str, typer.Argument(help="owner/name of the data set on the Hub.")],
    reports: Annotated[
        Path | None, typer.Option(help="Manifest or report table: one row per volume, its split, its text.")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="Ids of that table; without: volume_id, study_id or report_id.")
    ] = None,
    text_column: Annotated[
        str, typer.Option(help="Texts of that table, which lead to the labels.")
    ] = "report",
    results: Annotated[Path | None, typer.Option(help="results.json of radtower evaluate labels.")] = None,
    findings: Annotated[
        str | None, typer.Option(help="Findings set, or a YAML file; without: the one in the labels.")
    ] = None,
    uncertain: Annotated[
        float | None, typer.Option(help="Target of an uncertain finding; without: null.")
    ] = None,
    mask_not_mentioned: Annotated[
        bool, typer.Option("--mask-not-mentioned", help="Null and not 0 where a report is silent.")
    ] = False,
    license_id: Annotated[
        str | None, typer.Option("--license", help="Of the data set, e.g. cc-by-nc-sa-4.0.")
    ] = None,
    license_of_source: Annotated[str | None, typer.Option(help="Of the reports, in words.")] = None,
    language: Annotated[str, typer.Option(help="Of the reports, ISO 639-1.")] = "en",
    phantom: Annotated[bool, typer.Option("--phantom", help="The reports are synthetic.")] = False,
    include_text: Annotated[
        bool, typer.Option("--include-text", help="Publish reports and quotes, too; needs --license.")
    ] = False,
    accept_phi: Annotated[
        int, typer.Option(help="Matches of the privacy check in the texts that you judged harmless.")
    ] = 0,
    allow_phi_findings: Annotated[
        str | None, typer.Option(help="Why matches are harmless; published with their counts.")
    ] = None,
    presidio: Annotated[
        bool, typer.Option("--presidio", help="Search the texts for names by presidio (extra privacy), too.")
    ] = False,
    keep_ids: Annotated[
        bool, typer.Option("--keep-ids", help="Ids like record numbers or dates are public names.")
    ] = False,
    public: Public = False,
    branch: Branch = None,
    tag: Tag = None,
    pr: PullRequest = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Keep the data set in this new folder.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write and check, but push nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Publish a label table as a data set with a card: private, and without report text, unless asked."""
    require("plots")
    from radtower.data.publish import push_folder, require_token
    from radtower.data.targets import TargetPolicy
    from radtower.hub_cards.labels.agreement_table import read_agreement
    from radtower.hub_cards.labels.label_dataset import FILES, write_label_dataset
    from radtower.hub_cards.labels.label_release import ReleaseOptions, prepare_release

    target = push_target(branch, tag, pr)
    if not dry_run:
        require_token()
    options = ReleaseOptions(
        repo_id=repo_id,
        reports=reports,
        id_column=id_column,
        text_column=text_column,
        findings=findings,
        policy=TargetPolicy(uncertain=uncertain, not_mentioned=None if mask_not_mentioned else 0.0),
        has_text=include_text,
        num_accepted_matches=accept_phi,
        allowed_reason=allow_phi_findings,
        analyzers=_presidio() if presidio else (),
        are_ids_public=keep_ids,
        license_id=license_id,
        source_license=license_of_source,
        language=language,
        is_phantom=phantom,
    )
    release = prepare_release(labels, options)
    model_ids = sorted(set(release.labels.frame["model_id"]))
    measured = read_agreement(results, model_ids, release.labels.generation_hash)
    _list_matches(release)
    with ExitStack() as stack:
        if output is None:
            output = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "labels"
        write_label_dataset(release, output, measured)
        published = None
        if not dry_run:
            published = push_folder(
                output,
                repo_id,
                repo_type="dataset",
                message="Labels by radtower push-labels",
                is_public=public,
                owned_files=FILES,
                target=target,
            )
    _print_release(release, published, as_json=json)


def _presidio() -> "tuple[Analyzer, ...]":
    require("privacy")
    from radtower.data.presidio_search import PresidioAnalyzer

    # The rest of what it knows the patterns find, or is in every report, such as a time or a place.
    return (PresidioAnalyzer(entities=["PERSON"]),)


def _list_matches(release: "LabelRelease") -> None:
    """Say in which rows the privacy check found something, and of what kind; never what it saw there."""
    for report in (release.id_check, release.text_check):
        if report is not None:
            found = {name: ", ".join(kinds) for name, kinds in report.kinds_by_id.items()}
            print_failures(found, "found")


def _print_release(release: "LabelRelease", published: "Published | None", *, as_json: bool) -> None:
    volumes = release.volumes
    content: dict[str, Any] = {
        "repo_id": release.options.repo_id,
        "splits": release.splits,
        "joined_by": volumes.joined_by,
        "num_without_labels": volumes.num_without_labels,
        "num_unused_labels": volumes.num_unused_labels,
        "has_text": release.options.has_text,
        **published_fields(published),
    }
    if as_json:
        print_json(content)
        return
    splits = ", ".join(f"{rows} {split}" for split, rows in release.splits.items())
    print(f"Rows: {splits}; found by {volumes.joined_by}")
    if volumes.num_without_labels or volumes.num_unused_labels:
        print(
            f"Left out: {volumes.num_without_labels} rows without labels, "
            f"{volumes.num_unused_labels} labeled reports that no row has"
        )
    print(
        "Ids are published as they are; reports and quotes are "
        + ("too" if release.options.has_text else "not")
    )
    print_published(published)


def export_metric(
    name: Annotated[str, typer.Argument(help="multi_label_auroc, retrieval_map or retrieval_recall.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder.")],
) -> None:
    """Write a metric for evaluate.load as a folder that needs no RadTower: code, card, page of a Space."""
    from radtower.hub_cards.metrics import metric_export

    folder = metric_export.export_metric(name, output)
    print(f"Exported {folder}")
    print(f'In {folder.absolute().parent.name}: evaluate.load("{metric_export.loaded_by(name, folder)}")')


def push_metric(
    name: Annotated[str, typer.Argument(help="multi_label_auroc, retrieval_map or retrieval_recall.")],
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME of the Space; NAME is that of the metric.")],
    public: Public = False,
    branch: Branch = None,
    tag: Tag = None,
    pr: PullRequest = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Publish a metric as a Space, which evaluate.load takes by its id: private, unless asked."""
    from radtower.data.publish import push_folder, require_token
    from radtower.hub_cards.metrics.metric_export import export_metric

    target = push_target(branch, tag, pr)
    require_token()
    with tempfile.TemporaryDirectory() as scratch:
        folder = export_metric(name, Path(scratch) / name, repo_id)
        published = push_folder(
            folder,
            repo_id,
            repo_type="space",
            message="Metric by radtower push-metric",
            is_public=public,
            target=target,
        )
    if json:
        print_json({"repo_id": repo_id, **published_fields(published)})
        return
    print_published(published)
    print(f'evaluate.load("{repo_id}")' + (", with a token that may read it" if published.is_private else ""))


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(export)
    app.command()(push_labels)
    app.command()(export_metric)
    app.command()(push_metric)
