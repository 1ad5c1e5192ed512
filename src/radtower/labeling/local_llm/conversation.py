"""A conversation around a report, in token ids: what stands before the report, and what behind."""

from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

REPORT_SLOT = "\ue000"  # stands for the report while a chat template is filled; normal text does not hold it


def split_conversation(
    tokenizer: PreTrainedTokenizerBase, system: str, user: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokenize a conversation up to the answer of the model, without the report.

    A chat template is used where the tokenizer has one; else the text is plain, behind what the tokenizer
    puts in front of every text. The report is tokenized apart (``encode_data``), so that it stays inside its
    turn whatever it holds.

    Args:
        tokenizer: Of the model.
        system: What the model is to do.
        user: What the user says, with ``REPORT_SLOT`` in place of the report.

    Returns:
        Token ids before and behind the report.

    Raises:
        ValueError: If the chat template does not hold the report exactly once.
    """
    text = _fill_template(tokenizer, system, user)
    if text.count(REPORT_SLOT) != 1:
        raise ValueError(
            "tokenizer must have a chat template that holds the report once, got it "
            f"{text.count(REPORT_SLOT)} times. Set tokenizer.chat_template to None to prompt without one."
        )
    head, tail = text.split(REPORT_SLOT)
    start = () if tokenizer.chat_template else _start_tokens(tokenizer)
    return start + encode_text(tokenizer, head), encode_text(tokenizer, tail)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Tokenize text of our own, in which special tokens count."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_data(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Tokenize a report, in which ``<|im_end|>`` is ten characters and no special token."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    return tuple(ids["input_ids"])


def _fill_template(tokenizer: PreTrainedTokenizerBase, system: str, user: str) -> str:
    if not tokenizer.chat_template:
        return f"{system}\n\n{user}\n\n"
    # enable_thinking belongs to Qwen3 and others, whose templates would otherwise open a train of thought.
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    user_message = {"role": "user", "content": user}
    try:
        text = tokenizer.apply_chat_template([{"role": "system", "content": system}, user_message], **options)
    except TemplateError:  # Gemma 2 and others have no system role
        merged = {"role": "user", "content": f"{system}\n\n{user}"}
        text = tokenizer.apply_chat_template([merged], **options)
    return str(text)


def _start_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Give what the tokenizer puts in front of every text, such as <bos>."""
    ids = tuple(tokenizer("x")["input_ids"])
    return ids[:1] if ids[:1] == (tokenizer.bos_token_id,) else ()
