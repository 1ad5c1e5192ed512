"""Load the tokenizer of a model, and refuse the empty one that stands in for files that are not there."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

_PROBE = "Small effusion, no nodule."
# Of the vocabulary of the model that the tokenizer must know. An embedding that is padded, or shared with
# another tokenizer, has some rows too many; a tokenizer without its files has special tokens alone.
_MIN_SHARE = 0.1


def load_tokenizer(
    source: str | Path, config: PreTrainedConfig, *, is_remote_code_trusted: bool = False, **options: Any
) -> PreTrainedTokenizerBase:
    """Load a tokenizer; code that comes with it is run only if that is trusted.

    For most kinds of model, transformers makes a tokenizer without a vocabulary where there are no files.
    To it every word is unknown, so that all reports would read alike.

    Args:
        source: Folder or Hub id.
        config: Of the model that reads the tokens.
        is_remote_code_trusted: Whether code beside the tokenizer may be run.
        options: Of ``AutoTokenizer.from_pretrained``.

    Raises:
        ValueError: If it cannot be read, knows no word of English, or far fewer tokens than the model has.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=is_remote_code_trusted, **options
        )
        ids = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    except Exception as error:  # of tokenizers they are bare exceptions
        found = " ".join(str(error).split())[:60]
        raise _refusal(source, f"none that can be read ({found} ...)") from None
    vocab_size = getattr(config.get_text_config(), "vocab_size", 0)
    if len(tokenizer) < _MIN_SHARE * vocab_size:
        raise _refusal(source, f"{len(tokenizer)} tokens of {vocab_size}")
    if set(ids) <= {tokenizer.unk_token_id}:  # byte-level ones skip what they do not know
        raise _refusal(source, f"one of {len(tokenizer)} tokens to which every word is unknown")
    return tokenizer


def _refusal(source: str | Path, got: str) -> ValueError:
    return ValueError(
        f"{source} must hold the tokenizer of the model, got {got}. Download the files of the tokenizer as "
        "well: tokenizer.json or the vocabulary, and tokenizer_config.json."
    )
