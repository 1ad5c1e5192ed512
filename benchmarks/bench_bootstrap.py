"""Time and memory of the patient bootstrap against the usual loop over scikit-learn.

    python benchmarks/bench_bootstrap.py              # as large as the CT-RATE validation split
    python benchmarks/bench_bootstrap.py --items 500 --loop-resamples 50

Both compute the AUROC of every finding in the same resamples, and their intervals are compared. The loop is
what an evaluation script has: draw patients, index, call ``roc_auc_score`` per finding. It runs
``--loop-resamples`` of the resamples only, in turns with ours, and its time for all is extrapolated, which is
fair because every resample takes it as long. Beside it the whole of what ``radtower evaluate zero-shot``
reports, average precision and decisions included, which the loop does not do.
Axes: N items, F findings, R resamples.
"""

import argparse
import resource
import statistics
import time

import numpy as np
from sklearn.metrics import roc_auc_score

from radtower.evaluation.bootstrap import resample_counts
from radtower.evaluation.decisions.finding_metrics import decision_results, ranking_results
from radtower.evaluation.decisions.finding_scores import FindingScores
from radtower.evaluation.decisions.thresholds import choose_thresholds
from radtower.evaluation.metrics import bootstrap_auroc
from radtower.evaluation.results import Provenance

TURNS = 3


def simulated(num_items: int, num_findings: int) -> FindingScores:
    """Findings as frequent as those of CT-RATE, 2.3 items per patient, scores with some ties."""
    rng = np.random.default_rng(0)
    patients = np.sort(rng.integers(0, max(2, int(num_items / 2.3)), num_items))
    labels = (rng.random((num_items, num_findings)) < np.linspace(0.07, 0.45, num_findings)).astype(float)
    scores = np.round(rng.normal(labels), 3)
    keys = [f"finding {column}" for column in range(num_findings)]
    return FindingScores(scores=scores, labels=labels, patient_ids=patients, keys=keys)


def loop(sample: FindingScores, counts: np.ndarray) -> np.ndarray:
    """AUROC of every finding in the resamples ``counts`` ``(R, N)``, one by one."""
    values = np.empty((len(counts), len(sample.keys)))
    for row, repeats in enumerate(counts):
        rows = np.repeat(np.arange(len(repeats)), repeats)
        for column in range(len(sample.keys)):
            values[row, column] = roc_auc_score(sample.labels[rows, column], sample.scores[rows, column])
    return values


def peak_mb() -> float:
    """Peak of the resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure both, in turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=3039)
    parser.add_argument("--findings", type=int, default=18)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--loop-resamples", type=int, default=20)
    options = parser.parse_args()
    sample = simulated(options.items, options.findings)
    before = peak_mb()
    ours, loops = [], []
    for _ in range(TURNS):
        start = time.perf_counter()
        intervals, _macro = bootstrap_auroc(
            sample.scores, sample.labels, sample.patient_ids, options.resamples
        )
        ours.append(time.perf_counter() - start)
        counts = next(resample_counts(sample.patient_ids, options.loop_resamples, seed=0))
        start = time.perf_counter()
        values = loop(sample, counts)
        loops.append((time.perf_counter() - start) / options.loop_resamples * options.resamples)
    few, _ = bootstrap_auroc(sample.scores, sample.labels, sample.patient_ids, options.loop_resamples)
    lows = np.quantile(values, 0.025, axis=0)
    largest = max(abs(interval.low - low) for interval, low in zip(few, lows, strict=True))
    fast, slow = statistics.median(ours), statistics.median(loops)
    print(f"{options.items} items, {options.findings} findings, {options.resamples} resamples, AUROC")
    print(f"  ours                       {fast:8.2f} s")
    print(f"  loop over roc_auc_score    {slow:8.2f} s, extrapolated from {options.loop_resamples} resamples")
    print(f"  ratio                      {slow / fast:8.0f}")
    print(f"  largest difference of a bound on the same resamples: {largest:.1e}")
    provenance = Provenance(dataset="simulated", class_set="simulated", label_source="simulated")
    start = time.perf_counter()
    results = ranking_results(sample, provenance, num_resamples=options.resamples)
    thresholds = choose_thresholds(sample.scores, sample.labels, "max_f1")
    results += decision_results(sample, thresholds, provenance, num_resamples=options.resamples)
    print(f"  {len(results)} metrics with intervals   {time.perf_counter() - start:8.2f} s")
    print(f"  peak memory above the data {peak_mb() - before:8.0f} MB ({len(intervals)} intervals)")


if __name__ == "__main__":
    main()
