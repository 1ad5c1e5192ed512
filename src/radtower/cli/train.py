"""``radtower train``: a recipe in, a model folder out."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from radtower.cli.extras import register_models
from radtower.cli.push_beside import (
    DEFAULT_WAIT_S,
    PushBeside,
    PushLicense,
    PushPublic,
    PushTag,
    PushTo,
    PushWait,
)

train_app = typer.Typer(
    no_args_is_help=True, help="Train a text encoder, a labeler, an image tower or a dual tower."
)
# Fields of the recipe as flags: --learning_rate 1e-4. The recipe's own classes check them.
FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}
Recipe = Annotated[Path, typer.Argument(help="YAML recipe; every field can be overridden as --field value.")]


@train_app.command(context_settings=FLAGS)
def labeler(
    context: typer.Context,
    recipe: Recipe,
    push_to: PushTo = None,
    push_public: PushPublic = False,
    push_tag: PushTag = None,
    push_license: PushLicense = None,
    push_wait: PushWait = DEFAULT_WAIT_S,
) -> None:
    """Fine-tune an LLM into a labeler of reports."""
    register_models()
    from radtower.training.runs import LabelerRun
    from radtower.training.train_text import train_labeler

    run, arguments = _read(context, recipe, LabelerRun)
    pushes = PushBeside(push_to, push_public, push_tag, push_license, push_wait)
    print(f"Saved {pushes.run(lambda callbacks: train_labeler(run, arguments, callbacks, on_note=print))}")


@train_app.command("text-contrastive", context_settings=FLAGS)
def text_contrastive(
    context: typer.Context,
    recipe: Recipe,
    push_to: PushTo = None,
    push_public: PushPublic = False,
    push_tag: PushTag = None,
    push_license: PushLicense = None,
    push_wait: PushWait = DEFAULT_WAIT_S,
) -> None:
    """Train an LLM into a report encoder on pairs of texts."""
    register_models()
    from radtower.training.runs import TextContrastiveRun
    from radtower.training.text.train_contrastive import train_contrastive

    run, arguments = _read(context, recipe, TextContrastiveRun)
    pushes = PushBeside(push_to, push_public, push_tag, push_license, push_wait)
    print(f"Saved {pushes.run(lambda callbacks: train_contrastive(run, arguments, callbacks))}")


@train_app.command("text-mntp", context_settings=FLAGS)
def text_mntp(
    context: typer.Context,
    recipe: Recipe,
    push_to: PushTo = None,
    push_public: PushPublic = False,
    push_tag: PushTag = None,
    push_license: PushLicense = None,
    push_wait: PushWait = DEFAULT_WAIT_S,
) -> None:
    """Teach an LLM to read reports in both directions."""
    register_models()
    from radtower.training.runs import TextMNTPRun
    from radtower.training.text.train_mntp import train_mntp

    run, arguments = _read(context, recipe, TextMNTPRun)
    pushes = PushBeside(push_to, push_public, push_tag, push_license, push_wait)
    print(f"Saved {pushes.run(lambda callbacks: train_mntp(run, arguments, callbacks))}")


@train_app.command(context_settings=FLAGS)
def vision(
    context: typer.Context,
    recipe: Recipe,
    push_to: PushTo = None,
    push_public: PushPublic = False,
    push_tag: PushTag = None,
    push_license: PushLicense = None,
    push_wait: PushWait = DEFAULT_WAIT_S,
) -> None:
    """Train the 3D tower on silver labels."""
    register_models()
    from radtower.training.runs import VisionRun
    from radtower.training.train_vision import train_vision

    run, arguments = _read(context, recipe, VisionRun)
    pushes = PushBeside(push_to, push_public, push_tag, push_license, push_wait)
    print(f"Saved {pushes.run(lambda callbacks: train_vision(run, arguments, callbacks))}")


@train_app.command(context_settings=FLAGS)
def clip(
    context: typer.Context,
    recipe: Recipe,
    push_to: PushTo = None,
    push_public: PushPublic = False,
    push_tag: PushTag = None,
    push_license: PushLicense = None,
    push_wait: PushWait = DEFAULT_WAIT_S,
) -> None:
    """Align an image tower with a text tower."""
    register_models()
    from radtower.training.runs import ClipRun
    from radtower.training.train_medclip import train_medclip

    run, arguments = _read(context, recipe, ClipRun)
    pushes = PushBeside(push_to, push_public, push_tag, push_license, push_wait)
    print(f"Saved {pushes.run(lambda callbacks: train_medclip(run, arguments, callbacks, on_note=print))}")


def _read(context: typer.Context, recipe: Path, run_class: type[Any]) -> tuple[Any, Any]:
    """The run and the training arguments that the recipe and the flags make."""
    from radtower.training.arguments import parse_recipe, read_recipe, switches_of

    flags = parse_flags(context.args, switches_of(run_class))
    return parse_recipe({**read_recipe(recipe), **flags}, run_class)


def parse_flags(flags: list[str], switches: Collection[str] = ()) -> dict[str, Any]:
    """``["--learning_rate", "1e-4"]`` -> ``{"learning_rate": 0.0001}``; values are read as YAML.

    ``--learning_rate=1e-4`` is the same. A flag of ``switches`` may stand alone, which sets it to true.

    Raises:
        ValueError: If any other flag has no value, a value has no flag, or a field comes twice.
    """
    pairs: list[tuple[str, str | None]] = []
    for flag in flags:
        if flag.startswith("--"):
            name, sign, value = flag.removeprefix("--").partition("=")
            pairs.append((name.replace("-", "_"), value if sign else None))
        elif pairs and pairs[-1][1] is None:
            pairs[-1] = (pairs[-1][0], flag)
        else:
            pairs.append(("", flag))  # a value of no field
    if any(not field or (value is None and field not in switches) for field, value in pairs):
        raise ValueError(
            f"flags must be pairs of --field and value, got {flags}. Give each field one value; only one "
            "that is true or false may stand alone."
        )
    fields = [field for field, _ in pairs]
    repeated = sorted({field for field in fields if fields.count(field) > 1})
    if repeated:
        raise ValueError(
            f"flags must name a field once, got {repeated} several times. Write a list as '[first, second]'."
        )
    return {field: True if text is None else _value(text) for field, text in pairs}


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
