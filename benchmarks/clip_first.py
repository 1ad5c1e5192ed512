"""Does supervision have to come first? Dual towers from scratch and after a supervised stage, on phantoms.

    radtower demo --output DEMO
    python benchmarks/clip_first.py DEMO --output DIR --seeds 5

Arms, each with the same number of passes over the training scans in all:

- ``scratch``: contrastive training from random image weights, for the epochs of both stages together;
- ``scratch_head``: likewise, with the shared finding head (GreenRFM: InfoNCE + 0.5 (BCE image + BCE text));
- ``supervised``: an image classifier first, then contrastive training from its tower;
- ``supervised_head``: likewise, with the shared finding head in the second stage.

``classifier`` is the first stage by itself, for comparison: fewer passes, and no text.

Shape of the image tower, cohort and labels are the demo's. Labels are silver, of the demo's labeler, for both
stages. The text tower is that labeler, frozen, in every arm, so texts are supervised in all of them and the
arms differ on the image side; ``--raw-text`` takes the embedded LLM as it is. Optimization is the demo's;
``--scratch-learning-rates`` adds arms from scratch at other rates, so that a bad choice does not beat them.
Choose rates on a cohort of another seed (``radtower demo --seed 1``): the validation split is small.

Measured on the test split against the truth of the phantoms: zero-shot macro AUROC (prompt ensemble), macro
AUROC of the finding head on scans, recall@5 and @10 both ways (exact row). A number is the mean over training
seeds, which draw weights, order and head anew; the cohort is one. Its interval is a bootstrap over patients
and seeds, crossed: a resample draws patients and, independently, seeds; the same draw is used for every arm,
so differences are paired. With few seeds the interval understates how much seeds vary: their standard
deviation is written, too. Phantom results only.

Results of an arm and seed are kept in DIR/scores: what is there is not trained again. One process per core,
one thread each.
"""

import argparse
import json
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.data.manifest import Manifest, read_manifest
from radtower.data.volume_cache import VolumeCache, open_volume_cache
from radtower.demo.phantom_findings import PHANTOM_FINDINGS
from radtower.demo.walkthrough import DemoPlan, embedded_llm
from radtower.evaluation.bootstrap import count_bootstrap, percentile_interval
from radtower.evaluation.metrics import weighted_auroc
from radtower.evaluation.retrieval.ranks import retrieval_ranks
from radtower.labeling.findings import FindingsSet, load_findings
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.processing.report_text import normalize_report
from radtower.training.arguments import DEFAULTS
from radtower.training.clip.clip_run import ClipRun
from radtower.training.clip.feature_store import TextFeatureStore
from radtower.training.runs import VisionRun
from radtower.training.train_medclip import train_medclip
from radtower.training.train_vision import train_vision

NUM_RESAMPLES = 2000
KS = (5, 10)
METRICS = (
    "zero_shot_macro_auroc",
    "head_macro_auroc",
    *(f"recall_at_{k}_{way}" for way in ("image_to_report", "report_to_image") for k in KS),
)
CLASSIFIER = "classifier"
NOTHING = "-"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained; kept beside the scores, which another plan may not mix with its own.

    Args:
        demo: Output folder of ``radtower demo``.
        vision_epochs: Passes over the scans of the supervised stage.
        clip_epochs: Passes of contrastive training behind it. From scratch: both together.
        scratch_learning_rates: Of contrastive training from scratch; the first one names no rate in its arm.
        is_raw_text: Whether the text tower is the embedded LLM itself.
    """

    demo: str
    vision_epochs: float
    clip_epochs: float
    scratch_learning_rates: tuple[float, ...]
    is_raw_text: bool


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train a dual tower."""

    name: str
    is_supervised_first: bool
    has_head: bool
    learning_rate: float


@dataclass(frozen=True)
class Scores:
    """What an arm says of N test studies: ``(N, F)`` or empty, ``(2, N)`` or empty, and what it cost.

    ``ranks``: of the own report for each scan, and of the own scan for each report.
    """

    zero_shot: np.ndarray
    head: np.ndarray
    ranks: np.ndarray
    seconds: float
    num_passes: float


