"""QwenCLIP as released, its prompt repaired, and a plain mean of the language model: retrieval on MedPix 2.0.

    python benchmarks/medpix_study.py medpix_thorax_ct/cases.jsonl SmolLM2-135M-Instruct.Q4_1.gguf -o STUDY
        --seeds 0 1 2 --arms as_released repaired trained_prompt mean

The lowest layers of the language model stand for Qwen3-Embedding; a small ViT from nothing stands for CLIP's.
What is compared is how texts are read:

- ``as_released``: as in ``recipes/qwenclip_as_released.yaml`` (QwenCLIP, arXiv 2511.13876): a constant
  prompt, padding between it and the text, last token;
- ``repaired``: the same, without padding in between, so that a text has one vector;
- ``trained_prompt``: as in ``recipes/qwenclip.yaml``: likewise, and the prompt gets its gradient;
- ``mean``: as in ``recipes/medpix_small.yaml``: no prompt, the mean over all tokens.

The arms of a seed share the first weights of the ViT, the order of the batches and the number of steps. They
are trained on ``train`` and measured on ``dev``; ``--tune`` leaves dev alone, and measures on a quarter of
the training cases, which are then not trained on. Texts of ``as_released`` are encoded as there, in one
batch padded to the longest, and one by one, too. A hit is an image whose caption reads the same (``same
report``; the exact row is in the JSON).

A number is the mean over seeds, its interval a bootstrap over cases (10 in dev: wide); differences are
paired. What a seed of an arm gave is kept in ``STUDY/runs``: further seeds cost no more than themselves.
Axes: N images with their captions, K metrics.
"""

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, TrainingArguments, ViTImageProcessorPil
from transformers.utils import logging as transformers_logging

from radtower.data.layouts.medpix import read_medpix
from radtower.data.manifest import Manifest, hold_out_validation, read_manifest, write_manifest
from radtower.evaluation.pairs.embedded_pairs import EmbeddedPairs, embed_pairs, load_dual_tower
from radtower.evaluation.pairs.pair_retrieval import PAIRING, TITLES, hit_keys
from radtower.evaluation.pairs.scan_source import scan_source
from radtower.evaluation.results import MetricResult, Provenance
from radtower.evaluation.retrieval.chance import chance_levels
from radtower.evaluation.retrieval.ranks import positives_by_key, retrieval_ranks
from radtower.evaluation.task_scores import Metric, TaskScores, mean_scores
from radtower.processing.image_io import read_image
from radtower.processing.image_processing_2d import to_8_bit
from radtower.training.arguments import DEFAULTS, read_recipe
from radtower.training.clip.clip_run import ClipRun
from radtower.training.train_medclip import train_medclip

RECIPES = Path(__file__).parents[1] / "recipes"
# Of a recipe: how a text is read. All else is the same in all arms.
READING = (
    "llm_pooling",
    "llm_normalize",
    "bidirectional",
    "hard_prompt",
    "soft_prompt",
    "instruction",
    "prompt_padding",
    "text_mode",
)


def reading_of(recipe: str) -> dict[str, Any]:
    """How a recipe reads texts."""
    settings = read_recipe(RECIPES / recipe)
    return {name: settings[name] for name in READING if name in settings}


