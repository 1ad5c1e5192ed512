import pytest

from radtower.data.privacy import search_texts

pytest.importorskip("presidio_analyzer", reason="presidio-analyzer is not installed")
spacy = pytest.importorskip("spacy")
nlp_engine = pytest.importorskip("presidio_analyzer.nlp_engine")
presidio_search = pytest.importorskip("radtower.data.presidio_search")
PresidioAnalyzer, AnalyzerEngine = presidio_search.PresidioAnalyzer, presidio_search.AnalyzerEngine


@pytest.fixture(scope="module")
def engine():
    """Patterns of presidio alone: its language model would have to be downloaded."""
    language = nlp_engine.SpacyNlpEngine()
    language.nlp = {"en": spacy.blank("en")}
    return AnalyzerEngine(nlp_engine=language)


def test_presidio_searches_beside_the_patterns(engine):
    text = "Paid with 4111 1111 1111 1111 by joe@example.org on 2021-03-12."
    analyzer = PresidioAnalyzer(engine, entities=["CREDIT_CARD", "EMAIL_ADDRESS"])
    assert analyzer.find(text) == ["presidio CREDIT_CARD", "presidio EMAIL_ADDRESS"]
    counts = search_texts([("r1", text)], [analyzer]).counts
    assert counts["presidio CREDIT_CARD"] == counts["email"] == counts["date"] == 1


def test_weak_matches_of_presidio_do_not_count(engine):
    weak = PresidioAnalyzer(engine, min_score=0.3, entities=["PHONE_NUMBER"])
    strong = PresidioAnalyzer(engine, min_score=0.9, entities=["PHONE_NUMBER"])
    text = "Call 212-555-5555."
    assert weak.find(text) == ["presidio PHONE_NUMBER"]
    assert strong.find(text) == []


def test_a_score_outside_0_and_1_is_refused(engine):
    for score in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"min_score must be in \[0, 1\], got {score}"):
            PresidioAnalyzer(engine, min_score=score)