def make_arms(plan: Plan, learning_rate: float = 1e-3) -> list[Arm]:
    """List all arms; those from scratch once per learning rate."""
    arms = []
    for number, rate in enumerate(plan.scratch_learning_rates):
        suffix = "" if number == 0 else f"@{rate:g}"
        for name, has_head in (("scratch", False), ("scratch_head", True)):
            arms.append(
                Arm(name=name + suffix, is_supervised_first=False, has_head=has_head, learning_rate=rate)
            )
    for name, has_head in (("supervised", False), ("supervised_head", True)):
        arms.append(Arm(name=name, is_supervised_first=True, has_head=has_head, learning_rate=learning_rate))
    return arms


class Study:
    """The files of a demo, one seed of training, and the folder of the scores.

    Args:
        plan: What is trained.
        output: Folder of the study.
        seed: Of training.
    """

    def __init__(self, plan: Plan, output: Path, seed: int) -> None:
        self.plan = plan
        self.output = output
        self.seed = seed
        self.demo = Path(plan.demo)
        self.manifest = str(self.demo / "cohort" / "manifest.csv")
        self.labels = str(self.demo / "labels.parquet")
        self.findings = demo_findings()

    def scores_file(self, name: str) -> Path:
        return self.output / "scores" / f"{name}-{self.seed}.npz"

    def run(self, arms: list[Arm]) -> None:
        """Train and measure arms that share their first stage, but for those that are there."""
        arms = [arm for arm in arms if not self.scores_file(arm.name).exists()]
        if not arms:
            return
        is_supervised_first = arms[0].is_supervised_first
        work = self.output / "work" / f"{arms[0].name}-{self.seed}"
        shutil.rmtree(work, ignore_errors=True)  # an interrupted run
        vision, start = self.demo / "vision", time.perf_counter()
        if is_supervised_first:
            vision = self.train_classifier(work / "vision")
        first_s = time.perf_counter() - start if is_supervised_first else 0.0
        if is_supervised_first:
            self.write(CLASSIFIER, self.measure_classifier(vision), first_s, self.plan.vision_epochs)
        for arm in arms:
            start = time.perf_counter()
            folder = self.align(arm, vision, work / arm.name)
            passes = self.plan.vision_epochs + self.plan.clip_epochs
            self.write(arm.name, self.measure(folder), first_s + time.perf_counter() - start, passes)
        shutil.rmtree(work)

    def train_classifier(self, folder: Path) -> Path:
        config = CT3DVisionConfig.from_pretrained(self.demo / "vision")
        run = VisionRun(
            manifest=self.manifest,
            labels=self.labels,
            cache=str(self.demo / "cache"),
            hidden_sizes=tuple(config.hidden_sizes),
            layers=tuple(config.layers),
            pooling=config.pooling,
        )
        arguments = self._arguments(folder, self.plan.vision_epochs, 8, learning_rate=6e-3, warmup_steps=80)
        return train_vision(run, arguments)

    def align(self, arm: Arm, vision: Path, folder: Path) -> Path:
        is_first = arm.is_supervised_first
        epochs = self.plan.clip_epochs if is_first else self.plan.vision_epochs + self.plan.clip_epochs
        run = ClipRun(
            manifest=self.manifest,
            cache=str(self.demo / "cache"),
            vision=str(vision),
            labels=self.labels if arm.has_head else None,
            should_reset_vision=not is_first,
            feature_cache=str(self.features),
            projection_dim=128,
            max_length=192,
            **self._text(),
        )
        # Random weights are warmed up as in the first stage of the others.
        warmup_steps = 10 if is_first else 80
        arguments = self._arguments(
            folder, epochs, 16, learning_rate=arm.learning_rate, warmup_steps=warmup_steps
        )
        return train_medclip(run, arguments)

    @property
    def features(self) -> Path:
        """Of the text tower, which is frozen: each report is encoded once for all arms."""
        return self.output / "features"

    def _text(self) -> dict[str, Any]:
        if not self.plan.is_raw_text:
            return {"text": str(self.demo / "labeler")}
        return {
            "text": str(embedded_llm()),
            "llm_pooling": "mean",
            "num_llm_layers": DemoPlan().num_layers,
            "bidirectional": False,
        }

    def _arguments(
        self, folder: Path, epochs: float, batch_size: int, *, learning_rate: float, warmup_steps: int
    ) -> TrainingArguments:
        return TrainingArguments(
            **DEFAULTS,
            output_dir=str(folder),
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=0.01,
            warmup_steps=warmup_steps,
            lr_scheduler_type="cosine",
            dataloader_drop_last=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            use_cpu=True,
            seed=self.seed,
        )

    @torch.no_grad()
    def measure(self, folder: Path) -> Scores:
        """Score the test split with a dual tower."""
        model = MedCLIPModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
        studies = read_test_split(self.plan.demo).frame
        images, head = [], []
        for pixels in self._scans():
            output = model(pixel_values=pixels, return_loss=False)
            images.append(output.image_embeds)
            if output.finding_logits_image is not None:
                head.append(output.finding_logits_image)
        store = TextFeatureStore(model, model.processor, str(self.features))
        vectors = store.features([normalize_report(report) for report in studies["report"]])
        texts = model(text_features=vectors, return_loss=False).text_embeds
        scans = torch.cat(images)
        directions = model.finding_directions([finding.prompts[0] for finding in self.findings.findings])
        rows = np.arange(len(scans))
        ranks = [retrieval_ranks(*pair, rows) for pair in ((scans, texts), (texts, scans))]
        logits = torch.cat(head).double().numpy() if head else np.empty(0)
        if head:
            logits = logits[:, [list(model.config.findings).index(key) for key in self.findings.keys]]
        return Scores((scans @ directions.T).double().numpy(), logits, np.stack(ranks), 0.0, 0.0)

    @torch.no_grad()
    def measure_classifier(self, folder: Path) -> Scores:
        """Score the test split with the first stage."""
        model = CT3DVisionForImageClassification.from_pretrained(folder).eval()
        logits = torch.cat([model(pixels).logits for pixels in self._scans()]).double().numpy()
        columns = [model.config.label2id[key] for key in self.findings.keys]
        return Scores(np.empty(0), logits[:, columns], np.empty(0), 0.0, 0.0)

    def _scans(self) -> list[torch.Tensor]:
        cache: VolumeCache = open_volume_cache(self.demo / "cache")
        ids = list(read_test_split(self.plan.demo).frame["volume_id"])
        chunks = [ids[start : start + 8] for start in range(0, len(ids), 8)]
        return [torch.stack([cache[volume_id] for volume_id in chunk]) for chunk in chunks]

    def write(self, name: str, scores: Scores, seconds: float, num_passes: float) -> None:
        path = self.scores_file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path = path.with_suffix(".partial.npz")
        np.savez(partial_path, **asdict(replace(scores, seconds=seconds, num_passes=num_passes)))
        partial_path.replace(path)


