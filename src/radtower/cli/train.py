"""``radtower train``: a recipe in, a model folder out."""

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from radtower.cli.extras import register_models

train_app = typer.Typer(
    no_args_is_help=True, help="Train a text encoder, a labeler, an image tower or a dual tower."
)
# Fields of the recipe as flags: --learning_rate 1e-4. The recipe's own classes check them.
FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}
Recipe = Annotated[Path, typer.Argument(help="YAML recipe; every field can be overridden as --field value.")]


@train_app.command(context_settings=FLAGS)
def labeler(context: typer.Context, recipe: Recipe) -> None:
    """Fine-tune an LLM into a labeler of reports."""
    register_models()
    from radtower.training.arguments import parse_recipe, read_recipe
    from radtower.training.runs import LabelerRun
    from radtower.training.train_text import train_labeler

    run, arguments = parse_recipe({**read_recipe(recipe), **parse_flags(context.args)}, LabelerRun)
    print(f"Saved {train_labeler(run, arguments, on_note=print)}")


@train_app.command("text-contrastive", context_settings=FLAGS)
def text_contrastive(context: typer.Context, recipe: Recipe) -> None:
    """Train an LLM into a report encoder on pairs of texts."""
    register_models()
    from radtower.training.arguments import parse_recipe, read_recipe
    from radtower.training.runs import TextContrastiveRun
    from radtower.training.text.train_contrastive import train_contrastive

    run, arguments = parse_recipe({**read_recipe(recipe), **parse_flags(context.args)}, TextContrastiveRun)
    print(f"Saved {train_contrastive(run, arguments)}")


@train_app.command("text-mntp", context_settings=FLAGS)
def text_mntp(context: typer.Context, recipe: Recipe) -> None:
    """Teach an LLM to read reports in both directions."""
    register_models()
    from radtower.training.arguments import parse_recipe, read_recipe
    from radtower.training.runs import TextMNTPRun
    from radtower.training.text.train_mntp import train_mntp

    run, arguments = parse_recipe({**read_recipe(recipe), **parse_flags(context.args)}, TextMNTPRun)
    print(f"Saved {train_mntp(run, arguments)}")


@train_app.command(context_settings=FLAGS)
def vision(context: typer.Context, recipe: Recipe) -> None:
    """Train the 3D tower on silver labels."""
    register_models()
    from radtower.training.arguments import parse_recipe, read_recipe
    from radtower.training.runs import VisionRun
    from radtower.training.train_vision import train_vision

    run, arguments = parse_recipe({**read_recipe(recipe), **parse_flags(context.args)}, VisionRun)
    print(f"Saved {train_vision(run, arguments)}")


@train_app.command(context_settings=FLAGS)
def clip(context: typer.Context, recipe: Recipe) -> None:
    """Align an image tower with a text tower."""
    register_models()
    from radtower.training.arguments import parse_recipe, read_recipe
    from radtower.training.runs import ClipRun
    from radtower.training.train_medclip import train_medclip

    run, arguments = parse_recipe({**read_recipe(recipe), **parse_flags(context.args)}, ClipRun)
    print(f"Saved {train_medclip(run, arguments)}")


def parse_flags(flags: list[str]) -> dict[str, Any]:
    """``["--learning_rate", "1e-4"]`` -> ``{"learning_rate": 0.0001}``; values are read as YAML.

    ``--learning_rate=1e-4`` is the same.

    Raises:
        ValueError: If the list is not made of pairs, or a field comes twice.
    """
    parts = [part for flag in flags for part in (flag.split("=", 1) if flag.startswith("--") else [flag])]
    names, values = parts[::2], parts[1::2]
    if len(names) != len(values) or not all(name.startswith("--") for name in names):
        raise ValueError(f"flags must be pairs of --field and value, got {flags}. Give each field one value.")
    fields = [name[2:].replace("-", "_") for name in names]
    repeated = sorted({field for field in fields if fields.count(field) > 1})
    if repeated:
        raise ValueError(
            f"flags must name a field once, got {repeated} several times. Write a list as '[first, second]'."
        )
    return {field: _value(text) for field, text in zip(fields, values, strict=True)}


def _value(text: str) -> Any:
    try:
        number = float(text) if "e" in text.lower() else None  # YAML reads 1e-4 as text
    except ValueError:
        number = None
    if number is None:
        return yaml.safe_load(text)
    return int(number) if number.is_integer() else number  # 1e3 steps are a whole number


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.add_typer(train_app, name="train")
