"""Our classes pass the tests that transformers has for its own; docs/conformance.md says what is left out."""

import subprocess

import pytest

from hub_contract.common_tests.conformance import DOCUMENT, run_common_tests
from hub_contract.common_tests.skipping import OURS
from hub_contract.common_tests.source import cache_folder, fetch_common_tests

SUITES = {  # the fewest tests that must have passed; a suite that silently ran nothing would pass, too
    "CT3DVision": 40,
    "LLMBiEncoder": 80,
    "MedCLIP": 80,
    "MedCLIPOfPictures": 80,
    "CT3DImageProcessor": 12,
    "MedCLIPProcessor": 24,
    "MedCLIPProcessorOfPictures": 24,
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_our_classes_pass_the_common_tests_of_transformers_and_the_document_names_what_is_left_out():
    try:
        fetch_common_tests(cache_folder())
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no package index gives the source distribution of transformers: {error.stderr[-300:]}")

    outcomes = run_common_tests()

    assert [one for one in outcomes if one.kind in ("failure", "error")] == []
    passed = {suite: sum(one.suite == suite and one.kind == "passed" for one in outcomes) for suite in SUITES}
    assert {suite: number for suite, number in passed.items() if number < SUITES[suite]} == {}
    left_out = {one.reason for one in outcomes if one.reason.startswith(OURS)}
    document = DOCUMENT.read_text(encoding="utf-8")
    assert [reason for reason in left_out if f"| {reason.removeprefix(OURS)} |" not in document] == []