def demo_findings() -> FindingsSet:
    return load_findings("ct_rate_18").subset(PHANTOM_FINDINGS)


def read_test_split(demo: str) -> Manifest:
    return read_manifest(Path(demo) / "cohort" / "manifest.csv").split("test")


def run_job(plan: Plan, output: Path, job: tuple[int, list[Arm]]) -> str:
    """Train and measure, in a process of its own."""
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    seed, arms = job
    Study(plan, output, seed).run(arms)
    return f"{', '.join(arm.name for arm in arms)}, seed {seed}"


def make_jobs(arms: list[Arm], num_seeds: int) -> list[tuple[int, list[Arm]]]:
    """Arms that share their first stage are one job; the longest come first."""
    shared = [arm for arm in arms if arm.is_supervised_first]
    groups = [shared, *([arm] for arm in arms if not arm.is_supervised_first)]
    return [(seed, group) for group in groups for seed in range(num_seeds)]


def read_scores(output: Path, name: str, num_seeds: int) -> list[Scores]:
    found = []
    for seed in range(num_seeds):
        with np.load(output / "scores" / f"{name}-{seed}.npz") as file:
            found.append(
                Scores(
                    file["zero_shot"],
                    file["head"],
                    file["ranks"],
                    float(file["seconds"]),
                    float(file["num_passes"]),
                )
            )
    return found