ARMS: dict[str, dict[str, Any]] = {
    "as_released": reading_of("qwenclip_as_released.yaml"),
    "repaired": {**reading_of("qwenclip_as_released.yaml"), "prompt_padding": "contiguous"},
    "trained_prompt": reading_of("qwenclip.yaml"),
    "mean": reading_of("medpix_small.yaml"),
}
BASELINE = "as_released"
ONE_BY_ONE = "as_released, texts one by one"
PROTOCOLS = ("report", "exact-row")
KS = (1, 5, 10)
METRICS = (*(f"recall_at_{k}" for k in KS), "mrr")
DIRECTIONS = ("image_to_report", "report_to_image", "both")
HELD_OUT = 0.25
BATCH_OF_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all arms share; a result of other settings is not reused.

    ``is_tuning``: measured on a quarter of the training cases, not on dev. ``learning_rate``: of all that
    trains, the prompt included.
    """

    steps: int = 120
    batch_size: int = 48
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    warmup_steps: int = 20
    image_size: int = 96
    patch_size: int = 16
    width: int = 192
    layers: int = 4
    projection_dim: int = 128
    text_projection: str = "linear"
    llm_layers: int = 6
    max_length: int = 128
    is_bf16: bool = True
    is_tuning: bool = False


def prepare(cases: str | Path, folder: Path, settings: Settings) -> Path:
    """Write the images in the size of the tower, which every epoch would make of them, and a manifest."""
    manifest = read_medpix(cases).manifest
    used = Manifest(manifest.frame[manifest.frame["split"].isin(["train", "validation"])])
    if settings.is_tuning:
        used = hold_out_validation(used.split("train"), HELD_OUT, seed=0)
    size = (settings.image_size, settings.image_size)
    images = folder / f"images_{settings.image_size}"
    images.mkdir(parents=True, exist_ok=True)
    paths = []
    for path in used.frame["image_path"]:
        paths.append(str(images / Path(path).name))
        to_8_bit(read_image(path), 3).resize(size, Image.Resampling.BILINEAR).save(paths[-1])
    table = folder / ("manifest_tuning.csv" if settings.is_tuning else "manifest.csv")
    write_manifest(Manifest(used.frame.assign(image_path=paths)), table)
    return table


def fresh_tower(folder: Path, settings: Settings, seed: int) -> Path:
    """Save a ViT of random weights with its processor, for all arms of a seed."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "vit",
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        hidden_size=settings.width,
        intermediate_size=4 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.width // 64 or 1,
    )
    AutoModel.from_config(config).save_pretrained(folder)
    size = {"height": settings.image_size, "width": settings.image_size}
    ViTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    return folder


def train(arm: str, seed: int, table: Path, llm: str, folder: Path, settings: Settings) -> tuple[Path, float]:
    """Train an arm; returns the model folder and the CPU seconds that it took, loading included."""
    run = ClipRun(
        manifest=str(table),
        vision=str(fresh_tower(folder / "vit", settings, seed)),
        text=llm,
        vision_pooling="mean",
        num_llm_layers=settings.llm_layers,
        projection_dim=settings.projection_dim,
        text_projection=settings.text_projection,  # type: ignore[arg-type]
        max_length=settings.max_length,
        **ARMS[arm],
    )
    arguments = TrainingArguments(
        output_dir=str(folder / "model"),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_steps,
        lr_scheduler_type="cosine",
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        use_cpu=True,
        bf16=settings.is_bf16,
        seed=seed,
        **DEFAULTS,
    )
    # CPU seconds of all threads: what else runs on the machine does not count.
    start = time.process_time()
    return train_medclip(run, arguments), time.process_time() - start


def measure(folder: Path, table: Path) -> dict[str, Any]:
    """Ranks of both splits, by how texts are batched, split, protocol and direction."""
    model = load_dual_tower(folder)
    is_released = getattr(model.text_model.config, "depends_on_batch", False)
    found: dict[str, Any] = {}
    for split in ("train", "validation"):
        studies = read_manifest(table).split(split)  # type: ignore[arg-type]
        load = scan_source(model, studies)
        # The whole split is one batch; where the padding does no harm, that is as good as any.
        for batching, size in (("one batch", len(studies)), ("one by one", 1))[: 2 if is_released else 1]:
            pairs = embed_pairs(model, studies.frame, load, BATCH_OF_IMAGES, text_batch_size=size)
            assert not pairs.failures, "all images were read before"
            found.setdefault(batching, {})[split] = ranks_of(pairs)
    return found


def ranks_of(pairs: EmbeddedPairs) -> dict[str, dict[str, list[float]]]:
    """By protocol and direction, ``(N,)``."""
    found = {}
    for protocol in PROTOCOLS:
        keys = hit_keys(pairs.studies, protocol)  # type: ignore[arg-type]
        right = positives_by_key(keys, keys)
        sides = (pairs.images, pairs.reports)
        found[protocol] = {
            direction: retrieval_ranks(queries, gallery, right).tolist()
            for direction, (queries, gallery) in zip(DIRECTIONS, (sides, sides[::-1]), strict=False)
        }
    return found


