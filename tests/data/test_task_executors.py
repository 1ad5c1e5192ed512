import pytest

from radtower.data.task_executors import ClusterPlan


@pytest.mark.parametrize("name", ["tasks", "num_workers", "memory_gb"])
def test_refuses_numbers_below_one(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        ClusterPlan(executor="local", **{name: 0})


def test_refuses_slurm_without_a_partition():
    with pytest.raises(ValueError, match="partition must be given for slurm, got None"):
        ClusterPlan(executor="slurm")
