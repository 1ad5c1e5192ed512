"""Settings of contrastive training of a dual tower."""

from dataclasses import dataclass
from typing import Literal

from radtower.training.clip.stream_settings import StudySettings
from radtower.training.stated_data import StatedData


@dataclass(frozen=True, kw_only=True)
class ClipRun(StatedData, StudySettings):
    """Align an image tower with a text tower; :class:`StudySettings` says which, and on what.

    Where the text tower is frozen, each report of a manifest is encoded once before training; those of a
    stream are encoded with their batch.

    Args:
        vision_mode: What trains in the image tower: nothing (``frozen``), low-rank updates (``lora``), its
            uppermost layers or stages (``last_n``), or all of it. Both projections, the temperature and the
            finding head always train.
        text_mode: Likewise in the text tower, or ``soft_prompt``: its trained prompt and nothing else.
        num_last_vision_layers: For ``last_n`` of the image tower.
        num_last_text_layers: For ``last_n`` of the text tower.
        lora_rank: Of the low-rank updates of a tower in mode ``lora``.
        lora_alpha: The updates are scaled by ``lora_alpha / lora_rank``.
        lora_dropout: On the input of the updates.
        lora_only: Whether nothing but the updates trains in a tower in mode ``lora``; else the pooling head
            and the soft prompt of our text tower train with them.
        vision_lora_targets: Last parts of the names of the linear layers that are updated. None takes query,
            key, value and output of attention.
        text_lora_targets: Likewise; None takes all linear layers of the decoder of our own text tower.
        feature_cache: Folder that keeps the vectors of a frozen text tower, for this and further runs. None
            computes them once per run.
        labels: ``labels.parquet`` for the shared finding head. None trains without one.
        projection_dim: Size of the shared space.
        vision_projection: From the image tower to it, as the following ones see :class:`MedCLIPConfig`.
        text_projection: From the text tower to it.
        similarity: Of scans and reports.
        loss: Contrastive loss.
        label_share: Of ``soft_infonce``.
        matryoshka_dims: Cuts of the vectors that are trained together.
        logit_scale_init: Logarithm of the first scale.
        logit_bias_init: First bias of ``siglip``.
        chunk_size: Studies whose activations are in memory at a time, for batches larger than memory. None
            takes the batch at once.
        has_balanced_labels: Whether studies with rare findings are drawn more often; needs ``labels``.
        has_length_batches: Whether reports of like length share a batch, so that little of it is padding;
            where the text tower reads tokens, which a frozen one does once.
        should_augment: Whether each epoch reads another crop of a scan, drawn from what the cache keeps
            around it. Otherwise it is the middle.
        ema_decay: Of the average of the weights that is saved. None averages nothing.
        uncertain: Target of uncertain findings. None masks them.
        not_mentioned: Target of findings the report is silent about. None masks them.
        max_length: Tokens read of a report.
        should_overwrite: Whether checkpoints that an earlier run left in the output folder are deleted.
    """

    vision_mode: Literal["frozen", "lora", "last_n", "full"] = "full"
    text_mode: Literal["frozen", "soft_prompt", "lora", "last_n", "full"] = "frozen"
    num_last_vision_layers: int | None = None
    num_last_text_layers: int | None = None
    lora_rank: int = 16
    lora_alpha: float = 32.0
    lora_dropout: float = 0.05
    lora_only: bool = False
    vision_lora_targets: tuple[str, ...] | None = None
    text_lora_targets: tuple[str, ...] | None = None
    feature_cache: str | None = None
    labels: str | None = None
    projection_dim: int = 512
    vision_projection: Literal["linear", "mlp", "ln_linear", "slice", "identity"] = "linear"
    text_projection: Literal["linear", "mlp", "ln_linear", "slice", "identity"] = "linear"
    similarity: Literal["cosine", "legacy_dot"] = "cosine"
    loss: Literal["infonce", "siglip", "soft_infonce"] = "infonce"
    label_share: float = 0.5
    matryoshka_dims: tuple[int, ...] = ()
    logit_scale_init: float = 2.6592
    logit_bias_init: float = -10.0
    chunk_size: int | None = None
    has_balanced_labels: bool = False
    has_length_batches: bool = False
    should_augment: bool = False
    ema_decay: float | None = None
    uncertain: float | None = None
    not_mentioned: float | None = 0.0
    max_length: int = 512
    should_overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_of_manifest(
            feature_cache=self.feature_cache,
            has_balanced_labels=self.has_balanced_labels,
            has_length_batches=self.has_length_batches,
        )
        if self.labels is None and (self.has_balanced_labels or self.loss == "soft_infonce"):
            raise ValueError(
                "labels must be given for balanced batches and for soft_infonce, got None with "
                f"has_balanced_labels={self.has_balanced_labels} and loss={self.loss!r}. Name a table."
            )
        for side, mode in (("vision", self.vision_mode), ("text", self.text_mode)):
            for name, owner in ((f"num_last_{side}_layers", "last_n"), (f"{side}_lora_targets", "lora")):
                if mode != owner and getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} must come with {side}_mode {owner}, got {getattr(self, name)!r} with "
                        f"{mode}. Change the mode, or leave it out."
                    )
            if mode == "last_n" and getattr(self, f"num_last_{side}_layers") is None:
                raise ValueError(
                    f"num_last_{side}_layers must be given with {side}_mode last_n, got None. "
                    "Say how many layers train."
                )
        if self.lora_only and "lora" not in (self.vision_mode, self.text_mode):
            raise ValueError(
                f"lora_only must be false where no tower is in mode lora, got true with {self.vision_mode} "
                f"and {self.text_mode}. Leave it out, or set a mode to lora."
            )
        if self.feature_cache is not None and self.text_mode != "frozen":
            raise ValueError(
                f"feature_cache must be None unless text_mode is frozen, got {self.feature_cache!r} with "
                f"{self.text_mode}, whose training changes the features. Leave it out, or freeze the tower."
            )
        if self.has_length_batches and self.text_mode == "frozen":
            raise ValueError(
                f"has_length_batches must be false where text_mode is frozen, got {self.has_length_batches}: "
                "vectors of reports are not padded. Leave it out, or train the tower."
            )
        if self.should_augment and self.cache is None:
            raise ValueError(
                f"should_augment must be false where there is no cache, got {self.should_augment}: crops are "
                "drawn from what a cache keeps around them. Leave it out, or name the cache."
            )
