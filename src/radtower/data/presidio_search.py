"""A search for identifiers by Microsoft's presidio, whose language model knows names without a title."""

from collections.abc import Sequence

from presidio_analyzer import AnalyzerEngine


class PresidioAnalyzer:
    """An :class:`radtower.data.privacy.Analyzer`.

    Args:
        engine: Of presidio. None makes one with presidio's defaults, which downloads a model of spaCy if it
            is not installed.
        language: Of the texts, as presidio abbreviates it.
        entities: Presidio's names of what to look for, such as ``PERSON``. None takes all.
        min_score: Matches below it do not count, in [0, 1].

    Raises:
        ValueError: If ``min_score`` is outside [0, 1].
    """

    def __init__(
        self,
        engine: AnalyzerEngine | None = None,
        *,
        language: str = "en",
        entities: Sequence[str] | None = None,
        min_score: float = 0.5,
    ) -> None:
        if not 0 <= min_score <= 1:
            raise ValueError(f"min_score must be in [0, 1], got {min_score}. Take 0.5.")
        self._engine = AnalyzerEngine() if engine is None else engine
        self._language = language
        self._entities = None if entities is None else list(entities)
        self._min_score = min_score

    def find(self, text: str) -> list[str]:
        """Return the kind of each match, such as ``presidio PERSON``."""
        found = self._engine.analyze(
            text, language=self._language, entities=self._entities, score_threshold=self._min_score
        )
        return sorted(f"presidio {match.entity_type}" for match in found)
