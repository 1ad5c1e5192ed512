import re

import pytest

from radtower.hub_cards.card_sections.citations import PAPERS, bibtex
from radtower.hub_cards.families import FAMILIES, IMAGE_CLIP


def test_an_entry_names_paper_authors_and_year():
    assert bibtex(["2511.13876"]) == (
        "@article{wei2025qwenclip,\n"
        '  title="{QwenCLIP}: Boosting Medical Vision-Language Pretraining via {LLM} Embeddings and Prompt '
        'tuning",\n'
        '  author="Wei, Xiaoyang and Kurtz, Camille and Cloppet, Florence",\n'
        '  journal="arXiv preprint arXiv:2511.13876",\n'
        '  year="2025"\n'
        "}"
    )
    assert 'year="2026"' in bibtex(["2603.06467"])


@pytest.mark.parametrize("family", [*FAMILIES.values(), IMAGE_CLIP])
def test_each_family_cites_its_papers(family):
    text = bibtex(family.papers)
    assert tuple(re.findall(r"arXiv:([0-9.]+)", text)) == family.papers
    assert text.count("{") == text.count("}")


def test_the_dual_tower_cites_the_three_papers():
    assert {*FAMILIES["medclip"].papers, *FAMILIES["llm_biencoder"].papers} == set(PAPERS)
    assert {"2509.13175", "2509.15234", "2511.13876"} < set(FAMILIES["medclip"].papers)
