"""Pairs -> the inputs of the encoder, in chunks of similar length, and the keys that tell false negatives.

Axes: B pairs, D documents (the B positives, then the hard negatives), T tokens, K keys of a text.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.modeling.llm_biencoder.modeling_text_inputs import TokenRow, pad_rows, token_rows
from radtower.processing.report_text import normalize_report
from radtower.training.text.contrastive_batches import Pair, Text


class PairCollator:
    """Tokenize each distinct text of a batch once, in chunks of similar length.

    Queries and documents are never put together: where a text is its own positive (SimCSE), the two see
    different dropout.

    Args:
        tokenizer: Of the encoder.
        config: Its reading rules.
        chunk_size: Texts that are padded to one length and encoded together.
        max_length: Tokens read of a text. None takes the configuration's.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: LLMBiEncoderConfig,
        chunk_size: int,
        max_length: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.chunk_size = chunk_size
        self.max_length = max_length

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """Return what :class:`ContrastiveTextTrainer` reads.

        Returns:
            ``document_keys`` ``(D, K)`` int64, of which the first B are those of the pairs; for ``query`` and
            ``document``, ``*_chunks``, inputs of the encoder, and ``*_rows``, which row of their outputs
            belongs to each text.
        """
        queries: list[Text] = [(pair.instruction, pair.query) for pair in pairs]
        hard = [negative for pair in pairs for negative in pair.negatives]
        documents: list[Text] = [(None, text) for text in (*(pair.positive for pair in pairs), *hard)]
        keys = [pair_keys(pair) for pair in pairs] + [(text_key(text), 0, 0) for text in hard]
        # An error behind the last token that is read is none: the two texts have one vector.
        read = [_hash(f"tokens:{ids}") for ids in self.token_ids(documents)]
        query_rows, query_chunks = self._chunks(queries)
        document_rows, document_chunks = self._chunks(documents)
        return {
            "query_rows": query_rows,  # first: its length is taken for the size of the batch
            "query_chunks": query_chunks,
            "document_rows": document_rows,
            "document_chunks": document_chunks,
            "document_keys": torch.tensor(
                [(*three, fourth) for three, fourth in zip(keys, read, strict=True)], dtype=torch.int64
            ),
        }

    def token_ids(self, texts: Sequence[Text]) -> list[list[int]]:
        """Token ids of each text, as the encoder reads it, without padding."""
        return [row.input_ids for instruction, text in texts for row in self._rows([text], instruction)]

    def _chunks(self, texts: list[Text]) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
        ordered = sorted(set(texts), key=lambda text: (text[0] or "", len(text[1]), text[1]))
        row = {text: index for index, text in enumerate(ordered)}
        chunks = []
        while ordered:
            instruction = ordered[0][0]
            chunk = [text for text in ordered[: self.chunk_size] if text[0] == instruction]
            ordered = ordered[len(chunk) :]
            rows = self._rows([text for _, text in chunk], instruction)
            chunks.append(dict(pad_rows(self.tokenizer, rows)))
        return torch.tensor([row[text] for text in texts]), chunks

    def _rows(self, texts: list[str], instruction: str | None) -> list[TokenRow]:
        return token_rows(self.tokenizer, texts, self.config, self.max_length, instruction=instruction)


def pair_keys(pair: Pair) -> tuple[int, int, int]:
    """Keys of a positive, its query and their labels; two pairs that share one are no negatives."""
    label = 0 if pair.label_key is None else _hash(f"label:{pair.label_key}")
    return text_key(pair.positive), text_key(pair.query), label


def text_key(text: str) -> int:
    """Key of a text: the same report in other letters or spaces is the same."""
    return _hash(f"text:{normalize_report(text).lower()}")


def _hash(text: str) -> int:
    """Between 1 and 2**62: 0 is no key."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % 2**62 + 1
