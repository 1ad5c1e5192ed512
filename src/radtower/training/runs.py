"""What each kind of run may set: the fields of a recipe beside ``transformers.TrainingArguments``."""

from dataclasses import dataclass
from typing import Literal

from radtower.training.clip.clip_run import ClipRun
from radtower.training.stated_data import StatedData

AUGMENTATION_STRENGTHS = (
    "max_rotation_degrees",
    "max_scaling",
    "max_window_shift_hu",
    "max_noise_hu",
    "flip_probability",
)


@dataclass(frozen=True, kw_only=True)
class LabelerRun(StatedData):
    """Fine-tune an LLM into a labeler of reports.

    Labels come from a gold table beside a manifest, from columns of a report table, or from a label table
    beside a report table (distillation). The split ``train`` is trained on; ``validation``, where it has
    labels, is measured and gives the temperature; ``test`` is never read.

    Args:
        llm: Model folder, Hub id, or ``.gguf`` file to start from; or the folder of an encoder, such as that
            of masked training.
        num_hidden_layers: Keep only the lowest layers of the LLM. None keeps all.
        num_frozen_layers: Lowest layers that are not trained; the token embedding goes with them.
        should_cache_frozen: Whether their states are computed once per report and kept in memory, instead of
            in every epoch: the same training, faster. They then run without dropout and in full precision.
        lora_rank: Of low-rank updates of the layers above the frozen ones. 0 trains all of their weights.
        lora_alpha: The updates are scaled by ``lora_alpha / lora_rank``.
        lora_dropout: On the input of the updates.
        bidirectional: Whether tokens see the whole report. False keeps the direction of pre-training.
        num_causal_layers: Lowest layers that keep it although ``bidirectional`` is true.
        finding_pooling: ``sentences``: a finding attends within each sentence, and the largest score counts;
            ``tokens``: once over the whole report.
        finding_layers: How many layers are below each of the states that the finding attention reads, such as
            ``[20, 30]`` of 30; all of them is the output. None is that alone.
        head_learning_rate: Of the finding attention, which starts from nothing. None takes the one of the
            LLM.
        uncertain: Target of uncertain findings. None masks them.
        not_mentioned: Target of findings the report is silent about. None masks them.
        max_length: Tokens read of a report in training. The labeler reads longer ones in windows of as many.
        manifest: Table of studies with their reports; with ``gold``.
        gold: CSV with ``study_id`` and a column per finding: status values, or numbers in [0, 1] or -100.
        reports: Report table or manifest, with label columns of its own or with ``labels``.
        labels: ``labels.parquet`` of the reports of that table.
        text_column: Which text of a study is read; the one that was labeled.
        findings: Findings set, or a YAML file, that chooses the columns. None takes them all.
        soft_targets: Whether scores of ``labels`` are the targets of training where there are some.
        ema_decay: Of the average of the weights that is evaluated and saved. None averages nothing.
        should_overwrite: Whether checkpoints that an earlier run left in the output folder are deleted.
    """

    llm: str
    num_hidden_layers: int | None = None
    num_frozen_layers: int = 0
    should_cache_frozen: bool = False
    lora_rank: int = 0
    lora_alpha: float = 32.0
    lora_dropout: float = 0.05
    bidirectional: bool = True
    num_causal_layers: int = 0
    finding_pooling: Literal["sentences", "tokens"] = "sentences"
    finding_layers: tuple[int, ...] | None = None
    head_learning_rate: float | None = None
    uncertain: float | None = None
    not_mentioned: float | None = 0.0
    max_length: int = 512
    manifest: str | None = None
    gold: str | None = None
    reports: str | None = None
    labels: str | None = None
    text_column: Literal["report", "findings", "impression"] = "report"
    findings: str | None = None
    soft_targets: bool = False
    ema_decay: float | None = None
    should_overwrite: bool = False

    def __post_init__(self) -> None:
        require_frozen_layers(self.should_cache_frozen, self.num_frozen_layers)
        given = {
            name for name in ("manifest", "gold", "reports", "labels") if getattr(self, name) is not None
        }
        if given not in ({"manifest", "gold"}, {"reports"}, {"reports", "labels"}):
            raise ValueError(
                "a labeler must be given manifest and gold, or reports, or reports and labels, got "
                f"{sorted(given)}. Choose one of the three."
            )
        if self.soft_targets and self.labels is None:
            raise ValueError(
                f"soft_targets must come with labels, which have scores, got {self.soft_targets} without. "
                "Leave it out."
            )


