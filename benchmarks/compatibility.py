"""Load exported models in fresh environments, over HTTP, with and without RadTower, and write the table.

    python benchmarks/compatibility.py demo_output --environments DIR --output docs/compatibility.md

``demo_output`` is what `make demo` leaves. For each release of transformers a fresh virtual environment gets
torch and transformers only: text models are loaded there. Then pillow: image models and the dual tower. Then
RadTower itself. The Hub is that of the tests, on 127.0.0.1; differences are to the numbers of this process.
An environment that is there is used again, unless more than torch and transformers is in it already.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import compatibility_probe

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from local_hub import LocalHub, run_local_hub  # noqa: E402 -- the folder is named right above
from radtower.hub_cards.export import export_model  # noqa: E402

MODELS = ("labeler", "vision", "medclip")
TEXT = "llm_biencoder"
RELEASES = ("5.20.0", "5.23.0")
TOLERANCE = {"float32": 1e-4, "auto": 1e-4, "bfloat16": 0.1}
# How it is loaded: column of the table -> options.
WAYS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "auto": {"dtype": "auto"},
    "device_map": {"dtype": "float32", "device_map": "cpu"},
    "revision": {"dtype": "float32", "revision": "v1"},
    "subfolder": {"dtype": "float32", "subfolder": "inside"},
    "eager": {"dtype": "float32", "attn_implementation": "eager"},
    "sdpa": {"dtype": "float32", "attn_implementation": "sdpa"},
}


def exports(demo: Path, scratch: Path) -> dict[str, Path]:
    """Export the models of the demo, by name."""
    return {name: export_model(demo / name, scratch / name) for name in MODELS}


def publish(hub: LocalHub, name: str, folder: Path) -> str:
    """Put an export on the Hub as it is, tagged, and once more with the same files in a subfolder."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    repo = hub.make_repo("models", f"tester/{name}", is_private=False)
    commit = repo.add("export", files)
    repo.tags["v1"] = commit.oid
    nested = hub.make_repo("models", f"tester/{name}-inside", is_private=False)
    code = {path: content for path, content in files.items() if path.endswith(".py")}
    nested.add("export", code | {f"inside/{path}": content for path, content in files.items()})
    return f"tester/{name}"


