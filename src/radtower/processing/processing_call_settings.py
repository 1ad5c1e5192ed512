"""Settings of one call of a processor -> those of its tokenizer, and those of its image processor.

As in transformers, they are given flat (``padding=True``) or by part (``text_kwargs={"padding": True}``).
Unlike there, a name that nobody knows is refused. The names of the tokenizer stand here, for releases of
transformers differ in them.
"""

from collections.abc import Collection, Mapping
from typing import Any

TEXT_SETTINGS = (
    "add_special_tokens",
    "max_length",
    "pad_to_multiple_of",
    "padding",
    "padding_side",
    "return_attention_mask",
    "return_tensors",
    "truncation",
    "verbose",
)
# Setting -> what it adds to the output.
TEXT_OUTPUTS = {
    "return_length": "length",
    "return_special_tokens_mask": "special_tokens_mask",
    "return_token_type_ids": "token_type_ids",
}
# Tokenizers have these, and here they would do harm or nothing: setting -> what to do instead.
REFUSED_OF_TEXTS = {
    "is_split_into_words": "Pass every text as one string.",
    "return_mm_token_type_ids": "No token stands for an image.",
    "return_offsets_mapping": "Call processor.tokenizer: offsets would count the instruction.",
    "return_overflowing_tokens": "Split long texts before: a row would not be a text.",
    "return_text_replacement_offsets": "No token stands for an image.",
    "sanitize_control_tokens": "No token stands for an image.",
    "stride": "Split long texts before: a row would not be a text.",
    "text_pair": "Join both texts.",
    "text_pair_target": "Join both texts.",
    "text_target": "Pass it as text, in a call of its own.",
}
PARTS = ("text_kwargs", "images_kwargs")


def split_settings(
    given: Mapping[str, Any], image_settings: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sort the settings of a call by part.

    A name that both parts have, such as ``return_tensors``, goes to both. What ``common_kwargs`` says holds
    where nothing else is said.

    Args:
        given: Flat, or under ``text_kwargs``, ``images_kwargs`` and ``common_kwargs``.
        image_settings: Names that the image processor has.

    Returns:
        Those of the tokenizer, and those of the image processor.

    Raises:
        TypeError: If a name is unknown.
        ValueError: If a setting is given flat and by part.
    """
    texts = {*TEXT_SETTINGS, *TEXT_OUTPUTS, *REFUSED_OF_TEXTS}
    known = dict(zip(PARTS, (texts, {*image_settings, "return_tensors"}), strict=True))
    common = given.get("common_kwargs") or {}
    flat = {name: value for name, value in given.items() if name not in (*PARTS, "common_kwargs")}
    _refuse_unknown("a call", {*common, *flat}, set().union(*known.values()))
    split = []
    for part, names in known.items():
        of_part = given.get(part) or {}
        _refuse_unknown(part, of_part, names)
        for name in of_part:
            if name in flat:  # in the words of transformers
                raise ValueError(
                    f"Keyword argument {name} was passed two times:\nin a dictionary for {part} and as a "
                    "**kwarg. Leave one out."
                )
        split.append({name: value for name, value in {**common, **flat}.items() if name in names} | of_part)
    return split[0], split[1]


def text_arguments(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for the tokenizer.

    Args:
        settings: Of one call, from :func:`split_settings`. None is as if it were left out, but for
            ``return_tensors``, where it asks for lists.
        defaults: What holds where the call says nothing.

    Returns:
        The settings over the defaults.

    Raises:
        ValueError: If a setting cannot be honored, or ``max_length`` is below 1.
    """
    said = {name: value for name, value in settings.items() if value is not None or name == "return_tensors"}
    for name, instead in REFUSED_OF_TEXTS.items():
        if said.pop(name, None):
            raise ValueError(f"{name} must be left out, got {settings[name]!r}. {instead}")
    if said.get("return_attention_mask") is False:
        raise ValueError(
            "return_attention_mask must be left out, got False: padding may be the token that ends a text; "
            "the mask alone tells them apart. Drop attention_mask from the result."
        )
    arguments = {**defaults, **said}
    if arguments["max_length"] < 1:
        raise ValueError(
            f"max_length must be positive, got {arguments['max_length']}. Leave it out for the default."
        )
    if arguments["truncation"] == "only_second":
        raise ValueError(
            "truncation must not be 'only_second', got one text per row. Use True, or False to keep all."
        )
    if "max_length" not in said and _needs_no_length(arguments):
        del arguments["max_length"]  # the tokenizer would warn
    return arguments


def _needs_no_length(arguments: Mapping[str, Any]) -> bool:
    return arguments["truncation"] in (False, "do_not_truncate") and arguments["padding"] != "max_length"


def _refuse_unknown(place: str, names: Collection[str], known: Collection[str]) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise TypeError(
            f"settings of {place} must be among {', '.join(sorted(known))}, got {', '.join(unknown)}. Leave "
            "them out."
        )
