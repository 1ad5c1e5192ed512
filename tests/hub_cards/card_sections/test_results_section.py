"""The level and the making of an interval are part of a number."""

import json

import pytest

from radtower.hub_cards.card_sections.results_section import model_index, results_section


@pytest.fixture
def measured(make_results):
    return json.loads(make_results().read_text())


def test_intervals_say_how_they_were_made(measured):
    section = results_section(measured)
    assert section.startswith("| metric | value | 95 % CI | n | class set | label source | data |\n")
    assert section.endswith(" |\n\nIntervals: percentile, 50 resamples.")
    measured["not_measured"] = ["retrieval: no reports."]
    assert results_section(measured).endswith("resamples.\n\nNot measured: retrieval: no reports.")


def test_the_level_of_an_interval_is_that_of_the_results(measured):
    for item in measured["metrics"]:
        item["ci_level"] = 0.9
    assert "| 90 % CI |" in results_section(measured)
    measured["metrics"][0]["ci_level"] = 0.99
    section = results_section(measured)
    assert "| CI |" in section
    assert "| 0.614 to 0.828 (99 %) |" in section
    assert "| 0.552 to 0.759 (90 %) |" in section


def test_a_bar_in_a_name_is_no_column(measured):
    measured["metrics"][0]["dataset"] = "a | b"
    assert r"| a \| b |" in results_section(measured)


@pytest.mark.parametrize(
    ("phantom", "name", "kind"),
    [
        (False, "someone/CT-RATE, validation", "someone/CT-RATE"),
        (False, "manifest, test", "private"),
        (True, "someone/CT-RATE", "phantom"),
    ],
)
def test_the_index_names_a_benchmark_by_its_id(measured, phantom, name, kind):
    measured["phantom"] = phantom
    for item in measured["metrics"]:
        item["dataset"] = name
    index = model_index(measured, "image-classification")
    assert [(item.dataset_type, item.dataset_name) for item in index] == [(kind, name)] * 2
    assert model_index(None, "image-classification") == []