@dataclass(frozen=True, kw_only=True)
class TextMNTPRun(StatedData):
    """Teach a decoder to read reports in both directions, by predicting hidden tokens (arXiv 2404.05961).

    Nothing of the frozen layers can be stored: every epoch hides other tokens.

    Args:
        reports: Report table, or a manifest with reports. ``train`` is trained on, ``validation`` measured.
        llm: Model folder, Hub id, or ``.gguf`` file to start from.
        text_column: Which text of a study is read.
        num_hidden_layers: Keep only the lowest layers of the LLM. None keeps all.
        num_frozen_layers: Lowest layers that are not trained; the token embedding goes with them, and so does
            a head that is tied to it.
        bidirectional: Whether tokens see the whole text: what this training is for.
        num_causal_layers: Lowest layers that look back only although ``bidirectional`` is true.
        max_length: Tokens of a piece; longer reports give several.
        mask_token: Shown in the place of hidden tokens: ``blank`` is the token ``_``, ``eos`` and ``mask``
            the special tokens.
        mask_probability: Of hiding a token.
        mask_corruption: ``mask`` shows the mask for all hidden tokens, ``bert`` for 80 % of them, a random
            token for 10 % and the token itself for 10 %.
        lora_rank: Of low-rank updates; the language-model head then stays as it is. 0 trains all weights.
        lora_alpha: The updates are scaled by ``lora_alpha / lora_rank``.
        lora_dropout: On the input of the updates.
        should_overwrite: Whether checkpoints that an earlier run left in the output folder are deleted.
    """

    reports: str
    llm: str
    text_column: Literal["report", "findings", "impression"] = "report"
    num_hidden_layers: int | None = None
    num_frozen_layers: int = 0
    bidirectional: bool = True
    num_causal_layers: int = 0
    max_length: int = 512
    mask_token: Literal["blank", "eos", "mask"] = "blank"  # noqa: S105 -- a token of a text
    mask_probability: float = 0.2
    mask_corruption: Literal["mask", "bert"] = "mask"
    lora_rank: int = 0
    lora_alpha: float = 32.0
    lora_dropout: float = 0.05
    should_overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class TextContrastiveRun(StatedData):
    """Train an LLM into an encoder whose vectors are close where texts mean the same.

    Args:
        pairs: Tables of pairs with their hard negatives, one or several; see ``radtower reports pairs``.
        llm: Model folder, Hub id, or ``.gguf`` file to start from; or the folder of an encoder, such as that
            of masked training.
        num_hidden_layers: Keep only the lowest layers of the LLM. None keeps all.
        num_frozen_layers: Lowest layers that are not trained; the token embedding goes with them.
        should_cache_frozen: Whether their states are computed once per text and kept in memory, instead of in
            every epoch: the same training, faster. They then run without dropout and in full precision.
        lora_rank: Of low-rank updates of the layers above the frozen ones. 0 trains all of their weights.
        lora_alpha: The updates are scaled by ``lora_alpha / lora_rank``.
        lora_dropout: On the input of the updates.
        bidirectional: Whether tokens see the whole text. False keeps the direction of pre-training.
        pooling: ``mean``, ``latent_attention`` (which starts as the mean), ``last_token`` or ``first_token``.
        max_length: Tokens read of a text, the instruction included, when the encoder is used.
        training_length: Tokens read of it in training. None is the same.
        scale: Inverse temperature of the similarities, > 0.
        is_symmetric: Whether positives look for their queries, too.
        should_mask_labels: Whether pairs of equal ``label_key`` are no negatives of each other. The same text
            never is.
        num_negatives: Hard negatives per pair, drawn anew in each epoch.
        matryoshka_dims: Sizes of the vector that are trained to be used alone. Empty trains the whole only.
        matryoshka_weights: One per size. None is 1 for all.
        attention_dropout: While training; what tells a text from itself in SimCSE.
        chunk_size: Texts of similar length that are encoded together; it changes speed and memory only.
        should_overwrite: Whether checkpoints that an earlier run left in the output folder are deleted.
    """

    pairs: tuple[str, ...]
    llm: str
    num_hidden_layers: int | None = None
    num_frozen_layers: int = 0
    should_cache_frozen: bool = False
    lora_rank: int = 0
    lora_alpha: float = 32.0
    lora_dropout: float = 0.05
    bidirectional: bool = True
    pooling: Literal["latent_attention", "mean", "last_token", "first_token"] = "mean"
    max_length: int = 512
    training_length: int | None = None
    scale: float = 20.0
    is_symmetric: bool = True
    should_mask_labels: bool = True
    num_negatives: int = 1
    matryoshka_dims: tuple[int, ...] = ()
    matryoshka_weights: tuple[float, ...] | None = None
    attention_dropout: float = 0.0
    chunk_size: int = 16
    should_overwrite: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.pairs, str):  # --pairs FILE
            object.__setattr__(self, "pairs", (self.pairs,))
        require_frozen_layers(self.should_cache_frozen, self.num_frozen_layers)
        if not (self.scale > 0 and self.chunk_size >= 1):
            raise ValueError(
                f"scale must be above 0 and chunk_size at least 1, got {self.scale} and {self.chunk_size}. "
                "Usual are 20 and 16."
            )


