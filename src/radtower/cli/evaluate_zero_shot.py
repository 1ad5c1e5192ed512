"""``radtower evaluate zero-shot``: findings of scans by prompts, by a published protocol or one's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radtower.cli.evaluation_options import (
    AsJson,
    BatchSize,
    Cache,
    DatasetName,
    IsPhantom,
    LabelId,
    Labels,
    LabelSource,
    Resamples,
    check_names,
)
from radtower.cli.extras import register_models
from radtower.cli.output import (
    NOT_FOR_DIAGNOSIS,
    check_results_path,
    print_failures,
    print_json,
    print_table,
    progress_bar,
    value_with_interval,
)

if TYPE_CHECKING:
    from radtower.evaluation.results import MetricResult
    from radtower.evaluation.zero_shot.labeled_volumes import LabeledSplit, LabeledVolumes
    from radtower.evaluation.zero_shot.protocol import Protocol
    from radtower.evaluation.zero_shot.zero_shot_evaluation import ZeroShotEvaluation
    from radtower.modeling.modeling_medclip import MedCLIPModel

DECISIONS = ("f1", "weighted_f1", "accuracy", "precision", "recall")


def zero_shot(  # noqa: PLR0913 -- one argument per flag
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a dual tower.")],
    manifest: Annotated[Path, typer.Argument(help="Table of volumes.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="results.json; the scores are written beside it.")
    ],
    protocol: Annotated[
        str,
        typer.Option(help="ct_rate_18, ct_rate_16, rad_chestct_16, rad_chestct_15, or a YAML file."),
    ],
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            help="In place of the protocol's: seed, not, there_is, is_present, compatible_with, or ensemble; "
            "several are averaged."
        ),
    ] = None,
    phrases: Annotated[
        str | None,
        typer.Option(help="What goes into the prompts: the name of a finding, or its first prompt."),
    ] = None,
    score: Annotated[str | None, typer.Option(help="softmax, mean_softmax, or margin.")] = None,
    unit: Annotated[
        str | None, typer.Option(help="volume; or study, with the mean score of its reconstructions.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="train, validation, test, or all.")] = None,
    labels: Labels = None,
    label_id: LabelId = None,
    label_source: LabelSource = None,
    read_out: Annotated[
        list[str] | None,
        typer.Option(
            help="Beside the prompts: linear-probe or knn, fitted on the train split, or finding-head; can "
            "be repeated."
        ),
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            help="Of decisions: validation chooses it on that split; test_oracle on the very labels under "
            "test, as some published numbers do; a number; or none. Can be repeated. Without: validation, "
            "where there is one."
        ),
    ] = None,
    threshold_rule: Annotated[
        str | None,
        typer.Option(
            help="max_f1, youden, nearest_corner, or legacy_ct_clip. Without: nearest_corner, and "
            "legacy_ct_clip for test_oracle."
        ),
    ] = None,
    specificity: Annotated[float, typer.Option(help="At which the sensitivity is measured.")] = 0.9,
    cache: Cache = None,
    dataset: DatasetName = None,
    batch_size: BatchSize = 8,
    phantom: IsPhantom = False,
    resamples: Resamples = 2000,
    json: AsJson = False,
) -> None:
    """AUROC, average precision and decisions per finding and over the findings, with intervals."""
    register_models()
    from radtower.data.manifest import read_manifest
    from radtower.evaluation.results import write_results
    from radtower.evaluation.rows import write_rows
    from radtower.evaluation.zero_shot.finding_measures import MeasureOptions
    from radtower.evaluation.zero_shot.labeled_volumes import label_splits
    from radtower.evaluation.zero_shot.protocol import load_protocol
    from radtower.evaluation.zero_shot.scan_read_outs import (
        check_fits,
        check_read_outs,
        further_read_outs,
        needed_splits,
    )
    from radtower.evaluation.zero_shot.threshold_choice import parse_choices, why_no_validation
    from radtower.evaluation.zero_shot.zero_shot_evaluation import EvaluationData, evaluate_zero_shot

    check_results_path(output)
    check_names(dataset, label_source)
    chosen = load_protocol(protocol).overridden(
        prompts=prompts, phrases=phrases, score=score, unit=unit, split=split
    )
    options = MeasureOptions(specificity=specificity, num_resamples=resamples)
    everything = read_manifest(manifest, needs_reports=False)
    there = set(everything.frame["split"])
    choices = parse_choices(threshold or (), chosen, there, threshold_rule)
    check_read_outs(read_out or (), chosen.split, there)
    splits = label_splits(
        everything, needed_splits(chosen, choices, read_out or ()), chosen, labels, label_id
    )
    truth = splits[chosen.split].truth
    check_fits(read_out or (), splits, truth.labeled_keys)
    tower = _loaded(model, chosen, read_out or ())
    embedded = _embedded(tower, splits, truth.labeled_keys, cache, batch_size)
    data = EvaluationData(
        test=embedded[chosen.split],
        validation=embedded.get("validation"),
        dataset=dataset or f"{manifest.name}, {_split_words(chosen)}",
        label_source=label_source or (truth.source if labels else f"label columns of {manifest.name}"),
        not_measured=[
            *(f"{key}: {reason}" for key, reason in truth.left_out.items()),
            *(
                f"{len(volumes.failures)} of {len(splits[name])} volumes of {name}: they could not be used"
                for name, volumes in embedded.items()
                if volumes.failures
            ),
        ],
        is_phantom=phantom,
    )
    further = further_read_outs(read_out or (), tower, chosen, embedded)
    done = evaluate_zero_shot(tower, chosen, data, choices, options, further)
    write_results(done.results, output)
    rows = write_rows(done.rows, done.results, output)
    if json:
        print_json(done.results.model_dump(mode="json"))
    else:
        _print(done)
        print(f"Written: {output}, {rows.name}")
    if not threshold and not choices:
        reason = why_no_validation(chosen.split, there)
        typer.echo(f"Decisions are not measured: {reason}. Give --threshold.", err=True)
    _end(embedded, sum(map(len, splits.values())))


def _end(embedded: "dict[str, LabeledVolumes]", num_volumes: int) -> None:
    failures = {name: why for volumes in embedded.values() for name, why in volumes.failures.items()}
    print_failures(failures)
    if failures:
        typer.echo(f"{len(failures)} of {num_volumes} volumes are left out.", err=True)
        raise typer.Exit(1)


def _loaded(model: str, protocol: "Protocol", read_outs: Sequence[str]) -> "MedCLIPModel":
    """Load the tower, and let it refuse what it cannot read before the scans are."""
    from radtower.evaluation.pairs.embedded_pairs import load_dual_tower
    from radtower.evaluation.read_outs.finding_head import head_findings

    tower = load_dual_tower(model)
    if "finding-head" in read_outs:
        head_findings(tower)
    tower.pair_directions(protocol.asked_phrases[:1], protocol.prompts)
    return tower


def _embedded(
    tower: "MedCLIPModel",
    splits: "dict[str, LabeledSplit]",
    keys: tuple[str, ...],
    cache: Path | None,
    batch_size: int,
) -> "dict[str, LabeledVolumes]":
    from radtower.evaluation.pairs.scan_source import scan_source
    from radtower.evaluation.zero_shot.labeled_volumes import embed_labeled

    sources = {name: scan_source(tower, split.manifest, cache) for name, split in splits.items()}
    embedded = {}
    for name, split in splits.items():
        with progress_bar(f"Embedding scans, {name}", len(split)) as on_progress:
            embedded[name] = embed_labeled(tower, split, keys, sources[name], batch_size, on_progress)
    return embedded


def _split_words(protocol: "Protocol") -> str:
    return "all splits" if protocol.split == "all" else f"{protocol.split} split"


def _print(done: "ZeroShotEvaluation") -> None:
    """Per read-out the areas by class set and finding, and the means of decisions by source of thresholds."""
    first = done.results.metrics[0]
    print(f"{done.results.model_id} on {first.dataset}: {done.size}; labels: {first.label_source}")
    groups: dict[tuple[str | None, str | None], list[MetricResult]] = {}
    for item in done.results.metrics:
        groups.setdefault((item.protocol, item.threshold_source), []).append(item)
    for (protocol, source), items in groups.items():
        if source is None:
            _print_areas(str(protocol), items)
        else:
            _print_means(f"{protocol}; threshold: {source}", items, DECISIONS)
    for reason in done.results.not_measured:
        print(f"Not measured: {reason}.")
    if done.num_saturated:
        print(
            f"{done.num_saturated} scores are rounded to exactly 0 or 1 and tie; --score margin ranks them."
        )
    print(f"95 % intervals over patients. {NOT_FOR_DIAGNOSIS}")
    if done.results.phantom:
        print("These are phantom results: they show that the software works.")


def _print_areas(title: str, items: list["MetricResult"]) -> None:
    names = list(dict.fromkeys(item.metric for item in items if item.finding))
    rows = _mean_rows(items, names)
    undefined: dict[str | None, list[str]] = {}
    for finding in dict.fromkeys(item.finding for item in items if item.finding):
        cells = {item.metric: item for item in items if item.finding == finding}
        if all(item.value is None for item in cells.values()):
            undefined.setdefault(cells[names[0]].note, []).append(finding)
            continue
        of = f"{cells[names[0]].n_positive}/{cells[names[0]].n}"
        rows.append((finding.replace("_", " "), of, *(value_with_interval(cells[name]) for name in names)))
    print_table(title, ("", "present", *(name.replace("_", " ") for name in names)), rows)
    for note, findings in undefined.items():
        print(f"{note}: {', '.join(findings)}.")


def _print_means(title: str, items: list["MetricResult"], names: Sequence[str]) -> None:
    """What is decided on each finding is in the file."""
    print_table(title, ("", "n", *(name.replace("_", " ") for name in names)), _mean_rows(items, names))


def _mean_rows(items: list["MetricResult"], names: Sequence[str]) -> list[tuple[str, ...]]:
    rows = []
    for class_set in dict.fromkeys(item.class_set for item in items if item.finding is None):
        cells = {item.metric: item for item in items if item.finding is None and item.class_set == class_set}
        means = [cells[f"macro_{name}"] for name in names]
        # The note begins with "mean of 2 of 18 findings", where only two are defined.
        defined = str(means[0].note).removeprefix("mean of ").partition(" findings")[0]
        label = f"mean, {class_set} ({defined})"
        rows.append((label, str(means[0].n), *map(value_with_interval, means)))
    return rows
