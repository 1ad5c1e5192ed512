"""Ask the package index about every pinned package: was it yanked, does it have known vulnerabilities?

``python .ci/audit.py requirements/dev.txt``. Advisories come with the JSON pages of PyPI, which some mirrors
do not serve; there the yanked mark is all that can be read, and the last line says so. Exit codes: 0 nothing
found, 1 something found, 2 the index could not be asked, so nothing is known.
"""

import argparse
import json
import os
import re
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

DEFAULT_INDEX = "https://pypi.org/simple"
TIMEOUT_S = 30
# Id of an advisory -> why it does not concern this project. Reviewed with every change of the pins.
ACCEPTED: dict[str, str] = {}
_PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s;#]+)")


@dataclass(frozen=True)
class Answer:
    """What the index says of one release; ``is_advised`` is False where it serves no advisories."""

    name: str
    version: str
    findings: tuple[str, ...]
    is_advised: bool


def read_pins(path: Path) -> list[tuple[str, str]]:
    """Return name and version of each pin of a requirements file.

    Raises:
        ValueError: If there are none.
    """
    pins = [
        found.groups()
        for line in path.read_text(encoding="utf-8").splitlines()
        if (found := _PIN.match(line))
    ]
    if not pins:
        raise ValueError(
            f"the file must pin packages as name==version, got none in {path}. Name another file."
        )
    return [(name, version) for name, version in pins]


def ask(index: str, name: str, version: str) -> Answer:
    """Ask for the advisories of a release, and where there are none to be had, for its yanked mark."""
    base = index.rstrip("/").removesuffix("/simple")
    # A build for one kind of machine, 2.13.0+cpu, has the advisories of its release.
    release = version.partition("+")[0]
    page = _get(f"{base}/pypi/{name}/{release}/json", "application/json")
    if page is not None:
        known = [advisory for advisory in page.get("vulnerabilities", ()) if not advisory.get("withdrawn")]
        open_ones = [advisory for advisory in known if not _is_accepted(advisory)]
        findings = [
            f"{each['id']}, fixed in {', '.join(each['fixed_in']) or 'no release'}" for each in open_ones
        ]
        findings += ["yanked"] if page["info"].get("yanked") else []
        return Answer(name, version, tuple(findings), is_advised=True)
    page = _get(f"{base}/simple/{name.lower()}/", "application/vnd.pypi.simple.v1+json") or {"files": []}
    files = [
        file
        for file in page["files"]
        if re.split(r"-", file["filename"])[1:2] == [release] or _is_source(file, release)
    ]
    findings = [] if files else ["not in the index"]
    findings += ["yanked"] if files and all(file.get("yanked") for file in files) else []
    return Answer(name, version, tuple(findings), is_advised=False)


def _is_accepted(advisory: dict) -> bool:
    return bool({advisory["id"], *advisory.get("aliases", ())} & ACCEPTED.keys())


def _is_source(file: dict, version: str) -> bool:
    return re.search(rf"-{re.escape(version)}\.(tar\.gz|zip)$", file["filename"]) is not None


def _get(url: str, accept: str) -> dict | None:
    """Return the JSON of a page, or None where the index has no such page."""
    if not url.startswith(("https://", "http://127.0.0.1")):
        raise ValueError(f"the index must be reached by https, got {url}. Set PIP_INDEX_URL.")
    request = urllib.request.Request(url, headers={"Accept": accept, "User-Agent": "radtower-audit"})  # noqa: S310 -- https, checked above
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310 -- https, checked above
            content: dict = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    return content


def main() -> int:
    """Print what was found, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("requirements", type=Path, nargs="?", default=Path("requirements/dev.txt"))
    path = parser.parse_args().requirements
    index = os.environ.get("PIP_INDEX_URL", DEFAULT_INDEX)
    try:
        pins = read_pins(path)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda pin: ask(index, *pin), pins))
    except (OSError, json.JSONDecodeError) as error:
        print(f"Nothing is known: the index could not be asked ({type(error).__name__}).")
        return 2
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for answer in answers:
        for finding in answer.findings:
            print(f"{answer.name} {answer.version}: {finding}")
    for name, reason in ACCEPTED.items():
        print(f"Accepted: {name}: {reason}")
    num_found = sum(bool(answer.findings) for answer in answers)
    num_unadvised = sum(not answer.is_advised for answer in answers)
    print(f"{num_found} of {len(pins)} packages have findings.")
    if num_unadvised:
        print(f"For {num_unadvised} of them the index serves no advisories: only the yanked mark was read.")
    return 1 if num_found else 0


if __name__ == "__main__":
    sys.exit(main())
