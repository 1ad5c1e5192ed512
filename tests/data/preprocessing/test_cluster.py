import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from radtower.data.preprocessing.cluster import run_on_cluster
from radtower.data.task_executors import ClusterPlan
from radtower.data.volume_cache import build_volume_cache, open_volume_cache
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing, write_volume

SPACING_MM = (4.0, 2.0, 3.0)


@pytest.fixture
def processor() -> CT3DImageProcessor:
    return CT3DImageProcessor((5.0, 3.0, 4.0), (4, 6, 5))


@pytest.fixture
def manifest(tmp_path) -> Path:
    """Six scans, of which the third cannot be read."""
    lines = ["study_id,patient_id,image_path,report,split"]
    for seed in range(6):
        path = tmp_path / f"{seed}.nii.gz"
        array = np.random.default_rng(seed).integers(-1000, 800, (7, 9, 8)).astype(np.int16)
        affine = affine_from_spacing(SPACING_MM)
        write_volume(Volume(array, SPACING_MM, affine, "LPS", VolumeSource("test", "none")), path)
        lines.append(f"s{seed},p{seed},{path.name},none,train")
    (tmp_path / "2.nii.gz").write_bytes(b"damaged")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    return tmp_path / "manifest.csv"


def _assert_complete(folder, manifest, processor):
    cache = open_volume_cache(folder, processor)
    expected = build_volume_cache(
        {f"s{n}": manifest.parent / f"{n}.nii.gz" for n in range(6)}, processor, manifest.parent / "expected"
    )
    assert sorted(cache.volumes) == sorted(expected.volumes) == ["s0", "s1", "s3", "s4", "s5"]
    assert list(cache.failures) == ["s2"]
    for volume_id in cache.volumes:
        assert torch.equal(cache.volume_hu(volume_id), expected.volume_hu(volume_id))
    assert len(list((folder / "shards").iterdir())) == 1


@pytest.mark.slow
def test_local_tasks_fill_one_cache_and_repeat_nothing(manifest, processor, tmp_path):
    folder = tmp_path / "cache"
    plan = ClusterPlan(executor="local", tasks=3)
    assert run_on_cluster(plan, manifest, processor, folder) is None
    _assert_complete(folder, manifest, processor)
    (shard,) = (folder / "shards").iterdir()
    run_on_cluster(ClusterPlan(executor="local", tasks=2), manifest, processor, folder)
    assert list((folder / "shards").iterdir()) == [shard]


@pytest.mark.slow
def test_slurm_is_given_scripts_that_do_the_work(manifest, processor, tmp_path, slurm):
    folder = tmp_path / "cache"
    plan = ClusterPlan(executor="slurm", tasks=2, num_workers=1, partition="cpu", time="3:00:00", memory_gb=9)
    last = run_on_cluster(plan, manifest, processor, folder)
    script, tidying = (
        (folder / "logs" / name / "launch_script.slurm").read_text() for name in ("preprocess", "tidy")
    )
    for line in ("partition=cpu", "array=0-1", "cpus-per-task=1", "mem-per-cpu=9G", "time=3:00:00"):
        assert f"#SBATCH --{line}\n" in script
    assert "#SBATCH --array=0-0\n" in tidying
    (first,) = [path for path in slurm.glob("job?") if path.read_text() == script]
    assert (slurm / f"job{last}").read_text() == tidying
    assert (
        f"--dependency=afterany:{first.name.removeprefix('job')}" in (slurm / f"job{last}.args").read_text()
    )
    for name, rank in (("preprocess", "1"), ("preprocess", "0"), ("tidy", "0")):
        command = ["launch_pickled_pipeline", str(folder / "logs" / name / "executor.pik")]
        assert " ".join(command) in (script if name == "preprocess" else tidying)
        environment = os.environ | {"SLURM_ARRAY_TASK_ID": rank, "SLURM_NODELIST": "host"}
        subprocess.run(
            [Path(sys.executable).parent / command[0], command[1]],
            env=environment,
            check=True,
            capture_output=True,
        )
    _assert_complete(folder, manifest, processor)


def test_tasks_leave_a_cache_of_other_settings_alone(manifest, processor, tmp_path):
    build_volume_cache({"s0": manifest.parent / "0.nii.gz"}, processor, tmp_path / "cache")
    other = CT3DImageProcessor((5.0, 3.0, 2.0), (4, 6, 5))
    with pytest.raises(
        FileExistsError, match=r"spacing_mm \[5\.0, 3\.0, 4\.0\] instead of \[5\.0, 3\.0, 2\.0\]"
    ):
        run_on_cluster(ClusterPlan(executor="local"), manifest, other, tmp_path / "cache")


def test_refuses_slurm_where_there_is_none(manifest, processor, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="must find the command sbatch, got none"):
        run_on_cluster(
            ClusterPlan(executor="slurm", partition="cpu"), manifest, processor, tmp_path / "cache"
        )
    assert not (tmp_path / "cache").exists()
