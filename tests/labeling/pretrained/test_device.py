import pytest
import torch

from radtower.labeling.pretrained.device import find_device


def test_a_device_is_the_one_that_is_named_or_a_gpu_if_there_is_one():
    assert find_device("cpu") == torch.device("cpu")
    assert find_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("device", ["nowhere", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(ValueError, match=f"device must be one that torch has here, got '{device}'"):
        find_device(device)
