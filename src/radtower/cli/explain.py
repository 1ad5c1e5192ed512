"""``radtower explain``: where in a scan a model sees evidence for a finding."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radtower.cli.extras import register_models, require
from radtower.cli.output import NOT_FOR_DIAGNOSIS, print_json, print_table

if TYPE_CHECKING:
    from radtower.evaluation.heat_maps import HeatMap


def explain(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a classifier of scans or a dual tower.")],
    scan: Annotated[Path, typer.Argument(help="DICOM folder, NIfTI, NRRD or MetaImage.")],
    finding: Annotated[str, typer.Option(help="Key, name or synonym of a finding.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Heat map to write: .nii.gz, .nii, .nrrd or .mha.")
    ],
    png: Annotated[Path | None, typer.Option(help="Picture to write: the map over the scan.")] = None,
    findings: Annotated[
        str, typer.Option(help="Findings set with the names, or a YAML file.")
    ] = "ct_rate_18",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Map the evidence for a finding onto one scan, voxel by voxel."""
    if png is not None:
        require("plots")
        from radtower.evaluation.heat_map_plot import check_picture_path, plot_heat_map

        check_picture_path(png)
    register_models()
    from radtower.evaluation.heat_maps import (
        check_map_path,
        explain_scan,
        finding_keys,
        load_explainable,
        write_heat_map,
    )
    from radtower.labeling.findings import load_findings, match_finding
    from radtower.modeling.modeling_medclip import MedCLIPModel
    from radtower.processing.volume_io import read_volume

    check_map_path(output, scan)
    known = load_findings(findings)
    tower, processor = load_explainable(model)
    if isinstance(tower, MedCLIPModel):
        key = match_finding(finding, known.keys, known)
        asked = known.by_key[key].prompts[0]
    else:
        key = asked = match_finding(finding, finding_keys(tower), known)
    name = known.by_key[key].name if key in known.keys else key
    heat_map = explain_scan(tower, processor, read_volume(scan), asked)
    write_heat_map(heat_map, output, scan)
    if png is not None:
        plot_heat_map(heat_map, name, NOT_FOR_DIAGNOSIS, png)
    if json:
        print_json(_as_json(heat_map, key) | {"scan": str(scan), "model": model, "heat_map": str(output)})
        return
    _print_summary(heat_map, f"{name}: {scan}", output)


def _as_json(heat_map: "HeatMap", key: str) -> dict[str, object]:
    return {
        "finding": key,
        "score": heat_map.score,
        "logit": heat_map.logit,
        "sum_of_contributions": heat_map.total,
        "unit": "contribution of one feature voxel to the logit",
        "feature_voxel_mm": heat_map.feature_mm,
        "peak": heat_map.peak_value,
        "peak_ras_mm": heat_map.peak_mm,
        "strongest_feature_voxel": heat_map.strongest,
        "share_of_the_scan_seen": heat_map.seen_share,
        "note": NOT_FOR_DIAGNOSIS,
    }


def _print_summary(heat_map: "HeatMap", title: str, output: Path) -> None:
    """Print what the map says, and what it cannot say."""
    x, y, z = heat_map.peak_mm
    is_evidence = heat_map.peak_value > 0
    rows = [
        ("score, uncalibrated", f"{heat_map.score:.3f}"),
        ("logit", f"{heat_map.logit:+.3f}"),
        ("of it, sum of the map's feature voxels", f"{heat_map.total:+.3f}"),
        ("strongest evidence for it" if is_evidence else "least against it", f"{heat_map.peak_value:+.3f}"),
        ("which lies at (R+, A+, S+)", f"{x:.0f}, {y:.0f}, {z:.0f} mm"),
        ("one feature voxel (Z, Y, X)", " x ".join(f"{mm:.0f}" for mm in heat_map.feature_mm) + " mm"),
        ("share of the scan that the model saw", f"{heat_map.seen_share:.0%}"),
    ]
    print_table(title, ("", "value"), rows)
    if not is_evidence:
        where = f"{x:.0f}, {y:.0f}, {z:.0f} mm"
        print(f"There is no evidence for the finding; the least against it lies at {where}.")
    if heat_map.strongest > 0 and heat_map.peak_value < heat_map.strongest / 2:
        print(f"The strongest feature voxel, {heat_map.strongest:+.3f}, lies in the air around the scan.")
    print(
        f"{output}: contribution to the logit, > 0 for the finding, < 0 against it, 0 outside what was seen."
    )
    print(f"It shows where the model found its score, not the outline of a lesion. {NOT_FOR_DIAGNOSIS}")


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(explain)
