"""Which sentence of a report a finding was read from: the one that its attention lies on.

Axes in this file: F findings, T tokens, S sentences of a report.
"""

from collections.abc import Sequence

import torch

from radtower.labeling.classifier.report_windows import NO_SENTENCE
from radtower.labeling.findings import Status
from radtower.processing.report_sentences import Sentence

EVIDENCE_RULE = "attention-1"  # a change of the rule is a new name: evidence would change
# A finding that the report is silent about attends to anything: a quote for "absent" needs most of it.
MIN_MASS_OF_ABSENT = 0.5


def sentence_mass(weights: torch.Tensor, sentence_of: Sequence[int], num_sentences: int) -> torch.Tensor:
    """Sum the attention of each finding per sentence.

    Args:
        weights: ``(F, T)``, attention over the tokens.
        sentence_of: T numbers of sentences; -1 for none.
        num_sentences: Number S.

    Returns:
        ``(F, S)``; what lies on no sentence, such as a special token, is left out.
    """
    places = torch.tensor(sentence_of, device=weights.device)
    is_text = places != NO_SENTENCE
    mass = weights.new_zeros(len(weights), num_sentences)
    return mass.index_add_(1, places[is_text], weights[:, is_text])


def quote(status: Status, mass: Sequence[float], sentences: Sequence[Sentence]) -> str | None:
    """Return the sentence that a finding was read from, verbatim.

    Args:
        status: Present gets the sentence with the largest mass. Absent gets it only where it has half of all
            mass: the sentence that denies the finding; else the report is likely silent about it.
        mass: S attention masses of the finding; all tokens together have 1.
        sentences: S sentences.

    Returns:
        None where no sentence is evidence.
    """
    if not sentences:
        return None
    best = max(range(len(sentences)), key=lambda place: mass[place])
    if status == Status.ABSENT and mass[best] < MIN_MASS_OF_ABSENT:
        return None
    return sentences[best].text