def run_once(arm: str, seed: int, table: Path, llm: str, folder: Path, settings: Settings) -> dict[str, Any]:
    """Train and measure, unless that was done already; the model is deleted."""
    kept = folder / "runs" / f"{arm}-{seed}{'-tuning' if settings.is_tuning else ''}.json"
    identity = {"settings": asdict(settings), "arm": ARMS[arm], "llm": Path(llm).name}
    if kept.is_file():
        record: dict[str, Any] = json.loads(kept.read_text())
        if {name: record[name] for name in identity} == identity:
            return record
    work = folder / "work" / f"{arm}-{seed}"
    shutil.rmtree(work, ignore_errors=True)
    model, seconds = train(arm, seed, table, llm, work, settings)
    log = [json.loads(line) for line in (model / "training_log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    record = {**identity, "cpu_seconds": seconds, "losses": losses, "ranks": measure(model, table)}
    shutil.rmtree(work)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(record))
    return record


def scores(
    name: str, ranks: Sequence[dict[str, Any]], studies: Manifest, split: str, protocol: str, direction: str
) -> TaskScores:
    """Mean over seeds of one arm; ``both`` asks from either side."""
    sides = DIRECTIONS[:2] if direction == "both" else (direction,)
    by_seed = np.array([_joined(found[split][protocol], sides) for found in ranks])
    values = np.stack([*((by_seed <= k).mean(0) for k in KS), (1 / by_seed).mean(0)], axis=1)
    is_both = direction == "both"
    where = f"{TITLES[protocol]}, {'both directions' if is_both else direction}"  # type: ignore[index]
    return TaskScores(
        task=name,
        provenance=Provenance(
            dataset=f"MedPix 2.0 thorax CT, {split}",
            class_set="none",
            label_source=PAIRING,
            protocol=f"{name}; {where}; mean of {len(ranks)} seeds",
        ),
        metrics=tuple(Metric(name=metric, n=len(values)) for metric in METRICS),
        patient_ids=np.tile(studies.frame["patient_id"].to_numpy(), len(sides)),
        weighted=mean_scores(values),
        direction=None if is_both else direction,  # type: ignore[arg-type]
    )


def _joined(found: dict[str, list[float]], sides: Sequence[str]) -> np.ndarray:
    return np.concatenate([found[side] for side in sides])


def seed_deviation(ranks: Sequence[dict[str, Any]], protocol: str) -> dict[str, float] | None:
    """Standard deviation over seeds of the metrics of dev, both directions; None of one seed."""
    if len(ranks) < 2:
        return None
    by_seed = np.array([_joined(found["validation"][protocol], DIRECTIONS[:2]) for found in ranks])
    values = [*((by_seed <= k).mean(1) for k in KS), (1 / by_seed).mean(1)]
    return {metric: float(np.std(value, ddof=1)) for metric, value in zip(METRICS, values, strict=True)}


def variants_of(records: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Ranks per row of the tables: the arms, and the released one a second time, its texts one by one."""
    variants = {arm: [record["ranks"]["one batch"] for record in of_arm] for arm, of_arm in records.items()}
    if BASELINE in records:
        variants[ONE_BY_ONE] = [record["ranks"]["one by one"] for record in records[BASELINE]]
    return variants


def summarize(records: dict[str, list[dict[str, Any]]], table: Path, num_resamples: int) -> dict[str, Any]:
    """Every number with its interval, differences to the released arm, chance, and what it cost."""
    variants = variants_of(records)
    document: dict[str, Any] = {
        "metrics": [],
        "differences": [],
        "chance": {},
        "seed_deviation": {},
        "cost": {},
    }
    for split in ("validation", "train"):
        studies = read_manifest(table).split(split)  # type: ignore[arg-type]
        for protocol in PROTOCOLS:
            keys = hit_keys(studies.frame, protocol)  # type: ignore[arg-type]
            counts = [len(rows) for rows in positives_by_key(keys, keys)]
            document["chance"][f"{split}, {protocol}"] = chance_levels(counts, len(studies), KS)
            for direction in DIRECTIONS:
                found = {
                    name: scores(name, ranks, studies, split, protocol, direction)
                    for name, ranks in variants.items()
                }
                where = {"split": split, "protocol": protocol, "direction": direction}
                for name, task in found.items():
                    document["metrics"] += _plain(task.results(num_resamples), arm=name, **where)
                    if BASELINE in found and name != BASELINE:
                        paired = task.minus(found[BASELINE], BASELINE, num_resamples)
                        document["differences"] += _plain(paired, arm=name, **where)
    for name, ranks in variants.items():
        document["seed_deviation"][name] = {
            protocol: seed_deviation(ranks, protocol) for protocol in PROTOCOLS
        }
    for arm, of_arm in records.items():
        document["cost"][arm] = {
            "cpu_seconds": [record["cpu_seconds"] for record in of_arm],
            "last_loss": [record["losses"][-1] if record["losses"] else None for record in of_arm],
        }
    return document


def _plain(results: Sequence[MetricResult], **where: str) -> list[dict[str, Any]]:
    return [{**where, "result": result.model_dump(mode="json")} for result in results]


def as_markdown(document: dict[str, Any], protocol: str = "report") -> str:
    """Tables of dev per direction, differences to the released arm, and what was learned of train."""
    heads = ["R@1", "R@5", "R@10", "MRR"]
    lines = []
    for direction in DIRECTIONS:
        lines += [f"\n### {direction.replace('_', ' ')}, {TITLES[protocol]}\n"]  # type: ignore[index]
        lines += _table(document["metrics"], "validation", protocol, direction, heads)
        chance = document["chance"][f"validation, {protocol}"]
        lines += [_line(["chance", *(f"{chance[metric]:.3f}" for metric in METRICS)])]
        if document["differences"]:
            lines += [f"\nDifference to {BASELINE} (*: the interval excludes 0)\n"]
            lines += _table(document["differences"], "validation", protocol, direction, heads)
    lines += ["\n### Training pairs, both directions: what was learned by heart\n"]
    lines += _table(document["metrics"], "train", protocol, "both", heads)
    chance = document["chance"][f"train, {protocol}"]
    return "\n".join([*lines, _line(["chance", *(f"{chance[metric]:.3f}" for metric in METRICS)])])


def _table(
    entries: Sequence[dict[str, Any]], split: str, protocol: str, direction: str, heads: Sequence[str]
) -> list[str]:
    wanted = {"split": split, "protocol": protocol, "direction": direction}
    rows: dict[str, list[str]] = {}
    for entry in entries:
        if all(entry[name] == value for name, value in wanted.items()):
            rows.setdefault(entry["arm"], []).append(_cell(entry["result"]))
    return [
        _line(["", *heads]),
        _line(["---"] * (len(heads) + 1)),
        *(_line([n, *c]) for n, c in rows.items()),
    ]


def _cell(result: dict[str, Any]) -> str:
    if result["value"] is None:
        return "undefined"
    low, high = result["ci_low"], result["ci_high"]
    is_difference = result["metric"].endswith("_difference")
    star = "*" if is_difference and not low <= 0 <= high else ""
    sign = "+" if is_difference else ""
    return f"{result['value']:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f}){star}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Settings]:
    """Read the command line; every field of :class:`Settings` is a flag."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cases", help="cases.jsonl of MedPix 2.0, its images beside it")
    parser.add_argument("llm", help="GGUF file or folder of a causal language model")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of what is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--tune", action="store_true", help="measure on a quarter of the training cases")
    parser.add_argument("--fp32", action="store_true", help="no bf16 autocast")
    parser.add_argument("--resamples", type=int, default=2000)
    numbers = {name: value for name, value in asdict(Settings()).items() if not isinstance(value, bool)}
    for name, value in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = parser.parse_args(arguments)
    chosen = {name: getattr(options, name) for name in numbers}
    return options, Settings(**chosen, is_bf16=not options.fp32, is_tuning=options.tune)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, write ``study.json``, and print the tables."""
    options, settings = parse(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    table = prepare(options.cases, options.output, settings)
    records: dict[str, list[dict[str, Any]]] = {arm: [] for arm in options.arms}
    for seed in options.seeds:  # a whole seed first: an interrupted study compares the same seeds
        for arm in options.arms:
            record = run_once(arm, seed, table, options.llm, options.output, settings)
            records[arm].append(record)
            last = record["losses"][-1] if record["losses"] else float("nan")
            print(f"seed {seed}, {arm}: {record['cpu_seconds']:.0f} CPU s, loss {last:.3f}", flush=True)
    document = {
        "settings": asdict(settings),
        "seeds": options.seeds,
        "llm": Path(options.llm).name,
        "sizes": {
            split: [len(part), part.frame["patient_id"].nunique()]
            for split in ("train", "validation")
            for part in [read_manifest(table).split(split)]  # type: ignore[arg-type]
        },
        **summarize(records, table, options.resamples),
    }
    name = "study_tuning.json" if settings.is_tuning else "study.json"
    (options.output / name).write_text(json.dumps(document, indent=1))
    print(as_markdown(document))


if __name__ == "__main__":
    main()
