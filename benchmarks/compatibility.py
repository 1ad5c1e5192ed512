"""Load exported models in fresh environments, over HTTP, with and without RadTower, and write the table.

    python benchmarks/compatibility.py demo_output --environments DIR --output docs/compatibility.md

``demo_output`` is what `make demo` leaves. For each release of transformers a fresh virtual environment gets
torch and transformers only: text models are loaded there. Then pillow: image models and the dual tower. Then
RadTower itself. The Hub is that of the tests, on 127.0.0.1; differences are to the numbers of this process.
An environment that is there is used again, unless more than torch and transformers is in it already.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import compatibility_probe
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from local_hub import LocalHub, run_local_hub  # noqa: E402 -- the folder is named right above
from radtower.hub_cards.export import export_model  # noqa: E402

WEIGHTS = "model.safetensors"
MODELS = ("labeler", "vision", "medclip")
TEXT = "llm_biencoder"
_PINS = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8").splitlines()
TORCH = next(line for line in _PINS if line.startswith("torch=="))
RELEASES = ("5.20.0", "5.23.0")
OLDER = "v1"  # a tag; its weights differ from those of the main branch
MAX_SHARD_SIZE = "200KB"
NEEDS_ACCELERATE = "needs accelerate"
TOLERANCE = {"float32": 1e-4, "auto": 1e-4, "bfloat16": 0.1}
Rows = dict[tuple[str, ...], tuple[str, ...]]  # what stands in front of a row -> its cells
# How it is loaded: column of the table -> options.
WAYS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "auto": {"dtype": "auto"},
    "device_map": {"dtype": "float32", "device_map": "cpu"},
    "shards": {"dtype": "float32"},
    "revision": {"dtype": "float32", "revision": OLDER},
    "subfolder": {"dtype": "float32", "subfolder": "inside"},
    "folder": {"dtype": "float32"},
    "eager": {"dtype": "float32", "attn_implementation": "eager"},
    "sdpa": {"dtype": "float32", "attn_implementation": "sdpa"},
}


def exports(demo: Path, scratch: Path) -> dict[str, Path]:
    """Export the models of the demo, by name."""
    return {name: export_model(demo / name, scratch / name) for name in MODELS}


def older(folder: Path, scratch: Path) -> Path:
    """The same export with weights a tenth smaller, as an earlier version of it."""
    copy = Path(shutil.copytree(folder, scratch / "older" / folder.name))
    weights = load_file(copy / WEIGHTS)
    smaller = {name: 0.9 * value if value.is_floating_point() else value for name, value in weights.items()}
    save_file(smaller, copy / WEIGHTS, metadata={"format": "pt"})
    return copy


def in_shards(folder: Path, scratch: Path) -> Path:
    """The same export with its weights in several files and their index."""
    copy = Path(shutil.copytree(folder, scratch / "shards" / folder.name))
    weights = load_file(copy / WEIGHTS)
    (copy / WEIGHTS).unlink()
    save_torch_state_dict(weights, copy, max_shard_size=MAX_SHARD_SIZE)
    return copy


def content(folder: Path) -> dict[str, bytes]:
    """Path in a folder -> its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def publish(hub: LocalHub, name: str, folder: Path, scratch: Path) -> None:
    """Put an export on the Hub: an older version and the newest, one in shards, one in a subfolder."""
    files = content(folder)
    repo = hub.make_repo("models", f"tester/{name}", is_private=False)
    repo.tags[OLDER] = repo.add("older", content(older(folder, scratch))).oid
    repo.add("newest", files)
    hub.make_repo("models", f"tester/{name}-shards", is_private=False).add(
        "shards", content(in_shards(folder, scratch))
    )
    nested = hub.make_repo("models", f"tester/{name}-inside", is_private=False)
    code = {path: text for path, text in files.items() if path.endswith(".py")}
    nested.add("export", code | {f"inside/{path}": text for path, text in files.items()})


