"""The recipes that ship: each is complete, and that of CT-RATE trains on a tree laid out as CT-RATE."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin

from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.training.arguments import parse_recipe, read_recipe
from radtower.training.runs import ClipRun, LabelerRun, TextContrastiveRun, TextMNTPRun, VisionRun

RECIPES = Path(__file__).parents[2] / "recipes"
KINDS = {
    "clip": ClipRun,
    "labeler": LabelerRun,
    "text-contrastive": TextContrastiveRun,
    "text-mntp": TextMNTPRun,
    "vision": VisionRun,
}
VOLUMES = {
    "train": ["train_1_a_1", "train_1_a_2", "train_2_a_1", "train_3_a_1", "train_4_a_1", "train_10_a_1"],
    "valid": ["valid_1_a_1"],
}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_complete_and_says_how_to_start_it(path, tmp_path):
    kinds = [kind for kind in KINDS if f"radtower train {kind} recipes/{path.name}" in path.read_text()]
    assert len(kinds) == 1
    kind = kinds[0]
    settings = {**read_recipe(path), "output_dir": str(tmp_path), "bf16": False}
    run, _ = parse_recipe(settings, KINDS[kind])
    assert isinstance(run, KINDS[kind])


def test_the_ctrate_recipe_has_the_published_settings(tmp_path):
    settings = {**read_recipe(RECIPES / "vision_ctrate.yaml"), "output_dir": str(tmp_path), "bf16": False}
    run, arguments = parse_recipe(settings, VisionRun)
    assert (run.hidden_sizes, run.layers, run.pooling) == ((64, 128, 256, 512), (2, 2, 2, 2), "avg")
    assert (run.stem_kernel_size, run.stem_stride, run.loss) == ((2, 2, 2), (2, 2, 2), "bce")
    assert (arguments.learning_rate, arguments.weight_decay, arguments.max_grad_norm) == (1e-4, 1e-4, 0.0)
    assert (arguments.per_device_train_batch_size, arguments.num_train_epochs) == (10, 5)
    assert arguments.lr_scheduler_type == "cosine_with_min_lr"
    assert arguments.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert (arguments.optim, arguments.metric_for_best_model) == ("adamw_torch_fused", "macro_auroc")


def test_the_ctrate_processor_has_the_published_geometry():
    processor = CT3DImageProcessor.from_pretrained(RECIPES / "processor_ctrate")
    assert (processor.spacing_mm, processor.size) == ((3.0, 1.5, 1.5), (96, 192, 192))
    assert (tuple(processor.cache_size), processor.windows_hu) == ((120, 240, 240), ((-1000.0, 200.0),))
    assert processor.fill_hu == -1000.0


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("fsdp2", "FSDP", {"fsdp_version": 2, "fsdp_reshard_after_forward": True}),
        ("deepspeed_zero2", "DEEPSPEED", {"zero_stage": 2, "gradient_accumulation_steps": 1}),
    ],
)
def test_configurations_of_accelerate_are_read_by_it(name, kind, settings):
    config = load_config_from_file(str(RECIPES / "accelerate" / f"{name}.yaml"))
    assert config.distributed_type == kind
    assert config.mixed_precision == "bf16"
    found = config.fsdp_config if kind == "FSDP" else config.deepspeed_config
    assert settings.items() <= found.items()


def test_deepspeed_gets_what_the_configuration_says():
    config = load_config_from_file(str(RECIPES / "accelerate" / "deepspeed_zero2.yaml"))
    plugin = DeepSpeedPlugin(**config.deepspeed_config)
    plugin.set_mixed_precision(config.mixed_precision)
    settings = plugin.deepspeed_config
    assert settings["zero_optimization"]["stage"] == 2
    assert settings["zero_optimization"]["offload_optimizer"]["device"] == "none"
    assert (settings["bf16"], settings["fp16"]) == ({"enabled": True}, {"enabled": False})
    assert settings["gradient_accumulation_steps"] == 1
    # What transformers fills in from the recipe.
    assert {name for name, value in settings.items() if value == "auto"} == {
        "gradient_clipping",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
    }


def test_deepspeed_itself_accepts_the_configuration():
    runtime = pytest.importorskip("deepspeed.runtime.config")
    config = load_config_from_file(str(RECIPES / "accelerate" / "deepspeed_zero2.yaml"))
    plugin = DeepSpeedPlugin(**config.deepspeed_config)
    plugin.set_mixed_precision(config.mixed_precision)
    filled = {"gradient_clipping": 1.0, "train_batch_size": 2, "train_micro_batch_size_per_gpu": 2}
    found = runtime.DeepSpeedConfig(plugin.deepspeed_config | filled)
    assert (found.zero_optimization_stage, found.gradient_clipping) == (2, 1.0)
