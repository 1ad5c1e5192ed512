"""``radtower doctor`` and ``radtower preprocess``: is a scan usable, and make many of them ready."""

from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import typer

from radtower.cli.extras import EXTRAS, register_models, require
from radtower.cli.output import print_failures, print_json, print_table, progress_bar

PACKAGES = ("radtower", "torch", "transformers", "huggingface_hub", "datasets", "accelerate", "SimpleITK")
MAX_NOTES = 20


def doctor(
    scan: Annotated[
        Path | None,
        typer.Argument(
            help="DICOM folder, zip or file, NIfTI, NRRD, MetaImage, npz. Without: the installation."
        ),
    ] = None,
    series: Annotated[str | None, typer.Option(help="Series UID, where a folder has several.")] = None,
    rescale: Annotated[
        tuple[float, float] | None, typer.Option(help="Slope and intercept that a table states.")
    ] = None,
    spacing: Annotated[
        tuple[float, float, float] | None, typer.Option(help="Spacing (Z, Y, X) in mm that a table states.")
    ] = None,
    memory_limit_gb: Annotated[
        float | None, typer.Option(help="Refuse a larger scan. Without: the limit of the package.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether a scan can be used, or what is installed."""
    if scan is None:
        _print_installation(json)
        return
    from radtower.processing.scan_reference import ScanReference
    from radtower.processing.volume_check import inspect_volume
    from radtower.processing.volume_io import MEMORY_LIMIT_GB, read_volume

    limit_gb = MEMORY_LIMIT_GB if memory_limit_gb is None else memory_limit_gb
    volume = read_volume(ScanReference(scan, series, rescale, spacing), memory_limit_gb=limit_gb)
    report = inspect_volume(volume)
    if json:
        print_json({"scan": str(scan), "format": volume.source.format, **asdict(report)})
        return
    percentiles = ", ".join(f"p{level}: {value:.0f}" for level, value in report.hu_percentiles.items())
    rows = [
        ("format", volume.source.format),
        ("voxels (Z, Y, X)", " x ".join(str(size) for size in report.shape)),
        ("spacing (Z, Y, X)", " x ".join(f"{mm:.3g}" for mm in report.spacing_mm) + " mm"),
        ("extent (Z, Y, X)", " x ".join(f"{mm:.0f}" for mm in report.extent_mm) + " mm"),
        ("orientation", report.orientation),
        ("HU range", f"{report.hu_min:.0f} to {report.hu_max:.0f}"),
        ("HU percentiles", percentiles),
        ("rescale", report.rescale),
        ("air, of all voxels", f"{report.air_fraction:.1%}"),
        ("lung, of the body", f"{report.lung_fraction:.1%}"),
        *(("warning", warning) for warning in report.warnings),
        ("verdict", report.verdict),
    ]
    print_table(str(scan), ("", "value"), rows, is_numeric=False)


def preprocess(  # noqa: PLR0913 -- one option per setting
    manifest: Annotated[Path, typer.Argument(help="Table of studies.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Cache folder.")],
    processor: Annotated[
        Path | None, typer.Option(help="Folder of a saved processor. Without: the defaults.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes, of each task if there are tasks. 0: none. Without: one per usable core.",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Make the volumes of a cache with other settings again.")
    ] = False,
    executor: Annotated[
        Literal["local", "slurm", "ray"] | None, typer.Option(help="Run in tasks, through datatrove.")
    ] = None,
    tasks: Annotated[int, typer.Option(min=1, help="Parts of the manifest, with --executor.")] = 1,
    partition: Annotated[str | None, typer.Option(help="Partition of Slurm.")] = None,
    time: Annotated[str, typer.Option(help="Limit of a Slurm task.")] = "24:00:00",
    memory_gb: Annotated[int, typer.Option(min=1, help="Memory per process of a task.")] = 6,
) -> None:
    """Read and resample every scan of a manifest once; what is done already is kept."""
    register_models()
    from radtower.data.manifest import read_manifest
    from radtower.data.preprocessing.worker_pool import available_cores
    from radtower.data.volume_cache import build_volume_cache, open_volume_cache
    from radtower.processing.image_processing_ct3d import CT3DImageProcessor

    if processor is not None and not (processor / "preprocessor_config.json").is_file():
        raise FileNotFoundError(
            f"processor must be a folder with preprocessor_config.json, got {processor}. Check the path."
        )
    image_processor = (
        CT3DImageProcessor() if processor is None else CT3DImageProcessor.from_pretrained(processor)
    )
    scans = read_manifest(manifest, needs_reports=False).scans()
    num_workers = available_cores() if workers is None else workers
    if executor is None:
        with progress_bar("Preprocessing scans", len(scans)) as on_progress:
            cache = build_volume_cache(
                scans, image_processor, output, on_progress, num_workers, None, replace
            )
    else:
        require("cluster")
        from radtower.data.preprocessing.cluster import run_on_cluster
        from radtower.data.task_executors import ClusterPlan

        plan = ClusterPlan(
            executor=executor,
            tasks=tasks,
            num_workers=num_workers,
            memory_gb=memory_gb,
            partition=partition,
            time=time,
        )
        job = run_on_cluster(plan, manifest, image_processor, output, replace)
        if job is not None:
            print(
                f"{tasks} tasks submitted; job {job} ends last. Run this without --executor to see failures."
            )
            return
        cache = open_volume_cache(output, image_processor)
    failures = {volume_id: cache.failures[volume_id] for volume_id in scans if volume_id in cache.failures}
    print(f"{len(scans) - len(failures)} of {len(scans)} scans in {output}")
    _print_notes({v: cache.volumes[v].row.notes for v in scans if v in cache and cache.volumes[v].row.notes})
    print_failures(failures)
    if failures:
        raise typer.Exit(1)


def _print_notes(notes: dict[str, str]) -> None:
    """Say on stderr what was remarkable about scans that are usable, and of how many."""
    for volume_id, note in list(notes.items())[:MAX_NOTES]:
        typer.echo(f"noted: {volume_id}: {'; '.join(note.splitlines())}", err=True)
    if len(notes) > MAX_NOTES:
        typer.echo(f"noted: {len(notes) - MAX_NOTES} more, in the column notes of the shards", err=True)


def _print_installation(json: bool) -> None:
    versions = {}
    for package in (*PACKAGES, *sorted({module for modules in EXTRAS.values() for module in modules})):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    if json:
        print_json(versions)
    else:
        print_table("Installed", ("package", "version"), list(versions.items()))


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(doctor)
    app.command()(preprocess)
