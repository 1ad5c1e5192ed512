"""How the finding attention reads a frozen LLM: pooling, layers, scale, ensembles; cross-validated.

    python benchmarks/labeler_heads.py ct_rate_reports.parquet SmolLM2-135M-Instruct.Q4_1.gguf

Nothing but the head is trained, on states that are computed once (under bf16 autocast, stored as bf16), so
that a variant takes seconds per fold. The ``test`` split of the table is fold 0, never trained on and not
measured unless it is named; the rest goes to folds 1 to 4 by hash of the patient. Choose on those.
Axes: T tokens, W features of a layer, K layers, N reports, F findings.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn

from radtower.data.reports.report_corpus import ReportTable, read_report_table
from radtower.evaluation.metrics import macro_auroc
from radtower.modeling.llm_biencoder.modeling_finding_attention import SENTENCE_BIAS, FindingAttention
from radtower.modeling.llm_biencoder.modeling_sentence_bounds import sentence_of, sentence_table
from radtower.modeling.losses import masked_binary_cross_entropy
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

BATCH = 8
WARMUP = 40
TEST_FOLD = 0


@dataclass(frozen=True)
class Variant:
    """One way to read; ``layers`` are places in ``--layers``."""

    name: str
    pooling: str = "sentences"
    layers: tuple[int, ...] = (0, 1)
    is_standardized: bool = True
    epochs: int = 12
    smoothing: float = 0.0
    num_seeds: int = 1


VARIANTS = (
    Variant("over all tokens, last layer", pooling="tokens", layers=(1,)),
    Variant("over all tokens, both layers", pooling="tokens"),
    Variant("by sentence, lower layer", layers=(0,)),
    Variant("by sentence, last layer", layers=(1,)),
    Variant("by sentence, both layers"),
    Variant("by sentence, both layers, not standardized", is_standardized=False),
    Variant("by sentence, both layers, 24 epochs", epochs=24),
    Variant("by sentence, both layers, labels smoothed by 0.05", smoothing=0.05),
    Variant("by sentence, both layers, mean of 3 seeds", num_seeds=3),
)


@dataclass
class Reports:
    """States ``(T, K W)`` and sentence numbers ``(T,)`` per report, targets ``(N, F)``, folds ``(N,)``."""

    states: list[torch.Tensor]
    sentences: list[torch.Tensor]
    targets: torch.Tensor
    folds: np.ndarray

    def batch(self, rows: Sequence[int], columns: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Padded states, mask and sentence numbers."""
        states = [self.states[row][:, columns].float() for row in rows]
        masks = [torch.ones(len(state)) for state in states]
        numbers = [self.sentences[row] for row in rows]
        return tuple(nn.utils.rnn.pad_sequence(part, True) for part in (states, masks, numbers))


def read(table: ReportTable, llm: str, layers: Sequence[int], max_length: int) -> Reports:
    """Run the language model, causal as it was trained, over every report."""
    encoder = LLMBiEncoder.from_llm(llm, pooling="mean", bidirectional=False).eval()
    tokenizer, decoder = encoder.tokenizer, encoder.model
    words = sentence_table(tokenizer, decoder.get_input_embeddings().num_embeddings)
    frame = table.frame
    ids = tokenizer(list(frame["report"]), max_length=max_length, truncation=True)["input_ids"]
    states: list[torch.Tensor] = []
    numbers: list[torch.Tensor] = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for row in ids:
            tokens = torch.tensor([row])
            hidden = decoder(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states
            states.append(torch.cat([hidden[layer][0].bfloat16() for layer in layers], dim=1))
            numbers.append(sentence_of(tokens, torch.ones_like(tokens), words)[0])
    targets = torch.from_numpy(table.labels)
    folds = [
        TEST_FOLD if split == "test" else 1 + int(hashlib.sha256(patient.encode()).hexdigest(), 16) % 4
        for split, patient in zip(frame["split"], frame["patient_id"], strict=True)
    ]
    return Reports(states, numbers, targets, np.array(folds))


def train(
    reports: Reports, rows: np.ndarray, columns: torch.Tensor, variant: Variant, seed: int
) -> nn.Module:
    """Train a head on ``rows``."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    head = FindingAttention(len(columns), reports.targets.shape[1], variant.pooling)
    nn.init.normal_(head.query.weight, std=0.02)
    nn.init.normal_(head.score.weight, std=0.02)
    nn.init.constant_(head.score.bias, SENTENCE_BIAS if variant.pooling == "sentences" else 0.0)
    if variant.is_standardized:
        head.standardize(torch.cat([reports.states[row][:, columns].float() for row in rows[:128]]))
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=0.01)
    total = variant.epochs * -(-len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, 1 - step / total)
    )
    for _ in range(variant.epochs):
        for batch in _batches(reports, rows, rng):
            targets = reports.targets[batch] * (1 - variant.smoothing) + variant.smoothing / 2
            logits = head(*reports.batch(batch, columns))[0]
            optimizer.zero_grad()
            masked_binary_cross_entropy(logits, targets).backward()
            optimizer.step()
            schedule.step()
    return head


def _batches(reports: Reports, rows: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Reports of like length together, in random order."""
    lengths = np.array([len(reports.states[row]) for row in rows]) + rng.random(len(rows)) * 60
    order = rows[np.argsort(lengths)]
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    for place in rng.permutation(len(batches)):
        yield batches[place]


@torch.no_grad()
def measure(reports: Reports, fold: int, width: int, variant: Variant) -> float:
    """Macro AUROC of the held-out fold."""
    columns = torch.cat([torch.arange(width * place, width * (place + 1)) for place in variant.layers])
    held = np.flatnonzero(reports.folds == fold)
    rest = np.flatnonzero((reports.folds != fold) & (reports.folds != TEST_FOLD))
    logits = torch.zeros(len(held), reports.targets.shape[1])
    for seed in range(variant.num_seeds):
        with torch.enable_grad():
            head = train(reports, rest, columns, variant, seed)
        logits += torch.cat([head(*reports.batch([row], columns))[0] for row in held])
    return macro_auroc(logits.numpy(), reports.targets[held].numpy()).value


def main() -> None:
    """Print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("reports")
    parser.add_argument("llm")
    parser.add_argument("--layers", type=int, nargs=2, default=(20, 30), help="two depths of the LLM")
    parser.add_argument("--folds", type=int, nargs="+", default=(1, 2, 3, 4))
    parser.add_argument("--max-length", type=int, default=1024)
    options = parser.parse_args()
    start = time.perf_counter()
    reports = read(read_report_table(options.reports), options.llm, options.layers, options.max_length)
    sizes = [int((reports.folds == fold).sum()) for fold in options.folds]
    document = {
        "reading_s": round(time.perf_counter() - start),
        "folds": dict(zip(options.folds, sizes, strict=True)),
        "variants": [],
    }
    width = reports.states[0].shape[1] // 2
    for variant in VARIANTS:
        start = time.perf_counter()
        values = [measure(reports, fold, width, variant) for fold in options.folds]
        seconds = (time.perf_counter() - start) / len(values)
        result = {
            "macro_auroc": [round(value, 4) for value in values],
            "mean": round(float(np.mean(values)), 4),
        }
        document["variants"].append(asdict(variant) | result | {"s_per_fold": round(seconds)})
        print(f"{variant.name}: {result}", file=sys.stderr, flush=True)
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