def jobs_of(name: str, folder: Path, ways: Iterable[str]) -> list[dict[str, Any]]:
    """Every Auto class of an export with weights, in every way."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    autos = [auto for auto in config["auto_map"] if auto not in ("AutoConfig", "AutoModelForMaskedLM")]
    return [
        {
            "model": name,
            "class": config["auto_map"][auto].rsplit(".", 1)[-1],
            "auto": auto,
            "way": way,
            "source": f"tester/{name}-inside" if way == "subfolder" else f"tester/{name}",
            "options": WAYS[way],
        }
        for auto in autos
        for way in ways
    ]


def environment(folder: Path, release: str) -> Path:
    """Make a virtual environment with torch and one transformers, or find it; return its python.

    Raises:
        FileExistsError: If pillow is in it, as after a run: what loads without it, and without RadTower,
            could not be told any more.
    """
    python = folder / f"transformers-{release}" / "bin" / "python"
    if not python.exists():
        venv.create(python.parents[1], with_pip=True)
        install(python, "torch==2.13.0", f"transformers=={release}")
    elif subprocess.run([python, "-c", "import PIL"], capture_output=True, cwd="/").returncode == 0:
        raise FileExistsError(
            f"environments must have torch and transformers only, got {python.parents[1]} with pillow, as a "
            "run leaves it. Remove it."
        )
    return python


def install(python: Path, *what: str) -> None:
    """Install into an environment."""
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what]
    subprocess.run(command, check=True)


def run(python: Path, jobs: list[dict[str, Any]], variables: dict[str, str]) -> list[dict[str, Any]]:
    """Do the jobs in an environment."""
    probe = ROOT / "benchmarks" / "compatibility_probe.py"
    done = subprocess.run(
        [python, probe], input=json.dumps(jobs), capture_output=True, text=True, env=variables, cwd="/"
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if len(lines) < len(jobs):
        missing = len(jobs) - len(lines)
        raise RuntimeError(f"{missing} of {len(jobs)} jobs have no answer: {done.stderr[-800:]}")
    return [json.loads(line.removeprefix("RESULT ")) for line in lines]


def judged(result: dict[str, Any], expected: dict[tuple[str, str], list[float]]) -> str:
    """A cell: the largest difference to this process, or what went wrong."""
    if "error" in result:
        return f"no: {result['error'][:90]}"
    right = expected[result["model"], result["auto"]]
    if len(right) != len(result["numbers"]):
        return f"no: {len(result['numbers'])} numbers in place of {len(right)}"
    scale = max(1.0, *map(abs, right))
    largest = max(abs(a - b) for a, b in zip(result["numbers"], right, strict=True)) / scale
    is_right = largest <= TOLERANCE[result["options"]["dtype"]]
    return f"{largest:.0e}" if is_right else f"no: differs by {largest:.1e}"


def measure(given: argparse.Namespace, hub: LocalHub, scratch: Path) -> list[dict[str, Any]]:
    """Load everything everywhere; return a row per class, release, presence of RadTower and online or not."""
    folders = exports(given.demo, scratch)
    for name, folder in folders.items():
        publish(hub, name, folder)
    kinds = {name: json.loads((f / "config.json").read_text())["model_type"] for name, f in folders.items()}
    local = [job for name, folder in folders.items() for job in jobs_of(name, folder, ["float32"])]
    expected = {
        (job["model"], job["auto"]): compatibility_probe.numbers(
            job["auto"], str(folders[job["model"]]), dtype=compatibility_probe.DTYPES["float32"]
        )
        for job in local
    }
    jobs = [job for name, folder in folders.items() for job in jobs_of(name, folder, WAYS)]
    rows = []
    for release in given.releases:
        python = environment(given.environments, release)
        stages = {
            "torch, transformers": ([], [job for job in jobs if kinds[job["model"]] == TEXT]),
            "and pillow": (["pillow"], [job for job in jobs if kinds[job["model"]] != TEXT]),
            "and RadTower": (["accelerate>=1.1", "--editable", str(ROOT), f"transformers=={release}"], jobs),
        }
        for stage, (packages, wanted) in stages.items():
            if packages:
                install(python, *packages)
            home = scratch / f"home-{release}-{stage.replace(' ', '-')}"
            for network in ("online", "offline"):
                variables = hub.environment(home)
                if network == "offline":
                    variables |= {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
                for result in run(python, wanted, variables):
                    cell = judged(result, expected)
                    where = {"release": release, "stage": stage, "network": network}
                    rows.append({**result, **where, "cell": cell})
            print(f"{release}, {stage}: done", file=sys.stderr)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row per Auto class, release, packages and network; a column per way."""
    lines = [
        "| class | loaded by | transformers | installed | network | " + " | ".join(WAYS) + " |",
        "|---" * (5 + len(WAYS)) + "|",
    ]
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        key = (row["class"], row["auto"], row["release"], row["stage"], row["network"])
        cells.setdefault(key, {})[row["way"]] = row["cell"]
    for key, ways in sorted(cells.items()):
        lines.append("| " + " | ".join([*key, *(ways.get(way, "") for way in WAYS)]) + " |")
    return "\n".join(lines)


HEAD = """# Where it loads

Made by `python benchmarks/compatibility.py demo_output --environments DIR`; do not edit.

Models of `make demo`, exported, on a Hub on 127.0.0.1, loaded in fresh virtual environments by the Auto
classes: first with torch and transformers only (text), then with pillow (image and dual tower), both by
remote code (`trust_remote_code=True`), then with RadTower, where no remote code is used.

Cells: largest difference to the numbers of the exporting process, divided by the largest number where that is
above 1; `no:` is what went wrong. transformers itself asks for accelerate where a `device_map` is given.
`offline` is `HF_HUB_OFFLINE=1` after a first load. bfloat16 rounds.

"""


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="Folder of `make demo`.")
    parser.add_argument("--environments", type=Path, required=True, help="Where environments are made.")
    parser.add_argument("--releases", nargs="+", default=list(RELEASES), help="Of transformers.")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "compatibility.md")
    given = parser.parse_args()
    given.environments = given.environments.absolute()
    with tempfile.TemporaryDirectory() as scratch, run_local_hub() as hub:
        rows = measure(given, hub, Path(scratch))
    given.output.write_text(HEAD + table(rows) + "\n", encoding="utf-8")
    wrong = sum(row["cell"].startswith("no:") for row in rows)
    print(f"{len(rows)} loads, {wrong} wrong: {given.output}")


if __name__ == "__main__":
    main()