def weighted_metrics(scores: Scores, truth: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``(R, len(METRICS) + F)`` of row counts ``(R, N)``; NaN what the arm has not.

    The last F are the zero-shot AUROC of each finding. A finding with one class in a resample is left out of
    its macro mean.
    """
    num_findings = truth.shape[1]
    table = np.full((len(counts), len(METRICS) + num_findings), np.nan)
    for place, values in enumerate((scores.zero_shot, scores.head)):
        if values.size:
            columns = [weighted_auroc(values[:, f], truth[:, f], counts) for f in range(num_findings)]
            is_defined = ~np.isnan(columns)
            sums = np.where(is_defined, columns, 0.0).sum(axis=0)
            has_any = is_defined.any(axis=0)
            table[has_any, place] = sums[has_any] / is_defined.sum(axis=0)[has_any]
            if place == 0:
                table[:, len(METRICS) :] = np.stack(columns, axis=1)
    if scores.ranks.size:
        hits = np.concatenate([np.stack([ranks <= k for k in KS]) for ranks in scores.ranks])
        table[:, 2 : len(METRICS)] = counts @ hits.T / counts.sum(axis=1, keepdims=True)
    return table


def crossed_bootstrap(
    arm: list[Scores], truth: np.ndarray, patients: np.ndarray, num_resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Values per seed ``(S, K)``; means over drawn seeds of drawn patients ``(R, K)``, alike for all."""
    ones = np.ones((1, len(truth)))
    per_seed = np.concatenate([weighted_metrics(scores, truth, ones) for scores in arm])
    resampled = np.stack(
        [count_bootstrap(partial(weighted_metrics, scores, truth), patients, num_resamples) for scores in arm]
    )
    share = np.full(len(arm), 1 / len(arm))
    draws = np.random.default_rng(1).multinomial(len(arm), share, size=num_resamples) / len(arm)
    return per_seed, np.einsum("rs,srk->rk", draws, resampled)


def summarize(plan: Plan, output: Path, names: list[str], num_seeds: int) -> dict[str, Any]:
    """Means with intervals, and differences of all pairs of arms."""
    studies = read_test_split(plan.demo)
    truth, patients = studies.truth(demo_findings()), studies.frame["patient_id"].to_numpy()
    arms = {name: read_scores(output, name, num_seeds) for name in names}
    found = {name: crossed_bootstrap(arms[name], truth, patients, NUM_RESAMPLES) for name in names}
    columns = [*METRICS, *(f"zero_shot_auroc_{key}" for key in demo_findings().keys)]
    return {
        "plan": asdict(plan),
        "num_seeds": num_seeds,
        "num_studies": len(truth),
        "num_patients": len(np.unique(patients)),
        "labels": "silver for training, truth of the phantom for measuring",
        "interval": f"95 %, bootstrap over patients and seeds, crossed, {NUM_RESAMPLES} resamples",
        "arms": {
            name: {
                "seconds": [round(scores.seconds) for scores in arms[name]],
                "num_passes": arms[name][0].num_passes,
            }
            | _described(columns, found[name][0].mean(axis=0), found[name][1], patients, found[name][0])
            for name in names
        },
        "differences": {
            f"{left} - {right}": _described(
                columns,
                found[left][0].mean(axis=0) - found[right][0].mean(axis=0),
                found[left][1] - found[right][1],
                patients,
                found[left][0] - found[right][0],
            )
            for right, left in combinations(names, 2)
        },
    }


def _described(
    columns: list[str], values: np.ndarray, resampled: np.ndarray, patients: np.ndarray, per_seed: np.ndarray
) -> dict[str, Any]:
    table = {}
    for place, name in enumerate(columns):
        if np.isnan(values[place]):
            continue
        interval = percentile_interval(resampled[:, place], patients)
        deviation = float(per_seed[:, place].std(ddof=1)) if len(per_seed) > 1 else None
        table[name] = {
            "value": round(float(values[place]), 4),
            "interval": [round(interval.low, 4), round(interval.high, 4)],
            "seed_deviation": None if deviation is None else round(deviation, 4),
        }
    return table


def markdown(summary: dict[str, Any]) -> str:
    """Two tables: the arms, and their differences."""
    short = ("zero-shot AUROC", "head AUROC", "R@5 i->r", "R@10 i->r", "R@5 r->i", "R@10 r->i")
    lines = []
    for title, sign in (("arms", ""), ("differences", "+")):
        lines += [f"| {title} | {' | '.join(short)} |", "|---" * (len(short) + 1) + "|"]
        for name, found in summary[title].items():
            cells = [_cell(found.get(metric), sign) for metric in METRICS]
            if set(cells) == {NOTHING}:  # the classifier has no text to compare
                continue
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    lines.append(
        f"{summary['num_studies']} test studies of {summary['num_patients']} phantom patients, "
        f"{summary['num_seeds']} training seeds; {summary['interval']}. Labels: {summary['labels']}."
    )
    return "\n".join(lines)


def _cell(found: dict[str, Any] | None, sign: str) -> str:
    if found is None:
        return NOTHING
    value, low, high = (round(number, 2) + 0.0 for number in (found["value"], *found["interval"]))
    between = " to " if sign else "-"
    return f"{value:{sign}.2f} ({low:{sign}.2f}{between}{high:{sign}.2f})"


def require_same_plan(plan: Plan, output: Path) -> None:
    """Refuse to mix scores of two plans in one folder.

    Raises:
        ValueError: If the folder has those of another.
    """
    path = output / "plan.json"
    now = json.loads(json.dumps(asdict(plan)))
    if path.exists():
        then = json.loads(path.read_text(encoding="utf-8"))
        if then != now:
            differing = sorted(name for name in now if then.get(name) != now[name])
            raise ValueError(
                f"output must hold scores of this plan, got another {differing} in {output}. "
                "Choose another folder."
            )
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(now), encoding="utf-8")


