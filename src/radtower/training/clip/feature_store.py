"""Vectors of a frozen text tower: computed once per distinct text, and kept for further runs.

With them an encoder of billions of weights costs nothing in a step of training.
Axes: N texts, E width of the tower.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from radtower.configuration.configuration_medclip import tower_width
from radtower.modeling.llm_biencoder.modeling_cpu_linear import OneDNNLinears
from radtower.modeling.llm_biencoder.modeling_encode_batches import BatchLimit, in_batches, in_eval_mode
from radtower.modeling.llm_biencoder.modeling_text_inputs import TokenRow, pad_rows
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.processing.processing_medclip import MedCLIPProcessor
from radtower.training.clip.feature_files import MemoryVectors, VectorFiles
from radtower.training.gather import divided, num_processes
from radtower.training.output_folder import without_incidentals

FORMAT = 1  # of the files, and of what happens between a text and its vector outside of the tower
TEXTS_PER_FILE = 512  # what a kill loses at most
DESCRIPTION_FILE = "about.json"


class TextFeatureStore:
    """What :meth:`MedCLIPModel.text_features` gives for texts that the processor reads, without dropout.

    In ``folder`` there is a folder for each combination of tower (class, configuration, weights), pooling,
    instruction, length and tokenizer; another one begins where any of them changes. Texts are known by their
    SHA-256. What is stored holds no text.

    Args:
        model: Its text tower is frozen, prompt included.
        processor: Instruction, length and tokenizer.
        folder: Shared by any number of runs. None keeps the vectors in memory.
        is_divided: Whether the processes of a training compute a share each, and hand it to the others. All
            must ask for the same texts; not with a folder, which they fill one after the other.

    Raises:
        ValueError: If something in the text tower is trained, its vectors depend on the batch, a file of the
            folder is damaged, or processes shall divide the work of filling a folder.
    """

    def __init__(
        self,
        model: MedCLIPModel,
        processor: MedCLIPProcessor,
        folder: str | Path | None = None,
        *,
        is_divided: bool = False,
    ) -> None:
        if is_divided and folder is not None:
            raise ValueError(
                f"is_divided must be false where a folder keeps the vectors, got {is_divided} with {folder}: "
                "one process would hold its lock and wait for the others. Leave one of the two out."
            )
        self.is_divided = is_divided
        self.model = model
        self.processor = processor
        self._require_constant()
        self._vectors = MemoryVectors()
        if folder is not None:
            about = describe(model, processor)
            self.folder = Path(folder) / _sha256(about)[:32]
            self._vectors = VectorFiles(self.folder)
            (self.folder / DESCRIPTION_FILE).write_text(json.dumps(about, indent=2), encoding="utf-8")

    @torch.no_grad()
    def features(self, texts: Sequence[str], show_progress: bool = False) -> torch.Tensor:
        """Look up the vectors of texts, and compute those that are not there.

        An interrupted call keeps what it computed, but for the last file. Where two processes ask at once,
        one computes and the other waits.

        Args:
            texts: Any number; equal ones are computed once.
            show_progress: Whether to draw a bar on stderr, which counts texts to compute.

        Returns:
            ``(N, E)`` float32 on the CPU, in the order of ``texts``, neither projected nor normalized.

        Raises:
            FloatingPointError: If the tower gives a number that is not finite; nothing of that is stored.
            ValueError: If a text is empty, or something in the text tower is trained by now.
        """
        self._require_constant()
        empty = [position for position, text in enumerate(texts) if not text.strip()]
        if empty:
            raise ValueError(
                f"texts must not be empty, got nothing to read at positions {empty}. Remove them."
            )
        keys = [hashlib.sha256(text.encode()).digest() for text in texts]
        with self._vectors.filling():
            missing = {k: text for k, text in zip(keys, texts, strict=True) if k not in self._vectors}
            self._fill(missing, show_progress)
        config: Any = self.model.config
        return self._vectors.rows(keys, tower_width(config.text_config))

    def _fill(self, missing: dict[bytes, str], show_progress: bool) -> None:
        """The longest first: too large a batch shows at once."""
        order = sorted(missing, key=lambda key: -len(missing[key]))
        size = TEXTS_PER_FILE * (num_processes() if self.is_divided else 1)
        with tqdm(total=len(order), desc="Encoding reports", unit="text", disable=not show_progress) as bar:
            for start in range(0, len(order), size):
                keys = order[start : start + size]
                texts = [missing[key] for key in keys]
                if self.is_divided:
                    vectors = divided(texts, self._compute, self.model.device)
                else:
                    vectors = self._compute(texts)
                num_bad = int((~vectors.isfinite().all(dim=1)).sum())
                if num_bad:
                    raise FloatingPointError(
                        f"features must be finite, got {num_bad} of {len(keys)} that are not. "
                        "Load the text tower in float32 or bfloat16, and check its weights."
                    )
                self._vectors.put(keys, vectors)
                bar.update(len(keys))

    def _compute(self, texts: list[str]) -> torch.Tensor:
        """``(n, E)`` on the CPU."""
        model, device = self.model, self.model.device
        inputs = self.processor(text=texts, return_tensors="pt")
        pairs = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        rows = [TokenRow(ids[mask == 1].tolist(), None) for ids, mask in pairs]

        def embed(batch: list[int]) -> torch.Tensor:
            padded = pad_rows(self.processor.tokenizer, [rows[n] for n in batch]).to(device)
            return model.text_features(**padded).float().cpu()

        vectors = torch.empty(0)
        lengths = [len(row.input_ids) for row in rows]
        with in_eval_mode(model.text_model), OneDNNLinears():
            for batch, embeds in in_batches(lengths, BatchLimit("auto", device), embed):
                if not len(vectors):
                    vectors = torch.empty(len(rows), embeds.shape[1])
                vectors[torch.tensor(batch)] = embeds
        return vectors

    def _require_constant(self) -> None:
        tower = self.model.text_model
        if getattr(tower.config, "depends_on_batch", False):
            raise ValueError(
                "a text tower must give a text the same vector in every batch for it to be kept, got "
                "prompt_padding='legacy_middle'. Set it to contiguous, or read the reports in every step."
            )
        trained = [name for name, parameter in tower.named_parameters() if parameter.requires_grad]
        if trained:
            raise ValueError(
                "a text tower must be frozen for its features to be kept, got "
                f"{len(trained)} trained tensors such as {trained[0]}, which would change them. "
                "Set text_mode to frozen, or read the reports in every step."
            )


def describe(model: MedCLIPModel, processor: MedCLIPProcessor) -> dict[str, Any]:
    """Return everything that the vector of a text depends on, large things as SHA-256."""
    tower = model.text_model
    return {
        "format": FORMAT,
        "tower": type(tower).__name__,
        "config_sha256": _sha256(
            without_incidentals(json.loads(tower.config.to_json_string(use_diff=False)))
        ),
        "weights_sha256": _weights_sha256(tower),
        "pooling": model.config.text_pooling,
        "instruction": processor.instruction,
        "max_length": processor.max_length,
        "tokenizer_sha256": _sha256(_describe_tokenizer(processor.tokenizer)),
    }


def _describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    about: dict[str, Any] = {
        "class": type(tokenizer).__name__,
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "truncation_side": tokenizer.truncation_side,
        "padding_side": tokenizer.padding_side,
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return about | {"vocab": tokenizer.get_vocab()}
    rules = json.loads(backend.to_str())
    # Left over from the last call.
    return about | {name: value for name, value in rules.items() if name not in ("truncation", "padding")}


def _weights_sha256(tower: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
