"""Metrics of report texts that RadEval computes: which there are, and which may be asked.

Nothing of RadEval is imported here: names are checked before anything is loaded.
"""

from collections.abc import Sequence

# As RadEval 2.2.1 names them. The first two need no weights; the others download a model from the Hub first.
WITHOUT_WEIGHTS = ("bleu", "rouge")
WITH_WEIGHTS = (
    *("bertscore", "radeval_bertscore", "f1chexbert", "f1radbert_ct", "srrbert", "radgraph"),
    *("radgraph_radcliq", "radcliq", "ratescore", "temporal", "green"),
)
# They may hand reports to a company.
_THROUGH_AN_API = ("crimson", "radfact_ct", "mammo_green")


def checked_text_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names, each once; ask before the vectors are made.

    Raises:
        ValueError: If there is no such metric, or it sends reports to a server.
    """
    known = (*WITHOUT_WEIGHTS, *WITH_WEIGHTS)
    for name in names:
        if name in _THROUGH_AN_API:
            raise ValueError(
                f"a text metric must run on this machine, got {name!r}, which can send reports to a server. "
                f"Choose among {', '.join(known)}."
            )
        if name not in known:
            raise ValueError(f"a text metric must be one of {', '.join(known)}, got {name!r}.")
    return tuple(dict.fromkeys(names))
