"""Load modules of ``evaluate`` from the source of the package."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import radtower

MODULES = Path(radtower.__file__).parent / "evaluation" / "evaluate_modules"


@pytest.fixture
def load_module(load_metric: Callable[..., Any]) -> Callable[..., Any]:
    """Load one of our modules by name."""

    def load(name: str) -> Any:
        return load_metric(MODULES / name)

    return load
