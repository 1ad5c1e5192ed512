"""How the finding attention reads a frozen LLM: pooling, layers, scale, ensembles; cross-validated.

    python benchmarks/labeler_heads.py ct_rate_reports.parquet SmolLM2-135M-Instruct.Q4_1.gguf

Nothing but the head is trained, on states that are computed once (under bf16 autocast, stored as bf16), so
that a variant takes seconds per fold. The ``test`` split of the table is fold 0, never trained on and not
measured unless it is named; the rest goes to folds 1 to 4 by hash of the patient. Choose on those.
``--fold-table 1 fold1.parquet`` writes the table of one fold instead, for `radtower train labeler`: that fold
is its ``test``, the other three are its ``train``, and the reports of ``test`` are in it no more.
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
import pandas as pd
import torch
from torch import nn

from radtower.data.reports.report_corpus import ReportTable, read_report_table
from radtower.evaluation.metrics import macro_auroc
from radtower.labeling.findings import load_findings
from radtower.modeling.llm_biencoder.modeling_finding_attention import SENTENCE_BIAS, FindingAttention
from radtower.modeling.llm_biencoder.modeling_sentence_bounds import sentence_of, sentence_table
from radtower.modeling.losses import UNKNOWN_LABEL, masked_binary_cross_entropy
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

BATCH = 8
WARMUP = 40
TEST_FOLD = 0


@dataclass(frozen=True)
class Variant:
    """One way to read; ``layers`` are places in ``--layers``.

    ``num_negatives``: to each batch so many sentences of training reports are added that name a finding, or a
    synonym, which their report does not have ("no pleural effusion").
    """

    name: str
    pooling: str = "sentences"
    layers: tuple[int, ...] = (0, 1)
    is_standardized: bool = True
    epochs: int = 12
    smoothing: float = 0.0
    num_seeds: int = 1
    num_negatives: int = 0


VARIANTS = (
    Variant("over all tokens, last layer", pooling="tokens", layers=(1,)),
    Variant("over all tokens, both layers", pooling="tokens"),
    Variant("by sentence, lower layer", layers=(0,)),
    Variant("by sentence, last layer", layers=(1,)),
    Variant("by sentence, both layers"),
    Variant("by sentence, both layers, not standardized", is_standardized=False),
    Variant("by sentence, both layers, 24 epochs", epochs=24),
    Variant("by sentence, both layers, labels smoothed by 0.05", smoothing=0.05),
    Variant("by sentence, both layers, hard-negative sentences", num_negatives=16),
    Variant("by sentence, both layers, mean of 3 seeds", num_seeds=3),
    Variant("by sentence, both layers, smoothed, mean of 3 seeds", smoothing=0.05, num_seeds=3),
)


@dataclass
class Reports:
    """States ``(T, K W)`` and sentence numbers ``(T,)`` per report, targets ``(N, F)``, folds ``(N,)``.

    ``mentions``: per report the pairs of a sentence and a finding that it names.
    """

    states: list[torch.Tensor]
    sentences: list[torch.Tensor]
    mentions: list[list[tuple[int, int]]]
    targets: torch.Tensor
    folds: np.ndarray

    def batch(self, rows: Sequence[int], columns: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Padded states, mask and sentence numbers."""
        states = [self.states[row][:, columns].float() for row in rows]
        return _padded(states, [self.sentences[row] for row in rows])

    def hard_negatives(self, rows: Sequence[int]) -> list[tuple[int, int, int]]:
        """Report, sentence and finding: the sentence names what the report does not have."""
        return [
            (row, sentence, finding)
            for row in rows
            for sentence, finding in self.mentions[row]
            if self.targets[row, finding] == 0
        ]

    def sentence_batch(
        self, chosen: Sequence[tuple[int, int, int]], columns: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Those sentences alone, as they were read in their reports; one label of each is known."""
        states, targets = [], torch.full((len(chosen), self.targets.shape[1]), float(UNKNOWN_LABEL))
        for place, (row, sentence, finding) in enumerate(chosen):
            states.append(self.states[row][self.sentences[row] == sentence][:, columns].float())
            targets[place, finding] = 0
        return _padded(states, [torch.zeros(len(state), dtype=torch.long) for state in states]), targets


def _padded(states: list[torch.Tensor], numbers: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    masks = [torch.ones(len(state)) for state in states]
    return tuple(nn.utils.rnn.pad_sequence(part, True) for part in (states, masks, numbers))


def find_mentions(text: Sequence[str], names: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """Pairs of a sentence and a finding that it names; ``names``: of each finding, in small letters."""
    return [
        (sentence, finding)
        for sentence, words in enumerate(text)
        for finding, known in enumerate(names)
        if any(name in words.lower() for name in known)
    ]


def names_of_findings(labels: Sequence[str]) -> list[list[str]]:
    """Name and synonyms of each label column, as the findings set of CT-RATE has them."""
    known = {finding.name: finding for finding in load_findings("ct_rate_18").findings}
    known |= {finding.key: finding for finding in known.values()}
    return [[name.lower() for name in (known[label].name, *known[label].synonyms)] for label in labels]


def fold_of(frame: pd.DataFrame) -> np.ndarray:
    """``(N,)``: 0 for the split ``test``, else 1 to 4 by the patient."""
    digests = [int(hashlib.sha256(patient.encode()).hexdigest(), 16) for patient in frame["patient_id"]]
    folds = [
        TEST_FOLD if split == "test" else 1 + digest % 4
        for split, digest in zip(frame["split"], digests, strict=True)
    ]
    return np.array(folds)


def write_fold_table(reports: str, fold: int, path: str) -> None:
    """Write the reports that are not of ``test``; the split of one fold is ``test``, else ``train``."""
    table = read_report_table(reports)
    folds = fold_of(table.frame)
    columns = pd.DataFrame(table.labels, columns=list(table.label_names))
    frame = pd.concat([table.frame, columns], axis=1)
    frame["split"] = np.where(folds == fold, "test", "train")
    frame[folds != TEST_FOLD].to_parquet(path, index=False)


def read(table: ReportTable, llm: str, layers: Sequence[int], max_length: int, text_column: str) -> Reports:
    """Run the language model, causal as it was trained, over every report."""
    encoder = LLMBiEncoder.from_llm(llm, pooling="mean", bidirectional=False).eval()
    tokenizer, decoder = encoder.tokenizer, encoder.model
    words = sentence_table(tokenizer, decoder.get_input_embeddings().num_embeddings)
    frame = table.frame
    names = names_of_findings(table.label_names)
    ids = tokenizer(list(frame[text_column]), max_length=max_length, truncation=True)["input_ids"]
    states: list[torch.Tensor] = []
    numbers: list[torch.Tensor] = []
    mentions: list[list[tuple[int, int]]] = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for row in ids:
            tokens = torch.tensor([row])
            hidden = decoder(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states
            states.append(torch.cat([hidden[layer][0].bfloat16() for layer in layers], dim=1))
            number = sentence_of(tokens, torch.ones_like(tokens), words)[0]
            numbers.append(number)
            text = [tokenizer.decode(tokens[0, number == place]) for place in range(int(number[-1]) + 1)]
            mentions.append(find_mentions(text, names))
    return Reports(states, numbers, mentions, torch.from_numpy(table.labels), fold_of(frame))


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
    hard = reports.hard_negatives(rows) if variant.num_negatives else []
    for _ in range(variant.epochs):
        for batch in _batches(reports, rows, rng):
            targets = reports.targets[batch] * (1 - variant.smoothing) + variant.smoothing / 2
            loss = masked_binary_cross_entropy(head(*reports.batch(batch, columns))[0], targets)
            if hard:
                drawn = [hard[place] for place in rng.integers(len(hard), size=variant.num_negatives)]
                inputs, labels = reports.sentence_batch(drawn, columns)
                loss = loss + masked_binary_cross_entropy(head(*inputs)[0], labels)
            optimizer.zero_grad()
            loss.backward()
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
    parser.add_argument("--text-column", default="report", choices=["report", "findings", "impression"])
    parser.add_argument("--only", nargs="+", default=[""], help="variants whose name has one of these")
    parser.add_argument("--fold-table", nargs=2, metavar=("FOLD", "PATH"), help="write it, and end")
    options = parser.parse_args()
    if options.fold_table is not None:
        write_fold_table(options.reports, int(options.fold_table[0]), options.fold_table[1])
        return
    start = time.perf_counter()
    table = read_report_table(options.reports)
    reports = read(table, options.llm, options.layers, options.max_length, options.text_column)
    sizes = [int((reports.folds == fold).sum()) for fold in options.folds]
    document = {
        "reading_s": round(time.perf_counter() - start),
        "folds": dict(zip(options.folds, sizes, strict=True)),
        "variants": [],
    }
    width = reports.states[0].shape[1] // 2
    for variant in (v for v in VARIANTS if any(part in v.name for part in options.only)):
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
