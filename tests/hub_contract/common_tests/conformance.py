"""Run transformers' common tests on our classes and write docs/conformance.md: ``python conformance.py``."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
DOCUMENT = REPOSITORY / "docs" / "conformance.md"
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "src")]

from hub_contract.common_tests.skipping import OURS  # noqa: E402 -- the path comes first
from hub_contract.common_tests.source import cache_folder, fetch_common_tests  # noqa: E402

INTRODUCTION = """# transformers' own tests on our classes

Written by `tests/hub_contract/common_tests/conformance.py`, which downloads the source distribution of the
installed transformers (here {version}), takes its common tests from there, and runs our classes through them:
`ConfigTester`, `ModelTesterMixin`, `ImageProcessingTestMixin`, `ProcessorTesterMixin`. Nothing of them is
kept here. The distribution lacks the tests of text generation and of export formats. A slow
test runs the same.

| our class | passed | not for it | of no effect here |
|---|---|---|---|
{rows}

*Not for it*: skipped by us, for the reason below. *Of no effect here*: skipped by transformers, which asks
for hardware or a package that is not there, or finds nothing in the class that the test is about. Two of its
switches are off for CT3DVision, a convolutional network: `has_attentions` and `test_resize_embeddings`.

## Skipped by us

| reason | tests | classes |
|---|---|---|
{ours}

## Skipped by transformers

| reason | tests |
|---|---|
{theirs}
"""


@dataclass(frozen=True)
class Outcome:
    """What became of one test of one class; ``reason`` is why it was skipped or how it failed."""

    suite: str
    test: str
    kind: str
    reason: str = ""


def run_common_tests() -> list[Outcome]:
    """Run both suites in a process of their own.

    Raises:
        RuntimeError: If they could not be run at all.
    """
    paths = [*fetch_common_tests(cache_folder()), REPOSITORY / "tests", REPOSITORY / "src"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", str(HERE), "--rootdir", str(HERE), "-c", os.devnull),
                *("--noconftest", "--import-mode=importlib", "-o", "python_files=suite_*.py", "-q"),
                *("-p", "no:cacheprovider", "-W", "ignore", f"--junitxml={report}"),
            ],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        if done.returncode not in (0, 1) or not report.exists():
            raise RuntimeError(f"the common tests did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return [_outcome(case) for case in ElementTree.parse(report).iter("testcase")]


def _outcome(case: ElementTree.Element) -> Outcome:
    suite = case.attrib["classname"].rpartition(".")[2].removesuffix("Test")
    for child in case:
        if child.tag in ("failure", "error", "skipped"):
            return Outcome(suite, case.attrib["name"], child.tag, child.attrib.get("message", "")[:500])
    return Outcome(suite, case.attrib["name"], "passed")


def describe(outcomes: list[Outcome]) -> str:
    """The document, without anything of the machine."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    ours: defaultdict[str, list[Outcome]] = defaultdict(list)
    theirs: defaultdict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        is_ours = outcome.kind == "skipped" and outcome.reason.startswith(OURS)
        counts[outcome.suite]["ours" if is_ours else outcome.kind] += 1
        if is_ours:
            ours[outcome.reason.removeprefix(OURS)].append(outcome)
        elif outcome.kind == "skipped":
            theirs[_in_general(outcome)].append(outcome)
    return INTRODUCTION.format(
        version=importlib.metadata.version("transformers"),
        rows="\n".join(
            f"| {suite} | {count['passed']} | {count['ours']} | {count['skipped']} |"
            for suite, count in counts.items()
        ),
        ours="\n".join(
            f"| {reason} | {_names(found)} | {', '.join(sorted({one.suite for one in found}))} |"
            for reason, found in sorted(ours.items())
        ),
        theirs="\n".join(f"| {reason} | {_names(found)} |" for reason, found in sorted(theirs.items())),
    )


def _in_general(outcome: Outcome) -> str:
    """The reason without names of our classes and of the test, so that equal ones meet."""
    reason = " ".join(outcome.reason.split()).replace("|", "/")
    reason = re.sub(r"<class '[\w.]*'>", "the class", reason)
    return re.sub(r"\b(CT3DVision|LLMBiEncoder|MedCLIP)\w*( class)?", "the class", reason)


def _names(outcomes: list[Outcome]) -> str:
    return ", ".join(f"`{name}`" for name in sorted({one.test.removeprefix("test_") for one in outcomes}))


def main() -> int:
    """Write the document; 1 if a test failed."""
    outcomes = run_common_tests()
    failed = [one for one in outcomes if one.kind in ("failure", "error")]
    for one in failed:
        sys.stderr.write(f"{one.suite}.{one.test}: {one.reason}\n")
    if not failed:
        DOCUMENT.write_text(describe(outcomes), encoding="utf-8")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
