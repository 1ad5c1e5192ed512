"""The papers behind each family of models, as BibTeX."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A preprint; the year is that of its number."""

    key: str
    title: str
    authors: str


PAPERS = {
    "2509.13175": Paper(
        "li2025performant",
        "More performant and scalable: Rethinking contrastive vision-language pre-training of radiology in "
        "the {LLM} era",
        "Li, Yingtai and Lai, Haoran and Zhou, Xiaoqian and Ming, Shuai and Ma, Wenxin and Wei, Wei and "
        "Zhou, Shaohua Kevin",
    ),
    "2603.06467": Paper(
        "li2026greenrfm",
        "{GreenRFM}: Toward a resource-efficient radiology foundation model",
        "Li, Yingtai and Ming, Shuai and Zhao, Mingyue and Lai, Haoran and Wang, Rongsheng and Zhou, Rui and "
        "Wang, Rundong and Li, Yujia and Wei, Wei and Zhou, Shaohua Kevin",
    ),
    "2509.15234": Paper(
        "ko2025exploring",
        "Exploring the Capabilities of {LLM} Encoders for Image-Text Retrieval in Chest X-rays",
        "Ko, Hanbin and Cho, Gihun and Baek, Inhyeok and Kim, Donguk and Koo, Joonbeom and Kim, Changi and "
        "Lee, Dongheon and Park, Chang Min",
    ),
    "2404.05961": Paper(
        "behnamghader2024llm2vec",
        "{LLM2Vec}: Large Language Models Are Secretly Powerful Text Encoders",
        "BehnamGhader, Parishad and Adlakha, Vaibhav and Mosbach, Marius and Bahdanau, Dzmitry and Chapados, "
        "Nicolas and Reddy, Siva",
    ),
    "2511.13876": Paper(
        "wei2025qwenclip",
        "{QwenCLIP}: Boosting Medical Vision-Language Pretraining via {LLM} Embeddings and Prompt tuning",
        "Wei, Xiaoyang and Kurtz, Camille and Cloppet, Florence",
    ),
}


def bibtex(numbers: Iterable[str]) -> str:
    """Return entries of preprints by their arXiv numbers."""
    return "\n\n".join(_entry(number, PAPERS[number]) for number in numbers)


def _entry(number: str, paper: Paper) -> str:
    fields = {
        "title": paper.title,
        "author": paper.authors,
        "journal": f"arXiv preprint arXiv:{number}",
        "year": f"20{number[:2]}",
    }
    lines = [f'  {name}="{value}"' for name, value in fields.items()]
    return "\n".join([f"@article{{{paper.key},", ",\n".join(lines), "}"])
