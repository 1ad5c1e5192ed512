from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.data.datasets import StudyDataset
from radtower.labeling.label_table import LabelRow, write_labels
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.training.clip.report_tokens import StudiesWithReports
from radtower.training.output_folder import require_same_model, require_same_run
from radtower.training.runs import ClipRun, LabelerRun
from radtower.training.train_medclip import train_medclip
from radtower.training.train_text import train_labeler
from radtower.training.train_vision import train_vision

SAVING = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture
def run(vision_run):
    return vision_run


def _checkpoints(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_a_run_does_not_begin_among_the_checkpoints_of_another(run, make_arguments, tmp_path):
    folder = train_vision(run, make_arguments(**SAVING))
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=f"no checkpoint of an earlier run, got 3 in {tmp_path / 'model'}"):
        train_vision(run, make_arguments(seed=1))
    assert (folder / "model.safetensors").read_bytes() == before
    overwriting = replace(run, should_overwrite=True)
    other = {**SAVING, "max_steps": 1, "seed": 1}
    train_vision(overwriting, make_arguments(**other))
    assert _checkpoints(folder) == ["checkpoint-1"]
    assert yaml.safe_load((folder / "checkpoint-1" / "run.yaml").read_text())["training"]["seed"] == 1
    with pytest.raises(ValueError, match="should_overwrite must be false where a run is resumed, got True"):
        train_vision(overwriting, make_arguments(**other, resume_from_checkpoint=True))
    assert _checkpoints(folder) == ["checkpoint-1"]


def test_a_folder_without_checkpoints_is_trained_into_again(run, make_arguments):
    folder = train_vision(run, make_arguments(learning_rate=0.0))
    before = (folder / "model.safetensors").read_bytes()
    assert (train_vision(run, make_arguments()) / "model.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ({"seed": 1, "learning_rate": 0.1}, "learning_rate 0.01 there and 0.1 now; seed 42 there and 1 now"),
        (
            {"optim": "sgd", "adam_beta1": 0.5},
            "adam_beta1 0.9 there and 0.5 now; optim 'adamw_torch.*' there and 'sgd' now",
        ),
        (
            {"data_seed": 3, "dataloader_drop_last": True},
            "data_seed None there and 3 now; dataloader_drop_last False there and True now",
        ),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type 'linear' there and 'cosine' now"),
    ],
)
def test_only_the_run_of_a_checkpoint_resumes_it(run, make_arguments, tmp_path, settings, got):
    train_vision(run, make_arguments(**SAVING))
    with pytest.raises(ValueError, match=rf"got {got} .*checkpoint-3"):
        train_vision(run, make_arguments(**SAVING, **settings, resume_from_checkpoint=True))
    checkpoint = str(tmp_path / "model" / "checkpoint-2")
    with pytest.raises(ValueError, match="got loss 'bce' there and 'asymmetric' now"):
        train_vision(
            replace(run, loss="asymmetric"), make_arguments("b", **SAVING, resume_from_checkpoint=checkpoint)
        )


def test_a_resumed_run_may_be_longer_calmer_and_elsewhere(run, make_arguments, tmp_path):
    train_vision(run, make_arguments(**SAVING))
    (tmp_path / "node").symlink_to(run.cache)
    longer = make_arguments(
        **SAVING | {"max_steps": 4},
        max_grad_norm=0.5,
        resume_from_checkpoint=str(tmp_path / "model/checkpoint-3"),
    )
    folder = train_vision(replace(run, cache=str(tmp_path / "node")), longer)
    assert _checkpoints(folder)[-1] == "checkpoint-4"


def test_the_findings_in_another_order_are_refused(run, make_arguments, tmp_path):
    train_vision(run, make_arguments(**SAVING))
    rows = []
    for row in pq.read_table(run.labels).to_pylist():
        structs = {name: dict(reversed(row[name].items())) for name in ("status", "score", "evidence")}
        rows.append(LabelRow(**row | structs))
    write_labels(rows, tmp_path / "labels.parquet")
    other = replace(run, labels=str(tmp_path / "labels.parquet"))
    with pytest.raises(ValueError, match=r"got id2label\.0 'nodule' there and 'effusion' now; id2label\.1"):
        train_vision(other, make_arguments(**SAVING, resume_from_checkpoint=True))


def _classifier(**settings):
    given = {"hidden_sizes": [4, 8], "layers": [1, 1], "num_labels": 2, "image_size": [8, 8, 8]}
    return CT3DVisionForImageClassification(CT3DVisionConfig(**given | settings))


def test_a_checkpoint_of_another_model_or_processor_is_refused(tmp_path):
    processor = CT3DImageProcessor(spacing_mm=(3, 3, 3), size=(8, 8, 8))
    _classifier().to(torch.bfloat16).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    require_same_model(tmp_path, _classifier(), processor)
    with pytest.raises(ValueError, match="got pooling 'avg' there and 'max' now"):
        require_same_model(tmp_path, _classifier(pooling="max"), processor)
    with pytest.raises(ValueError, match=r"got stem_stride \[.*\] there and \[1, 1, 1\] now"):
        require_same_model(tmp_path, _classifier(stem_stride=[1, 1, 1]), processor)
    other = CT3DImageProcessor(spacing_mm=(3, 3, 4), size=(8, 8, 8))
    with pytest.raises(ValueError, match=r"got spacing_mm \[3.0, 3.0, 3.0\] there and \[3.0, 3.0, 4.0\] now"):
        require_same_model(tmp_path, _classifier(), other)


