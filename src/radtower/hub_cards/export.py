"""Turn a trained model folder into a Hub-ready one: weights, processor, flat remote code and a card."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from radtower.data.release_check import RECORD_FILE
from radtower.hub_cards.card import CardContent, write_card
from radtower.hub_cards.card_sections.eval_results import is_eval_folder
from radtower.hub_cards.card_sections.pictures_section import CardPicture, is_image_folder
from radtower.hub_cards.card_sections.results_section import NOTHING_MEASURED
from radtower.hub_cards.card_sections.training_section import read_run_record
from radtower.hub_cards.checksums import CHECKSUM_FILE, write_checksums
from radtower.hub_cards.code import export_code
from radtower.hub_cards.families import PACKAGE, Family, family_of_config
from radtower.hub_cards.requirements_file import REQUIREMENTS_FILE, write_requirements
from radtower.hub_cards.sentence_transformers_files import (
    ST_FILES,
    has_st_files,
    is_st_folder,
    set_padding_token,
    write_st_files,
)
from radtower.modeling.safe_loading import refuse_pickles

# What may leave the machine. Everything else in a training folder stays: optimizer states, pickled
# arguments, logs, and run.yaml, which names local paths.
SHIPPED_PATTERNS = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
# Names that remote code can have.
KNOWN_CODE = frozenset(
    path.name
    for folder in ("configuration", "modeling", "processing")
    for path in (PACKAGE / folder).rglob("*.py")
    if path.name != "__init__.py"
)
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def export_model(
    model_folder: str | Path,
    output: str | Path,
    results: str | Path | None = None,
    license_id: str | None = None,
    report: str | Path | None = None,
    pictures: Sequence[CardPicture] = (),
) -> Path:
    """Write the export folder; it appears complete or not at all.

    Args:
        model_folder: What training saved.
        output: New folder; an older export there is replaced, anything else is left alone.
        results: ``results.json`` of the model, for the card. None writes a card without numbers.
        license_id: License of the weights, such as ``apache-2.0``. None leaves it unstated: what the data
            and the base models allow, nobody but the caller knows.
        report: Folder of ``radtower report`` of these results: its curves and intervals go on the card.
        pictures: Further pictures for the card, which may be published.

    Returns:
        ``output``.

    Raises:
        FileNotFoundError: If ``model_folder`` has no configuration or no safetensors weights.
        FileNotFoundError: Also if ``results`` or the pictures of ``report`` are missing.
        ValueError: If the report is of other results, the weights are a pickle, the license is empty, an
            earlier export has results and there are none now, or an adapter lies beside the weights.
        FileExistsError: If ``output`` holds anything that an export does not write.
        KeyError: If the model is of none of our families.
    """
    model_folder, output = Path(model_folder), Path(output)
    config = _read_config(model_folder)
    family = family_of_config(config)
    _refuse_adapter(model_folder)
    if output.exists() and not is_export(output):
        raise FileExistsError(
            f"output must be new or an earlier export, got {output}, which is neither. Choose another folder."
        )
    if results is not None and not Path(results).is_file():
        raise FileNotFoundError(
            f"results must be a file, got {results}. Evaluate the model, or leave it out."
        )
    if license_id is not None and not license_id.strip():
        raise ValueError(f"license_id must name a license, got {license_id!r}. Leave it out to state none.")
    if results is None and _has_results(output):
        raise ValueError(
            f"results must be given again, got None, and the card in {output} has some. Pass them, or remove "
            "the folder first."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    # Beside the output, where a rename is atomic; whatever fails, nothing half-written stays.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        partial = Path(scratch) / output.name
        partial.mkdir()
        for pattern in SHIPPED_PATTERNS:
            for path in sorted(model_folder.glob(pattern)):
                shutil.copyfile(path, partial / path.name)
        config = _without_local_paths(config)
        config["auto_map"] = _auto_map(family, config)
        _write_json(partial / "config.json", config)
        _map_processor(partial, family)
        if config["model_type"] == "llm_biencoder":
            _name_inputs(partial)
            can_pad = (partial / "tokenizer_config.json").exists() and set_padding_token(partial)
            if can_pad and has_st_files(config):
                write_st_files(partial, config)
        export_code([PACKAGE / name for name in family.model_files], partial)
        content = CardContent(
            results=None if results is None else Path(results),
            license_id=license_id,
            report=None if report is None else Path(report),
            pictures=tuple(pictures),
        )
        write_card(partial, family, config, content, read_run_record(model_folder))
        write_requirements(partial, family)
        write_checksums(partial)  # of all that is there: nothing may be written behind it
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
    return output


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"model_folder must hold config.json, got {folder}. Point to a trained model."
        )
    refuse_pickles(folder)
    if not any(folder.glob("model*.safetensors")):
        raise FileNotFoundError(
            f"model_folder must hold safetensors weights, got none in {folder}. Save with save_pretrained."
        )
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def _refuse_adapter(folder: Path) -> None:
    """Without it the weights are those from before its training, and nobody would notice."""
    for path in sorted(folder.glob("adapter_*")):
        raise ValueError(
            f"model_folder must hold no adapter, got {path.name} in {folder}. Merge it into the weights with "
            "merge_and_unload of peft, save the result in a new folder and export that."
        )


def _without_local_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Drop where a tower was loaded from, which transformers keeps in the configuration of a sub-model."""
    return {
        name: _without_local_paths(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name != "_name_or_path"
    }


def is_export(folder: Path) -> bool:
    """Whether a folder has remote code and nothing that an export does not write.

    The second half spares a clone of a Hub repository, with its history and notes: it has remote code too.
    """
    config = folder / "config.json"
    if not config.is_file() or "auto_map" not in json.loads(config.read_text(encoding="utf-8")):
        return False
    known = {"README.md", REQUIREMENTS_FILE, CHECKSUM_FILE, RECORD_FILE, *ST_FILES, *KNOWN_CODE}
    return all(
        (path.is_dir() and (is_st_folder(path) or is_eval_folder(path) or is_image_folder(path)))
        or (path.is_file() and (path.name in known or any(path.match(pat) for pat in SHIPPED_PATTERNS)))
        for path in folder.iterdir()
    )


def _has_results(folder: Path) -> bool:
    """Whether the card of an earlier export has numbers, which a new one without would drop in silence."""
    card = folder / "README.md"
    return card.is_file() and NOTHING_MEASURED not in card.read_text(encoding="utf-8")


def _auto_map(family: Family, config: dict[str, Any]) -> dict[str, str]:
    """Leave out the heads that these weights do not have: they would load with random ones."""
    trained = config.get("architectures") or []
    # The pooling head belongs to the encoder alone; a classifier and masked training save none.
    has_pooling = config.get("pooling") != "latent_attention" or "LLMBiEncoder" in trained
    return {
        auto: reference
        for auto, reference in family.auto_map.items()
        if auto == "AutoConfig"
        or (auto == "AutoModel" and has_pooling)
        or config["model_type"] == "medclip"
        or reference.rpartition(".")[2] in trained
    }


def _name_inputs(folder: Path) -> None:
    """Say that a text tower takes no token types, which some tokenizers would add."""
    path = folder / "tokenizer_config.json"
    if path.exists():
        settings = json.loads(path.read_text(encoding="utf-8"))
        _write_json(path, settings | {"model_input_names": ["input_ids", "attention_mask"]})


def _map_processor(folder: Path, family: Family) -> None:
    for name in PROCESSOR_FILES:
        path = folder / name
        if not path.exists():
            continue
        settings = json.loads(path.read_text(encoding="utf-8"))
        maps = {auto: {auto: reference} for auto, reference in family.processor_auto_map.items()}
        if "AutoProcessor" not in maps:
            settings["auto_map"] = maps["AutoImageProcessor"]
        else:
            settings["auto_map"] = maps["AutoProcessor"]
            if "AutoImageProcessor" in maps:  # else it is one of transformers
                settings["image_processor"]["auto_map"] = maps["AutoImageProcessor"]
        _write_json(path, settings)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
