"""Find the device that a model is to run on."""

import torch


def find_device(device: str | None) -> torch.device:
    """Find a device; meant to be called before weights are read.

    Args:
        device: Of torch; None is the GPU where there is one, else the CPU.

    Raises:
        ValueError: If torch has no such device here.
    """
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError):  # the latter is how torch says that it has no CUDA
        raise ValueError(
            f"device must be one that torch has here, got {device!r}. Take cpu, or leave it out."
        ) from None
    return place
