"""A conversation around a report, in token ids: what stands before the report, and what behind."""

from collections.abc import Mapping
from datetime import date

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

REPORT_SLOT = "\ue000"  # stands for the report while a chat template is filled; normal text does not hold it
# What a chat template raises, which is a program: its own refusals, and faults such as None + "text".
_TEMPLATE_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
# Some templates print today's date: the prompt, and with it the generation of the answers, would be another
# tomorrow. This is the day that the template of Llama 3 takes where it knows none.
_DAY = date(2024, 7, 26)
_TEMPLATE_FIX = "Correct the template, or take it out of the files of the model to prompt without one."


def split_conversation(
    tokenizer: PreTrainedTokenizerBase, system: str, user: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokenize a conversation up to the answer of the model, without the report.

    A chat template is used where the tokenizer has one; else the text is plain, behind what the tokenizer
    puts in front of every text. What a template does not take as a system turn comes first in the turn of the
    user. The report is tokenized apart (``encode_data``), so that it stays inside its
    turn whatever it holds.

    Args:
        tokenizer: Of the model.
        system: What the model is to do.
        user: What the user says, with ``REPORT_SLOT`` in place of the report.

    Returns:
        Token ids before and behind the report.

    Raises:
        ValueError: If the chat template fails, does not hold the report exactly once, or loses other text.
    """
    text = _fill_template(tokenizer, system, user)
    _check_whole(text, system, user)
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
    try:
        text = _apply_template(tokenizer, {"system": system, "user": user})
    except _TEMPLATE_ERRORS:  # Gemma 2 and others refuse a system role
        text = ""
    if system.strip() in text:
        return text
    # Others leave a system turn out in silence: then the model would not know what it is asked.
    try:
        return _apply_template(tokenizer, {"user": f"{system}\n\n{user}"})
    except _TEMPLATE_ERRORS as error:
        raise ValueError(
            "the chat template of the model must take a user turn, got "
            f"{type(error).__name__}: {error}. {_TEMPLATE_FIX}"
        ) from None


def _apply_template(tokenizer: PreTrainedTokenizerBase, turns: Mapping[str, str]) -> str:
    messages = [{"role": role, "content": text} for role, text in turns.items()]
    # enable_thinking belongs to Qwen3 and others, whose templates would otherwise open a train of thought.
    return str(
        tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
            date_string=_DAY.strftime("%d %b %Y"),
            strftime_now=_DAY.strftime,
        )
    )


def _check_whole(text: str, system: str, user: str) -> None:
    num_reports = text.count(REPORT_SLOT)
    if num_reports != 1:
        raise ValueError(
            "the chat template of the model must hold the report once, got it "
            f"{num_reports} times. {_TEMPLATE_FIX}"
        )
    for name, part in (("instruction", system), ("text around the report", user)):
        if part.strip() not in text:
            raise ValueError(
                f"the chat template of the model must hold the whole {name}, got it left out or changed. "
                f"{_TEMPLATE_FIX}"
            )


def _start_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Give what the tokenizer puts in front of every text, such as <bos>."""
    ids = tuple(tokenizer("x")["input_ids"])
    return ids[:1] if ids[:1] == (tokenizer.bos_token_id,) else ()
