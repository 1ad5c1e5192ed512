import datasets
import pytest


@pytest.fixture(autouse=True)
def _no_wait_between_passes(monkeypatch):
    """At the end of a pass, datasets waits five seconds for threads that read."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05)