def test_a_folder_that_is_no_checkpoint_is_refused(run, make_arguments, tmp_path):
    with pytest.raises(ValueError, match=r"must be the folder of a checkpoint, got no config.json in .*nope"):
        train_vision(run, make_arguments(resume_from_checkpoint=str(tmp_path / "nope")))
    with pytest.raises(ValueError, match=rf"must hold run.yaml to be resumed, got none in {tmp_path}"):
        require_same_run(tmp_path, run, make_arguments())


@pytest.fixture
def clip_run(study_folder, vision_folder, text_folder):
    return ClipRun(
        manifest=str(study_folder / "manifest.csv"),
        cache=str(study_folder / "cache"),
        vision=str(vision_folder),
        text=str(text_folder),
        labels=str(study_folder / "labels.parquet"),
        projection_dim=8,
        max_length=64,
    )


@pytest.fixture
def labeler_run(study_folder, tiny_llm_folder):
    return LabelerRun(
        manifest=str(study_folder / "manifest.csv"),
        gold=str(study_folder / "gold.csv"),
        llm=str(tiny_llm_folder),
        max_length=64,
    )


@pytest.mark.parametrize(
    ("kind", "train", "name"),
    [
        ("clip_run", train_medclip, "visual_projection.weight"),
        ("labeler_run", train_labeler, "finding_attention.query.weight"),
    ],
)
def test_the_other_runs_go_on_from_their_last_checkpoint(request, make_arguments, kind, train, name):
    run = request.getfixturevalue(kind)
    whole = train(run, make_arguments("whole", **SAVING))
    train(run, make_arguments("killed", **SAVING))
    for path in (whole.parent / "killed").glob("checkpoint-[23]/trainer_state.json"):
        path.unlink()
    again = train(run, make_arguments("killed", **SAVING, resume_from_checkpoint=True))
    first, left, right = (
        load_file(folder / "model.safetensors") for folder in (whole / "checkpoint-1", whole, again)
    )
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert not torch.equal(first[name], right[name])
    with pytest.raises(ValueError, match="max_length 64 there and 32 now"):
        train(replace(run, max_length=32), make_arguments("killed", **SAVING, resume_from_checkpoint=True))


def _changed_manifest(run, folder, change):
    """The manifest as ``change`` makes it, in a folder of its own."""
    frame = change(pd.read_csv(run.manifest))
    frame["image_path"] = [str(Path(run.manifest).parent / name) for name in frame["image_path"]]
    folder.mkdir(exist_ok=True)
    frame.to_csv(folder / "manifest.csv", index=False)
    return replace(run, manifest=str(folder / "manifest.csv"))


def _rotated(frame):
    return frame.assign(report=[*frame["report"][1:], frame["report"][0]])


def test_only_the_data_of_a_checkpoint_resume_it(clip_run, make_arguments, tmp_path):
    run = replace(clip_run, labels=None)
    train_medclip(run, make_arguments(**SAVING | {"max_steps": 1}))
    longer = SAVING | {"max_steps": 2, "resume_from_checkpoint": str(tmp_path / "model" / "checkpoint-1")}
    rotated = _changed_manifest(run, tmp_path / "rotated", _rotated)
    with pytest.raises(ValueError, match=r"got data '\w+\.\.\.\w+' there and '\w+\.\.\.\w+' now"):
        train_medclip(rotated, make_arguments("b", **longer))
    same = _changed_manifest(run, tmp_path / "same", lambda frame: frame)
    assert (train_medclip(same, make_arguments("b", **longer)) / "model.safetensors").is_file()


def test_the_hash_of_studies_changes_with_every_table_and_with_their_order():
    ids = ["a", "b", "c"]
    tables = {
        "targets": np.eye(3, 2),
        "pair_keys": torch.tensor([[1, 4], [2, 5], [3, 6]]),
        "token_ids": [torch.tensor([7, 8]), torch.tensor([9]), torch.tensor([7])],
    }

    def hashed(ids=ids, **changes):
        return StudiesWithReports(ids, str, **tables | changes).sha256()

    found = [hashed(), hashed(["a", "c", "b"])]
    found += [
        hashed(**{name: [*table[1:], table[0]]}) for name, table in tables.items() if name == "token_ids"
    ]
    found += [hashed(targets=np.eye(3, 2)[::-1].copy()), hashed(targets=None)]
    found += [hashed(pair_keys=tables["pair_keys"].flip(0)), hashed(pair_keys=None)]
    found += [hashed(token_ids=[torch.tensor([7]), torch.tensor([8, 9]), torch.tensor([7])])]
    found += [hashed(ids[:2], **{name: table[:2] for name, table in tables.items()})]
    assert len(set(found)) == len(found) == 9
    assert hashed() == found[0]


def test_vectors_of_reports_are_hashed_where_no_keys_stand_for_them():
    features, keys = torch.eye(2), torch.tensor([[1], [2]])
    plain, keyed = (
        [
            StudyDataset(["a", "b"], str, text_features=values, pair_keys=kept).sha256()
            for values in (features, features + 1e-6)
        ]
        for kept in (None, keys)
    )
    assert plain[0] != plain[1]
    assert keyed[0] == keyed[1]
