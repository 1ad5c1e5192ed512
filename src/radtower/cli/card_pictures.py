"""A scan that may be shown -> the picture of it on a model card: what the model gets of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radtower.cli.extras import require
from radtower.cli.output import NOT_FOR_DIAGNOSIS

if TYPE_CHECKING:
    from radtower.hub_cards.card_sections.pictures_section import CardPicture

Report = Annotated[
    Path | None,
    typer.Option(help="Folder of radtower report of these results: its curves and intervals go on the card."),
]
ExampleScan = Annotated[
    Path | None, typer.Option(help="A CT scan that may be published: its slices go on the card.")
]
ExampleSource = Annotated[
    str | None, typer.Option(help="Whose scan that is, and its license; is published with it.")
]


def example_pictures(model: Path, scan: Path | None, source: str | None) -> "tuple[CardPicture, ...]":
    """Draw the slices of a scan as the model gets them; nothing of its header goes along.

    The models must be registered.

    Args:
        model: Folder of a model of CT scans, for its preprocessing.
        scan: DICOM folder, NIfTI, NRRD or MetaImage. None draws nothing.
        source: Whose scan it is and why it may be shown.

    Raises:
        ValueError: If one of scan and source is missing.
        TypeError: If the model reads no CT scans.
    """
    if scan is None and source is None:
        return ()
    if scan is None or source is None or not source.strip():
        raise ValueError(
            f"--example-scan must come with --example-source, got {scan and scan.name!r} and {source!r}. Say "
            "whose scan it is and under which license it may be shown."
        )
    require("plots")
    from transformers import AutoProcessor

    from radtower.evaluation.reports.pictures.drawing import png_bytes
    from radtower.evaluation.reports.pictures.example_slices import draw_example_slices
    from radtower.hub_cards.card_sections.pictures_section import CardPicture
    from radtower.processing.image_processing_ct3d import CT3DImageProcessor
    from radtower.processing.volume_io import read_volume

    processor = AutoProcessor.from_pretrained(model, trust_remote_code=False)
    processor = getattr(processor, "image_processor", processor)
    if not isinstance(processor, CT3DImageProcessor):
        kind = type(processor).__name__
        raise TypeError(f"--example-scan is for models of CT scans, got {kind} in {model}. Leave it out.")
    resampled = processor.resample(read_volume(scan)).numpy()
    if processor.orientation != "LPS":  # the picture names the sides, so it is drawn one way
        resampled = resampled[:, ::-1, ::-1]
    figure = draw_example_slices(resampled, processor.spacing_mm, processor.windows_hu, NOT_FOR_DIAGNOSIS)
    voxel = " x ".join(f"{mm:g}" for mm in processor.spacing_mm)
    caption = (
        f"The middle slices of one scan as the model gets it: {voxel} mm (Z, Y, X), a row for each window. "
        f"Scan: {source.strip()}"
    )
    alt = "Axial, coronal and sagittal slices of a CT scan after preprocessing"
    return (CardPicture("example-scan.png", "Example slices", caption, alt, png_bytes(figure)),)