def jobs_of(name: str, folder: Path, ways: Iterable[str]) -> list[dict[str, Any]]:
    """Every Auto class of an export with weights, in every way."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    autos = [auto for auto in config["auto_map"] if auto not in ("AutoConfig", "AutoModelForMaskedLM")]
    elsewhere = {
        "subfolder": f"tester/{name}-inside",
        "shards": f"tester/{name}-shards",
        "folder": str(folder),
    }
    return [
        {
            "model": name,
            "class": config["auto_map"][auto].rsplit(".", 1)[-1],
            "auto": auto,
            "way": way,
            "source": elsewhere.get(way, f"tester/{name}"),
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
        install(python, TORCH, f"transformers=={release}")
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


def judged(result: dict[str, Any], expected: dict[tuple[str, str, str], list[float]]) -> str:
    """A cell: the largest difference to this process, or what went wrong."""
    if "error" in result and "requires `accelerate`" in result["error"]:
        return NEEDS_ACCELERATE
    if "error" in result:
        return f"no: {result['error'][:90]}"
    version = OLDER if "revision" in result["options"] else "newest"
    right = expected[result["model"], result["auto"], version]
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
        publish(hub, name, folder, scratch)
    kinds = {name: json.loads((f / "config.json").read_text())["model_type"] for name, f in folders.items()}
    local = [job for name, folder in folders.items() for job in jobs_of(name, folder, ["float32"])]
    places = {"newest": scratch, OLDER: scratch / "older"}
    expected = {
        (job["model"], job["auto"], version): compatibility_probe.numbers(
            job["auto"], str(place / job["model"]), dtype=compatibility_probe.DTYPES["float32"]
        )
        for job in local
        for version, place in places.items()
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
    """Markdown: a row per Auto class, packages, release and network, where cells differ; a column per way."""
    lines = [
        "| class | loaded by | installed | transformers | network | " + " | ".join(WAYS) + " |",
        "|---" * (5 + len(WAYS)) + "|",
    ]
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        key = (row["class"], row["auto"], row["stage"], row["release"], row["network"])
        cells.setdefault(key, {})[row["way"]] = row["cell"]
    found = {key: tuple(ways.get(way, "") for way in WAYS) for key, ways in cells.items()}
    for column in (4, 3):  # network, transformers
        found = merged(found, column)
    lines += ["| " + " | ".join([*key, *ways]) + " |" for key, ways in sorted(found.items())]
    return "\n".join(lines)


def merged(
    rows: dict[tuple[str, ...], tuple[str, ...]], column: int
) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Rows that differ in one column of their key only become one, with all its values."""
    values: dict[tuple[Any, ...], list[str]] = {}
    for key, ways in rows.items():
        values.setdefault((key[:column], key[column + 1 :], ways), []).append(key[column])
    return {(*before, ", ".join(own), *after): ways for (before, after, ways), own in values.items()}


HEAD = """# Where it loads

Made by `python benchmarks/compatibility.py demo_output --environments DIR`; do not edit.

Models of `make demo`, exported, on a Hub on 127.0.0.1, loaded in fresh virtual environments by the Auto
classes: first with torch and transformers only (text), then with pillow (image and dual tower), both by
remote code (`trust_remote_code=True`), then with RadTower, where no remote code is used. Each load takes
configuration and tokenizer, image processor or processor by their Auto classes, too.

Cells: largest difference to the numbers of the exporting process, divided by the largest number where that is
above 1; `no:` is what went wrong. bfloat16 rounds. `needs accelerate`: transformers asks for that package
where a `device_map` is given. `offline` is `HF_HUB_OFFLINE=1` after a first load. `revision` is an older
version with other weights, `shards` has its weights in several files, `folder` is on disk. Releases and
networks whose cells are equal share a row.

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
    unmet = sum(row["cell"] == NEEDS_ACCELERATE for row in rows)
    print(f"{len(rows)} loads, {wrong} wrong, {unmet} without accelerate: {given.output}")


if __name__ == "__main__":
    main()
