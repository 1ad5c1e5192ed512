"""``radtower manifest``: a downloaded data set -> the table that every other command reads."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from radtower.data.layouts.downloaded_set import DownloadedSet
    from radtower.data.manifest import Manifest

manifest_app = typer.Typer(no_args_is_help=True, help="Turn a downloaded data set into a manifest.")
Output = Annotated[Path, typer.Option("--output", "-o", help="manifest.csv or .parquet")]
Seed = Annotated[int, typer.Option(help="Decides which patients are held out.")]


class Version(StrEnum):
    """Releases of CT-RATE's volumes."""

    V1 = "v1"
    V2 = "v2"


@manifest_app.command("ct-rate")
def ct_rate(
    root: Annotated[Path, typer.Argument(help="Folder that holds CT-RATE's `dataset`.")],
    output: Output,
    version: Annotated[
        Version | None, typer.Option(help="Release of the volumes; v2 (`*_fixed`) is in HU.")
    ] = None,
    exclude: Annotated[
        list[Path] | None,
        typer.Option(help="Volumes to leave out, besides the head scans: one name per line, or a CSV."),
    ] = None,
    validation: Annotated[
        float | None, typer.Option(help="Fraction of the training patients to hold out for validation.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Write the manifest of CT-RATE; its official validation split is the test split."""
    from radtower.data.layouts.ct_rate import read_ct_rate

    _write(
        read_ct_rate(root, None if version is None else version.value, exclude or ()),
        output,
        validation,
        seed,
    )


@manifest_app.command("rad-chestct")
def rad_chestct(
    root: Annotated[Path, typer.Argument(help="Folder with RAD-ChestCT's tables and scans.")], output: Output
) -> None:
    """Write the manifest of RAD-ChestCT, which has labels and no reports."""
    from radtower.data.layouts.rad_chestct import read_rad_chestct

    _write(read_rad_chestct(root), output, None, 0)


@manifest_app.command("medpix")
def medpix(
    cases: Annotated[Path, typer.Argument(help="JSONL of MedPix 2.0, one image per line.")],
    output: Output,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="caption (default), findings, title, history or diagnosis; repeat it to join several."
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images. Without: `images` beside the JSONL.")
    ] = None,
) -> None:
    """Write the manifest of MedPix images; `dev` is the validation split, and a case is a patient."""
    from radtower.data.layouts.medpix import read_medpix

    found = read_medpix(cases, text or ("caption",), images)
    _write_checked(found.manifest, output)
    print(f"{found.num_excluded} images without text left out; {found.num_not_downloaded} not there")
    for name in found.not_downloaded:
        print(f"  not there: {name}")
    _print_splits(output)


@manifest_app.command("split")
def split(
    manifest: Annotated[Path, typer.Argument(help="Manifest without a validation split.")],
    output: Output,
    validation: Annotated[float, typer.Option(help="Fraction of the training patients to hold out.")],
    seed: Seed = 0,
) -> None:
    """Hold out a validation split, by patient."""
    from radtower.data.manifest import hold_out_validation, read_manifest

    _write_checked(hold_out_validation(read_manifest(manifest), validation, seed), output)
    _print_splits(output)


def _write(found: "DownloadedSet", output: Path, validation: float | None, seed: int) -> None:
    from radtower.data.manifest import hold_out_validation

    manifest = found.manifest
    if validation is not None:
        manifest = hold_out_validation(manifest, validation, seed)
    _write_checked(manifest, output)
    lists = ", ".join(found.exclusion_lists) or "no exclusion list"
    print(f"{found.num_excluded} volumes excluded ({lists}); {found.num_not_downloaded} not downloaded")
    _print_splits(output)


def _write_checked(manifest: "Manifest", output: Path) -> None:
    """Write it where it replaces an earlier one only if it can be read back, which checks it."""
    from radtower.data.manifest import read_manifest, write_manifest

    partial = output.with_name(f".partial-{output.name}")  # in the same folder: paths are relative to it
    try:
        write_manifest(manifest, partial)
        read_manifest(partial)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def _print_splits(path: Path) -> None:
    from radtower.cli.output import print_table
    from radtower.data.manifest import read_manifest

    frame = read_manifest(path).frame
    rows = [
        (str(name), *(str(part[column].nunique()) for column in ("volume_id", "study_id", "patient_id")))
        for name, part in frame.groupby("split")
    ]
    print_table(str(path), ("split", "volumes", "studies", "patients"), rows)


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.add_typer(manifest_app, name="manifest")
