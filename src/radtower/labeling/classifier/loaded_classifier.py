"""A multi-label text classifier from a folder or the Hub: which findings it scores, how much it reads."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from radtower.labeling.findings import FindingsSet, match_finding
from radtower.labeling.pretrained.source import find_source
from radtower.labeling.pretrained.tokenizer import load_tokenizer
from radtower.labeling.pretrained.weights import load_weights

OWN_MODEL_TYPE = "llm_biencoder"
MULTI_LABEL = "multi_label_classification"
# Their positions begin behind the id of the padding token: of 514 they can use 512.
POSITIONS_BEHIND_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm")
# Of a configuration: what may change while every answer stays.
_IRRELEVANT_FIELDS = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}
_UNKNOWN_LENGTH = 10**9  # tokenizers that know none say 1e30


@dataclass(frozen=True)
class LoadedClassifier:
    """A model and what is needed to use it as a labeler.

    Attributes:
        model: In eval mode; gives ``logits`` ``(B, F)``.
        tokenizer: Fast.
        columns: Column of the logits by finding, in the order of the answers.
        max_length: Tokens it reads at a time, special tokens included.
        temperature: Divides the logits.
        has_attention: Whether it also gives ``token_weights`` and ``log_normalizer``, as our labelers do.
        is_by_sentence: Whether its findings attend by sentence.
        sha256: Of weights, configuration and tokenizer: everything that its answers depend on.
    """

    model: Any
    tokenizer: Any
    columns: dict[str, int]
    max_length: int
    temperature: float
    has_attention: bool
    is_by_sentence: bool
    sha256: str


def load_classifier(
    path: str | Path,
    findings: FindingsSet | None,
    *,
    max_length: int | None = None,
    dtype: torch.dtype = torch.float32,
    should_skip_unmatched: bool = False,
    is_remote_code_trusted: bool = False,
) -> LoadedClassifier:
    """Read a labeler of ``radtower train labeler``, or any classifier trained on several labels at once.

    No pickle is read.

    Args:
        path: Folder, or Hub id.
        findings: Its labels must be keys, names or synonyms of this set. None takes them as keys.
        max_length: Tokens to read at a time. None takes what the model was made for.
        dtype: Of the weights.
        should_skip_unmatched: Whether labels that mean no finding of the set are left out, not refused.
        is_remote_code_trusted: Whether code that comes with the model may be run. Otherwise only classes of
            transformers and of this package are.

    Raises:
        FileNotFoundError: If there is no such folder, or it lacks files.
        TypeError: If the tokenizer is not a fast one.
        ValueError: If weights or tokenizer are missing or damaged, the model has one label per text, a label
            fits no finding or two fit the same, or ``max_length`` is more than the model has positions.
    """
    source = find_source(path)
    model, missing = load_weights(
        AutoModelForSequenceClassification, source, is_remote_code_trusted=is_remote_code_trusted, dtype=dtype
    )
    if missing:
        raise ValueError(
            f"folder must hold a trained labeler, got {path} without {missing}. "
            "Train one with radtower train labeler."
        )
    config = model.config
    _require_multi_label(config)
    tokenizer = load_tokenizer(source, config, is_remote_code_trusted=is_remote_code_trusted)
    if not tokenizer.is_fast:
        raise TypeError(
            f"tokenizer must be a fast one, got {type(tokenizer).__name__}. "
            "Only fast tokenizers say where in the text a token comes from."
        )
    labels = {column: config.id2label[column] for column in range(config.num_labels)}
    if findings is None:
        columns = {key: column for column, key in labels.items()}
    else:
        columns = match_columns(labels, findings, should_skip_unmatched=should_skip_unmatched)
    is_own = config.model_type == OWN_MODEL_TYPE
    return LoadedClassifier(
        model=model.eval(),
        tokenizer=tokenizer,
        columns=columns,
        max_length=_length_to_read(max_length, config, tokenizer),
        temperature=config.label_temperature if is_own else 1.0,
        has_attention=is_own,
        is_by_sentence=is_own and config.finding_pooling == "sentences",
        sha256=_sha256_of(model, tokenizer),
    )


def match_columns(
    labels: Mapping[int, str], findings: FindingsSet, *, should_skip_unmatched: bool = False
) -> dict[str, int]:
    """Find out which finding each label of a model means.

    Args:
        labels: Label by column.
        findings: Keys, names and synonyms.
        should_skip_unmatched: Whether labels that mean no finding are left out.

    Returns:
        Column by finding, in the order of the set; a finding that no label means is left out.

    Raises:
        ValueError: If a label means no finding, two labels mean the same, or none is left.
    """
    found: dict[str, list[int]] = {}
    unmatched = []
    for column, label in labels.items():
        try:
            found.setdefault(match_finding(label, findings.keys, findings), []).append(column)
        except KeyError:
            unmatched.append(label)
    repeated = sorted(labels[column] for columns in found.values() if len(columns) > 1 for column in columns)
    if repeated:
        raise ValueError(
            f"labels of the model must mean different findings of {findings.name!r}, got {repeated}. "
            "Use a findings set that tells them apart."
        )
    if unmatched and not (should_skip_unmatched and found):
        raise ValueError(
            f"labels of the model must be keys, names or synonyms in {findings.name!r}, got {unmatched}, "
            "each of no finding or of several. Name another findings set, or skip what it lacks."
        )
    return {key: found[key][0] for key in findings.keys if key in found}


def _require_multi_label(config: PreTrainedConfig) -> None:
    # Our own head knows nothing else, so old labelers do not say it.
    if config.model_type != OWN_MODEL_TYPE and config.problem_type != MULTI_LABEL:
        raise ValueError(
            f"a labeler must have the problem_type {MULTI_LABEL!r}, got {config.problem_type!r}. One label "
            "per text is a softmax: its numbers are not the probability of each finding. Where it was "
            "trained on several labels at once, say so in its config.json."
        )


def _length_to_read(max_length: int | None, config: PreTrainedConfig, tokenizer: Any) -> int:
    decoder = config.get_text_config()
    positions = getattr(decoder, "max_position_embeddings", None) or _UNKNOWN_LENGTH
    if decoder.model_type in POSITIONS_BEHIND_PADDING:
        positions -= decoder.pad_token_id + 1
    if config.model_type == OWN_MODEL_TYPE:
        prompt = config.num_prompt_tokens  # put in front by the model itself
        made_for, positions = config.max_length - prompt, positions - prompt
    else:
        made_for = tokenizer.model_max_length
    length = min(made_for, positions) if max_length is None else max_length
    if length >= _UNKNOWN_LENGTH:
        raise ValueError(
            "max_length must be given where neither model nor tokenizer know how much they read, got none. "
            "Say how long the texts were that it was trained on, such as 512."
        )
    if not 1 <= length <= positions:
        raise ValueError(
            f"max_length must be between 1 and {positions}, the positions of the model, got {length}. "
            "Longer reports are read in windows."
        )
    return int(length)


def _sha256_of(model: Any, tokenizer: Any) -> str:
    config = json.dumps(_relevant(model.config.to_dict()), sort_keys=True, default=str)
    digest = hashlib.sha256(f"{type(model).__name__} {config}".encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _relevant(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _relevant(item) for key, item in value.items() if key not in _IRRELEVANT_FIELDS}
    return value