def main() -> None:
    """Train what is missing, write ``results.json``, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("demo", type=Path, help="output folder of radtower demo")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5, help="training seeds, 0 to this minus 1")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--vision-epochs", type=float, default=DemoPlan().vision_epochs)
    parser.add_argument("--clip-epochs", type=float, default=DemoPlan().clip_epochs)
    parser.add_argument("--scratch-learning-rates", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--raw-text", action="store_true", help="the embedded LLM as it is, as text tower")
    parser.add_argument("--arms", nargs="+", help="only these")
    options = parser.parse_args()
    plan = Plan(
        demo=str(options.demo.resolve()),
        vision_epochs=options.vision_epochs,
        clip_epochs=options.clip_epochs,
        scratch_learning_rates=tuple(options.scratch_learning_rates),
        is_raw_text=options.raw_text,
    )
    require_same_plan(plan, options.output)
    arms = [arm for arm in make_arms(plan) if options.arms is None or arm.name in options.arms]
    jobs = make_jobs(arms, options.seeds)
    start = time.perf_counter()
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for done in pool.map(partial(run_job, plan, options.output), jobs):
            print(f"{time.perf_counter() - start:.0f} s: {done}", flush=True)
    names = [arm.name for arm in arms]
    if any(arm.is_supervised_first for arm in arms):
        names = [CLASSIFIER, *names]
    summary = summarize(plan, options.output, names, options.seeds)
    (options.output / "results.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    print(markdown(summary))


if __name__ == "__main__":
    main()
