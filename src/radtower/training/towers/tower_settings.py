"""Where the towers of a dual tower come from: fields of its recipe."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class TowerSettings:
    """Which towers a dual tower joins, and how they are read.

    Args:
        cache: Folder of ``radtower preprocess``, whose processor settings are used. None reads the images of
            the manifest themselves, which are then 2D, or those of a data set.
        vision: Model folder of the 3D tower; for 2D images, folder or Hub id of a vision model of
            transformers, or the configuration of a fresh one, with ``model_type`` and ``image_size``.
        text: Model folder of our text tower; or an LLM, such as a ``.gguf`` file; or a text model of
            transformers.
        should_reset_vision: Whether to keep only the shape of ``vision`` and draw new weights: the
            comparison without supervised pre-training.
        should_keep_projection: Whether the image projection starts as that of the dual encoder ``vision``,
            such as CLIP: images then begin where it puts them. Needs a ``linear`` projection to as many
            dimensions.
        vision_pooling: How the states of a transformers vision model become one vector: its ``pooler``
            output, the first state (``cls``), their ``mean``, or the ``last`` one. Our towers pool
            themselves.
        text_pooling: Likewise of a transformers text model, over real tokens.
        llm_pooling: Makes an encoder of an LLM: ``mean``, ``latent_attention`` (which starts as the mean),
            ``last_token`` or ``first_token`` of its tokens. None takes what the LLM says, if it says it.
        num_llm_layers: Keep only the lowest layers of the LLM. None keeps all.
        bidirectional: Whether tokens of the LLM see the whole text; false keeps the direction of its
            training. None takes what the LLM says.
        llm_normalize: Whether vectors of an LLM are scaled to length 1 before their projection. None takes
            what the LLM says.
        instruction: Put around every report before it is tokenized, ``{text}`` marking its place. The model
            keeps it. None reads reports as they are.
        hard_prompt: Words in front of every text, for our text tower and for an LLM.
        soft_prompt: Words behind them whose vectors can be trained.
        prompt_padding: ``legacy_middle`` puts the padding between prompt and text, as the published code of
            QwenCLIP does, so that a report's vector depends on its batch; ``contiguous`` does not. None takes
            what our text tower says, and ``contiguous`` for an LLM.
    """

    cache: str | None = None
    vision: str | dict[str, Any]
    text: str
    should_reset_vision: bool = False
    should_keep_projection: bool = False
    vision_pooling: Literal["pooler", "cls", "mean", "last"] = "pooler"
    text_pooling: Literal["pooler", "cls", "mean", "last"] = "pooler"
    llm_pooling: Literal["latent_attention", "mean", "last_token", "first_token"] | None = None
    num_llm_layers: int | None = None
    bidirectional: bool | None = None
    llm_normalize: bool | None = None
    instruction: str | None = None
    hard_prompt: str = ""
    soft_prompt: str = ""
    prompt_padding: Literal["contiguous", "legacy_middle"] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.vision, dict) and (self.cache is not None or self.should_reset_vision):
            raise ValueError(
                "vision must be a model folder where there is a cache or it is to be reset, got a "
                f"configuration with cache={self.cache!r} and "
                f"should_reset_vision={self.should_reset_vision}. Leave the other out."
            )
        if self.should_keep_projection:
            self._require_whole_dual_encoder()

    def _require_whole_dual_encoder(self) -> None:
        wanted = {"cache": None, "should_reset_vision": False, "vision_pooling": "pooler"}
        other = {name: getattr(self, name) for name, value in wanted.items() if getattr(self, name) != value}
        if other or not isinstance(self.vision, str):
            raise ValueError(
                "should_keep_projection must be false unless vision is a dual encoder of transformers with "
                f"its weights and its pooler, got {other or self.vision}. Leave one of them out."
            )
