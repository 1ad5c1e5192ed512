"""The text tower of a run: ours, an LLM that becomes one, or a text model of transformers."""

from typing import Any, Literal, NoReturn

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

from radtower.modeling.llm_sources.modeling_llm_import import PUBLIC_ARCHITECTURE
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_towers import pool_states
from radtower.training.clip.clip_run import ClipRun
from radtower.training.towers.load_weights import load_whole, require_vectors

LLM_SETTINGS = ("llm_pooling", "num_llm_layers", "bidirectional", "llm_normalize")
PROMPT_SETTINGS = ("hard_prompt", "soft_prompt", "prompt_padding")
LLM_ENDINGS = ("ForCausalLM", PUBLIC_ARCHITECTURE)


def load_text_tower(run: ClipRun) -> tuple[PreTrainedModel, Any]:
    """Load a text tower with its tokenizer.

    What names itself a causal language model, a ``.gguf`` file, a LoRA folder, or anything with
    ``llm_pooling`` goes through :meth:`LLMBiEncoder.from_llm`; any other model that is not ours is taken as
    transformers has it.

    Raises:
        ValueError: If settings of an LLM or a prompt are given for another kind of tower, the model is none
            of texts or does not fit its pooling, weights are missing, texts would be longer than the tower
            has positions, or the padding of a prompt has no prompt, or a cache of features that depend on
            the batch.
    """
    kind = _kind_of(run)
    _require_settings_of(kind, run)
    if kind == "transformers":
        return _transformers_tower(run)
    if kind == "llm":
        settings: dict[str, Any] = {
            name: value
            for name, value in (
                ("pooling", run.llm_pooling),
                ("bidirectional", run.bidirectional),
                ("normalize", run.llm_normalize),
            )
            if value is not None
        }
        tower = LLMBiEncoder.from_llm(
            run.text, num_hidden_layers=run.num_llm_layers, max_length=run.max_length, **settings
        )
    else:
        tower = load_whole(LLMBiEncoder, run.text, max_length=run.max_length)
    if run.hard_prompt or run.soft_prompt:
        tower.set_prompt(run.hard_prompt, run.soft_prompt)
    _set_padding(tower, run)
    return tower, tower.tokenizer


def _set_padding(tower: LLMBiEncoder, run: ClipRun) -> None:
    if run.prompt_padding is not None:
        tower.config.prompt_padding = run.prompt_padding
    if tower.config.prompt_padding == "legacy_middle" and not tower.config.depends_on_batch:
        raise ValueError(
            f"prompt_padding must be contiguous for a text tower without a prompt, got 'legacy_middle' for "
            f"{run.text}. Give hard_prompt or soft_prompt, or leave it out."
        )
    if tower.config.depends_on_batch and run.feature_cache is not None:
        raise ValueError(
            f"feature_cache must be None where prompt_padding is legacy_middle, got {run.feature_cache!r}: "
            "the vector of a report depends on its batch. Leave it out, or set prompt_padding to contiguous."
        )


def _kind_of(run: ClipRun) -> Literal["ours", "llm", "transformers"]:
    if run.text.endswith(".gguf"):
        return "llm"
    try:
        config = AutoConfig.from_pretrained(run.text, trust_remote_code=False)
    except OSError:  # without config.json: LoRA and sentence-transformers folders, or an error that says more
        return "llm"
    if config.model_type == "llm_biencoder":
        return "ours"
    is_llm = run.llm_pooling is not None or any(
        name.endswith(LLM_ENDINGS) for name in config.architectures or []
    )
    return "llm" if is_llm else "transformers"


def _require_settings_of(kind: str, run: ClipRun) -> None:
    given = {name: getattr(run, name) for name in LLM_SETTINGS}
    given = {name: value for name, value in given.items() if value is not None}
    if kind != "llm" and given:
        raise ValueError(
            f"{', '.join(given)} must be left out for a text tower that is no raw LLM, got {given} for "
            f"{run.text}. Its own configuration says it."
        )
    prompts = {name: getattr(run, name) for name in PROMPT_SETTINGS if getattr(run, name)}
    if kind == "transformers" and prompts:
        raise ValueError(
            f"{', '.join(prompts)} must be left out for a text model of transformers, got {prompts} for "
            f"{run.text}. Only our text tower reads a prompt."
        )


def _transformers_tower(run: ClipRun) -> tuple[PreTrainedModel, Any]:
    config = AutoConfig.from_pretrained(run.text, trust_remote_code=False)
    config = getattr(config, "text_config", config)  # of a dual encoder, such as CLIP
    if config.is_encoder_decoder:
        _refuse_family(config.model_type, run)
    tower = load_whole(AutoModel, run.text, run.text_pooling, config=config).eval()
    if tower.main_input_name != "input_ids":
        _refuse_family(config.model_type, run)
    num_positions = _num_positions(tower)
    if num_positions is not None and run.max_length > num_positions:
        raise ValueError(
            f"max_length must be at most the {num_positions} positions of the text tower, got "
            f"{run.max_length}. Make it smaller."
        )
    # A pipeline hands on whatever the tokenizer gives, and the dual tower takes no token types.
    tokenizer = AutoTokenizer.from_pretrained(
        run.text, model_input_names=["input_ids", "attention_mask"], trust_remote_code=False
    )
    _require_fit(tower, tokenizer, run)
    return tower, tokenizer


def _refuse_family(model_type: str, run: ClipRun) -> NoReturn:
    raise ValueError(
        f"text must be a text model that gives a vector per token, got a {model_type} in {run.text}. Take "
        "bert, roberta, clip or an LLM."
    )


def _num_positions(tower: PreTrainedModel) -> int | None:
    """Tokens that a text may have; RoBERTa counts them from behind the padding token."""
    for name, module in tower.named_modules():
        is_table = name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
        if is_table and module.padding_idx is not None:
            return int(module.num_embeddings - module.padding_idx - 1)
    return getattr(tower.config, "max_position_embeddings", None)


@torch.no_grad()
def _require_fit(tower: PreTrainedModel, tokenizer: Any, run: ClipRun) -> None:
    """Read one text: a pooler that is not there shows at once."""
    inputs = tokenizer(["no"], return_tensors="pt")
    try:
        require_vectors(tower, pool_states(tower(**inputs), run.text_pooling, inputs["attention_mask"]))
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"text tower and text_pooling must fit, got a {tower.config.model_type} and "
            f"{run.text_pooling!r}: {error}"
        ) from error
