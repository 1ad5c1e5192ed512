"""Load modules of ``evaluate`` by path, with all its caches in a folder of the test run."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import evaluate
import pytest

import radtower

MODULES = Path(radtower.__file__).parent / "evaluation" / "evaluate_modules"


@pytest.fixture(scope="session")
def _evaluate_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    # One folder per run: the package of dynamic modules is imported once.
    root = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", root / "modules")
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", root / "metrics")
        patch.syspath_prepend(str(root / "modules"))
        yield root


@pytest.fixture
def load_module(_evaluate_caches: Path) -> Callable[..., Any]:
    """Load one of our modules by name."""

    def load(name: str) -> Any:
        # In memory: after an error, evaluate keeps the lock of its file, and the next module waits for it.
        return evaluate.load(str(MODULES / name), keep_in_memory=True)

    return load