@dataclass(frozen=True, kw_only=True)
class VisionRun(StatedData):
    """Train the 3D tower on labels of findings: silver ones of the reports, or those of a data set.

    Args:
        manifest: Table of volumes.
        cache: Folder of ``radtower preprocess``, whose processor settings are used.
        labels: ``labels.parquet``; its findings are the classifier's. None takes the labels that the manifest
            has per finding.
        findings: Findings set, or a YAML file, that names those columns. None with ``labels``.
        uncertain: Target of uncertain findings. None masks them.
        not_mentioned: Target of findings the report is silent about. None masks them.
        loss: ``bce``; ``balanced_bce``, where the present labels of a finding weigh as much as the absent
            ones; or ``asymmetric``, which lets easy negatives go.
        ema_decay: Of the average of the weights that is evaluated and saved. None averages nothing.
        layer_lr_decay: Learning rate of each stage, relative to the one above it. None is the same for all.
        pretrained: ``.safetensors`` with the weights of a video ResNet or of MedicalNet to start from; see
            :meth:`CT3DVisionModel.from_video_resnet`. None starts from nothing.
        pretrained_stem: Whether its first convolution is kept (``fold``) or a new one is made (``replace``,
            the published recipe).
        block_type: See :class:`CT3DVisionConfig`, as are the next five. None takes its default, or what the
            ``pretrained`` weights say.
        hidden_sizes: Output channels per stage, or None as before.
        layers: Residual blocks per stage, or None as before.
        stem_kernel_size: Kernel of the first convolution, (Z, Y, X), or None as before.
        stem_stride: Its stride, (Z, Y, X), or None as before.
        pooling: ``avg``, ``max`` or ``gated``.
        should_augment: Whether training volumes differ from epoch to epoch: a crop at random from what the
            cache keeps around it, and what the next five add; see :class:`VolumeAugmentation`.
        max_rotation_degrees: About each axis.
        max_scaling: Zoom by up to this fraction.
        max_window_shift_hu: Of each end of each window.
        max_noise_hu: Largest standard deviation of the noise.
        flip_probability: Of exchanging left and right.
        should_overwrite: Whether checkpoints that an earlier run left in the output folder are deleted.
    """

    manifest: str
    cache: str
    labels: str | None = None
    findings: str | None = None
    uncertain: float | None = None
    not_mentioned: float | None = 0.0
    loss: Literal["bce", "balanced_bce", "asymmetric"] = "bce"
    ema_decay: float | None = None
    layer_lr_decay: float | None = None
    pretrained: str | None = None
    pretrained_stem: Literal["fold", "replace"] = "replace"
    block_type: Literal["basic", "r2plus1d", "mc3", "bottleneck"] | None = None
    hidden_sizes: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    stem_kernel_size: tuple[int, ...] | None = None
    stem_stride: tuple[int, ...] | None = None
    pooling: Literal["avg", "max", "gated"] = "avg"
    should_augment: bool = False
    max_rotation_degrees: float = 0.0
    max_scaling: float = 0.0
    max_window_shift_hu: float = 0.0
    max_noise_hu: float = 0.0
    flip_probability: float = 0.0
    should_overwrite: bool = False

    def __post_init__(self) -> None:
        if (self.labels is None) == (self.findings is None):
            raise ValueError(
                f"either labels or findings must be given, got labels={self.labels!r} and "
                f"findings={self.findings!r}. Name the findings where the labels are in the manifest."
            )
        strengths = {name: getattr(self, name) for name in AUGMENTATION_STRENGTHS}
        if not self.should_augment and any(strengths.values()):
            raise ValueError(
                f"should_augment must be true where something is varied, got {strengths}. "
                "Set it, or all of them to 0."
            )


def require_frozen_layers(should_cache_frozen: bool, num_frozen_layers: int) -> None:
    """Refuse to store the states of no layers.

    Raises:
        ValueError: If they are to be stored and none is frozen.
    """
    if should_cache_frozen and num_frozen_layers < 1:
        raise ValueError(
            "num_frozen_layers must be at least 1 where should_cache_frozen is set, got "
            f"{num_frozen_layers}. Freeze layers, or leave should_cache_frozen out."
        )


AnyRun = LabelerRun | TextContrastiveRun | TextMNTPRun | VisionRun | ClipRun
