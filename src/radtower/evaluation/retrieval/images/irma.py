"""IRMA codes of X-ray images, and how wrong one is: the error score of ImageCLEFmed 2007 to 2009.

A code has four axes, ``TTTT-DDD-AAA-BBB``: technique, direction, anatomy, biological system. Along an axis
each position refines the one before, and 0 is "unspecified". The error of an axis is the sum over its
positions i of delta_i / (b_i i), with b_i the number of choices there, divided by the sum of all 1 / (b_i i).
delta_i is 0 as long as all is right, 1 from the first wrong position on, and 0.5 from the first ``*`` ("don't
know") on, or 0 for a ``*`` where the code is 0. The error of a code is the mean of its axes, between 0 and 1.

Source: Deselaers, Deserno, Muller, "Automatic medical image annotation in ImageCLEF 2007", Pattern
Recognition Letters 2008; Tommasi et al., "Overview of the CLEF 2009 medical image annotation track". There
b_i comes from the complete list of IRMA codes. That list does not ship with the images, so b_i counts here
what occurs in the codes of the gallery: errors are close to the published ones, not the same.

Axes: Q queries, G gallery.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from radtower.evaluation.retrieval.images.tied_places import TiedRanking

_CODE = re.compile(r"[0-9a-z*]{4}-[0-9a-z*]{3}-[0-9a-z*]{3}-[0-9a-z*]{3}")
_WRONG, _UNKNOWN = 1.0, 0.5
_NUM_NAMED = 3  # bad codes in an error
LOWER_IS_BETTER = "an error: 0 is right, 1 is all wrong; choices counted in the codes of the gallery"


class IRMAError:
    """The error of a code, with the choices that occur in the codes of a data set.

    Args:
        codes: All codes of the gallery; how often each occurs does not matter.

    Raises:
        ValueError: If one is not an IRMA code.
    """

    def __init__(self, codes: Iterable[str]) -> None:
        self._choices: dict[tuple[int, str], set[str]] = defaultdict(set)
        self._known: dict[tuple[str, str], float] = {}
        for code in set(codes):
            for axis, positions in enumerate(_axes(code)):
                for place, position in enumerate(positions):
                    self._choices[axis, positions[:place]].add(position)

    def __call__(self, true: str, found: str) -> float:
        """Return how wrong ``found`` is, in [0, 1]; it may hold ``*``, the true code may not.

        Raises:
            ValueError: If one is not an IRMA code, or the true one holds ``*``.
        """
        if (true, found) not in self._known:
            if "*" in true:
                raise ValueError(f"the true code must not hold '*', got {true!r}. Write 0 for unspecified.")
            pairs = zip(_axes(true), _axes(found), strict=True)
            self._known[true, found] = float(
                np.mean([self._of_axis(n, *pair) for n, pair in enumerate(pairs)])
            )
        return self._known[true, found]

    def _of_axis(self, axis: int, true: str, found: str) -> float:
        error = total = 0.0
        state = 0.0  # what all further positions cost
        for place, (right, position) in enumerate(zip(true, found, strict=True)):
            weight = 1 / (max(1, len(self._choices[axis, true[:place]])) * (place + 1))
            if state == 0 and position != right:
                state = _UNKNOWN if position == "*" else _WRONG
            is_unspecified = right == "0" and position == "*" and state != _WRONG
            error += 0.0 if is_unspecified else state * weight
            total += weight
        return error / total


def voted_code(codes: Sequence[str]) -> str:
    """Return the code that occurs most often; of several, the one that comes first."""
    return Counter(codes).most_common(1)[0][0]  # of equal counts, the first one met


def check_true_codes(cells: Sequence[str], names: Sequence[str]) -> None:
    """Refuse codes that are none, or that hold ``*``, before anything is searched; an empty cell is unknown.

    Raises:
        ValueError: If there is one, with ``names`` of the first few.
    """
    invalid = [
        f"{cell!r} of {name}"
        for name, cell in zip(names, cells, strict=True)
        if cell and ("*" in cell or not _CODE.fullmatch(cell))
    ]
    if invalid:
        more = f" and {len(invalid) - _NUM_NAMED} more" if len(invalid) > _NUM_NAMED else ""
        raise ValueError(
            "irma_code must read TTTT-DDD-AAA-BBB, of digits and small letters, or be empty, got "
            f"{', '.join(invalid[:_NUM_NAMED])}{more}. Write 0 for unspecified."
        )


def irma_errors(
    ranking: TiedRanking, query_codes: Sequence[str], gallery_codes: Sequence[str], ks: Sequence[int]
) -> dict[str, np.ndarray]:
    """Return the error of the code that most of the first k images have, ``(Q,)``, as ``irma_error_at_k``.

    Of images that tie, those with the larger error come first, so the order of the gallery does not matter.

    Args:
        ranking: What was found for the largest of ``ks`` or more.
        query_codes: Q codes.
        gallery_codes: G codes; the choices are counted in them.
        ks: Numbers of images that vote.
    """
    error = IRMAError(gallery_codes)
    codes, columns = np.unique(np.array(gallery_codes, dtype=str), return_inverse=True)
    errors = np.empty((len(query_codes), len(ks)))
    for inside, _, places in ranking.blocks(max(ks), len(gallery_codes)):
        asked = query_codes[inside]
        of_code = {true: np.array([error(true, code) for code in codes.tolist()]) for true in set(asked)}
        # Codes by error, the worst first; equal errors by name, which no order of the gallery changes.
        orders = {true: np.argsort(-values, kind="stable") for true, values in of_code.items()}
        numbers = np.stack([np.argsort(orders[true])[columns] for true in asked])
        for row, (true, first) in enumerate(zip(asked, places.worst_first(numbers), strict=True)):
            found = codes[orders[true][first]].tolist()
            errors[inside.start + row] = [error(true, voted_code(found[:k])) for k in ks]
    return {f"irma_error_at_{k}": errors[:, column] for column, k in enumerate(ks)}


def chance_of_irma_error(query_codes: Sequence[str], gallery_codes: Sequence[str]) -> np.ndarray:
    """Return for each query the mean error of a gallery image, ``(Q,)``: that of one at random."""
    error, counts = IRMAError(gallery_codes), Counter(gallery_codes)
    of_code = {
        true: sum(error(true, code) * count for code, count in counts.items()) / len(gallery_codes)
        for true in set(query_codes)
    }
    return np.array([of_code[true] for true in query_codes])


def _axes(code: str) -> list[str]:
    if not _CODE.fullmatch(code):
        raise ValueError(
            f"an IRMA code must read TTTT-DDD-AAA-BBB, of digits, small letters and '*', got {code!r}."
        )
    return code.split("-")
