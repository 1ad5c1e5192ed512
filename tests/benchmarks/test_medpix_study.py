"""The arithmetic of the study, and all of it in miniature; the real one takes minutes per seed."""

import importlib.util
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import ViTImageProcessorPil

from radtower.data.manifest import read_manifest
from radtower.evaluation.pairs.embedded_pairs import load_dual_tower

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "medpix_study.py"
CAPTIONS = ["no nodule", "small nodule", "There is effusion", "no effusion", "nodule present"]


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("medpix_study", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["medpix_study"] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["medpix_study"]


@pytest.fixture
def cases(tmp_path):
    """Ten images of train, six of dev with a caption that comes twice, and one of test."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    splits = ["train"] * 10 + ["dev"] * 6 + ["test"]
    lines = []
    for number, split in enumerate(splits):
        Image.fromarray(rng.integers(0, 256, (30, 20 + number), dtype=np.uint8)).save(
            tmp_path / "data" / "images" / f"i{number}.png"
        )
        of_split = number if split == "train" else number - 10
        caption = f"{CAPTIONS[of_split % 5]} {of_split // 5 if split == 'train' else ''}".strip()
        lines.append(
            {"image": f"i{number}.png", "uid": f"c{number // 2}", "split": split, "caption": caption}
        )
    (tmp_path / "data" / "cases.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return tmp_path / "data" / "cases.jsonl"


@pytest.fixture
def settings(study):
    return study.Settings(
        steps=2,
        batch_size=4,
        warmup_steps=0,
        learning_rate=0.01,
        image_size=16,
        patch_size=8,
        width=16,
        layers=1,
        projection_dim=8,
        llm_layers=2,
        max_length=140,
        is_bf16=False,
    )


def test_arms_differ_in_how_texts_are_read(study):
    released, repaired, trained = (study.ARMS[name] for name in ("as_released", "repaired", "trained_prompt"))
    assert {name for name in released if released[name] != repaired[name]} == {"prompt_padding"}
    changed = {name for name in repaired if repaired[name] != trained.get(name, False)}
    assert changed == {"text_mode"}
    assert trained["instruction"] == "\nQuery:{text}"
    assert study.ARMS["mean"] == {"llm_pooling": "mean", "bidirectional": False}


def test_images_are_what_the_processor_would_make_of_them_and_test_is_not_touched(
    study, cases, settings, tmp_path
):
    table = study.prepare(cases, tmp_path / "out", settings)
    frame = read_manifest(table).frame
    assert frame["split"].value_counts().to_dict() == {"train": 10, "validation": 6}
    assert not (tmp_path / "out" / "images_16" / "i16.png").exists()
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    original = Image.open(cases.parent / "images" / "i3.png").convert("RGB")
    small = Image.open(tmp_path / "out" / "images_16" / "i3.png")
    assert small.size == (16, 16)
    expected = processor(original, return_tensors="pt")["pixel_values"]
    assert (processor(small, return_tensors="pt")["pixel_values"] == expected).all()


def test_tuning_leaves_dev_alone(study, cases, settings, tmp_path):
    table = study.prepare(cases, tmp_path / "out", replace(settings, is_tuning=True))
    frame = read_manifest(table).frame
    assert len(frame) == 10
    held = set(frame["patient_id"][frame["split"] == "validation"])
    assert held
    assert held <= {f"c{number}" for number in range(5)}
    assert table.name != study.prepare(cases, tmp_path / "out", settings).name


def ranks(image_to_report, report_to_image):
    both = {"image_to_report": image_to_report, "report_to_image": report_to_image}
    return {split: dict.fromkeys(("report", "exact-row"), both) for split in ("train", "validation")}


def a_table(tmp_path, num=4):
    rows = ["study_id,patient_id,image_path,report,split"]
    for split in ("train", "validation"):
        rows += [f"{split}{n},{split}{n // 2},i.png,report {n},{split}" for n in range(num)]
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "manifest.csv"


def test_a_number_is_the_mean_over_seeds_and_the_queries_of_both_sides(study, tmp_path):
    studies = read_manifest(a_table(tmp_path)).split("validation")
    seeds = [ranks([1, 2, 1, 4], [2, 2, 1, 1]), ranks([1, 1, 1, 2], [5, 2, 2, 1])]
    one = study.scores("arm", seeds, studies, "validation", "report", "image_to_report")
    assert one.values()[[0, 3]] == pytest.approx([5 / 8, (1 + 0.5 + 1 + 0.25 + 1 + 1 + 1 + 0.5) / 8])
    both = study.scores("arm", seeds, studies, "validation", "report", "both")
    assert both.values()[0] == pytest.approx((5 + 3) / 16)
    assert list(both.patient_ids) == ["validation0", "validation0", "validation1", "validation1"] * 2
    assert both.direction is None
    result = both.results(50)[0]
    assert result.n == 8
    assert result.protocol == "arm; same report, both directions; mean of 2 seeds"
    assert study.seed_deviation(seeds, "report")["recall_at_1"] == pytest.approx(np.std([4, 4], ddof=1) / 8)
    assert study.seed_deviation(seeds, "report")["mrr"] == pytest.approx(0.05 / 8 / 2**0.5)
    assert study.seed_deviation(seeds[:1], "report") is None


def a_record(found):
    batchings = {"one batch": found, "one by one": found}
    return {"ranks": batchings, "cpu_seconds": 5.0, "losses": [2.0, 1.5]}


def test_differences_are_paired_with_the_released_arm(study, tmp_path):
    worst, best = [12] * 12, [1] * 12
    records = {"as_released": [a_record(ranks(worst, worst))], "mean": [a_record(ranks(best, worst))]}
    document = study.summarize(records, a_table(tmp_path, 12), 100)
    where = {"split": "validation", "protocol": "report", "direction": "image_to_report", "arm": "mean"}
    found = [e["result"] for e in document["differences"] if where.items() <= e.items()]
    assert found[0]["value"] == 1.0
    assert document["cost"]["mean"] == {"cpu_seconds": [5.0], "last_loss": [1.5]}
    text = study.as_markdown(document)
    assert "| mean | +1.000 (+1.000 to +1.000)* |" in text
    assert "| as_released, texts one by one | +0.000 (+0.000 to +0.000) |" in text
    assert "| chance | 0.083 | 0.417 | 0.833 |" in text


@pytest.mark.slow
def test_the_whole_study_in_miniature(study, cases, settings, tiny_llm_folder, tmp_path, capsys, monkeypatch):
    numbers = {n: v for n, v in asdict(settings).items() if not isinstance(v, bool)}
    flags = [part for name, value in numbers.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    common = [
        str(cases),
        str(tiny_llm_folder),
        "-o",
        str(tmp_path / "out"),
        "--fp32",
        "--resamples",
        "20",
        *flags,
    ]
    monkeypatch.setattr(study, "KS", (1, 2))
    monkeypatch.setattr(study, "METRICS", ("recall_at_1", "recall_at_2", "mrr"))
    moved = {}
    measure = study.measure

    def watched(folder, table):
        tower = load_dual_tower(folder).text_model
        moved[tower.config.prompt_padding, tower.config.pooling, len(moved)] = tower.soft_prompt
        return measure(folder, table)

    monkeypatch.setattr(study, "measure", watched)
    study.main([*common, "--seeds", "3"])
    released, repaired, trained, mean = moved.values()
    assert [key[:2] for key in moved] == [
        ("legacy_middle", "last_token"),
        ("contiguous", "last_token"),
        ("contiguous", "last_token"),
        ("contiguous", "mean"),
    ]
    assert mean is None
    assert (released.weight == repaired.weight).all()
    assert not (trained.weight == repaired.weight).all()
    document = json.loads((tmp_path / "out" / "study.json").read_text())
    assert document["sizes"] == {"train": [10, 5], "validation": [6, 3]}
    assert set(document["seed_deviation"]) == {*study.ARMS, study.ONE_BY_ONE}
    assert "training pairs" in capsys.readouterr().out.lower()
    study.main([*common, "--seeds", "3"])  # nothing is trained a second time
    assert len(moved) == 4
    assert json.loads((tmp_path / "out" / "study.json").read_text()) == document
    study.main([*common, "--seeds", "3", "--arms", "mean", "--learning-rate", "0.02"])
    assert len(moved) == 5
    assert not (tmp_path / "out" / "work" / "mean-3").exists()
