"""A folder of a model -> what of it may go up: exported, verified, searched for identifiers; and its push.

An adapter of PEFT goes up as an adapter: its weights, its configuration and a card.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from radtower.data.privacy import PrivacyReport
from radtower.data.publish import Published, PushTarget, check_repo_id, push_folder
from radtower.data.release_check import RECORD_FILE, refuse_links, refuse_private_content
from radtower.hub_cards.card_sections.pictures_section import CardPicture
from radtower.hub_cards.checksums import CHECKSUM_FILE, verify_checksums
from radtower.hub_cards.code import ALLOWED_PACKAGES
from radtower.hub_cards.code_safety import refuse_unsafe_code
from radtower.hub_cards.export import KNOWN_CODE, SHIPPED_PATTERNS, export_model, is_export
from radtower.hub_cards.sentence_transformers_files import ST_FILES, ST_FOLDERS

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_TEMPLATE = Path(__file__).parent / "templates" / "adapter.md"
# What a push of a model replaces as a whole. Without it the weights of an older version, in other shards,
# would stay and be loaded.
OWNED_FILES = (
    *SHIPPED_PATTERNS,
    *sorted(KNOWN_CODE),
    *ST_FILES,
    *(f"{name}/config.json" for name in ST_FOLDERS),
    *(".eval_results/*.yaml", "card_images/*.png", "requirements.txt"),
    *(CHECKSUM_FILE, RECORD_FILE, ADAPTER_CONFIG, "adapter_model*.safetensors"),
)


@dataclass(frozen=True, kw_only=True)
class ModelReleaseOptions:
    """What the publisher decides.

    Args:
        results: ``results.json`` for the card. None takes the one in the folder, if there is one.
        license_id: Of the weights, such as ``apache-2.0``. None leaves it unstated.
        report: Folder of ``radtower report`` of these results, for the curves on the card.
        pictures: Further pictures for the card, which may be published.
        allowed_reason: Why findings of the privacy check are harmless; it is published. None allows none.
    """

    results: Path | None = None
    license_id: str | None = None
    report: Path | None = None
    pictures: tuple[CardPicture, ...] = ()
    allowed_reason: str | None = None


@dataclass(frozen=True)
class ModelRelease:
    """What goes up: all files of ``folder``, which is there as long as it is being prepared."""

    folder: Path
    kind: Literal["model", "export", "adapter"]
    privacy: PrivacyReport

    @property
    def files(self) -> dict[str, int]:
        """Path in the folder -> size in bytes."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in paths}


def push_release(
    release: ModelRelease, repo_id: str, *, message: str, is_public: bool, target: PushTarget
) -> Published:
    """Push what is prepared; files of an older version that it does not have are deleted there."""
    return push_folder(
        release.folder,
        repo_id,
        repo_type="model",
        message=message,
        is_public=is_public,
        owned_files=OWNED_FILES,
        target=target,
    )


@contextmanager
def prepare_model(
    folder: str | Path,
    repo_id: str,
    options: ModelReleaseOptions = ModelReleaseOptions(),
) -> Iterator[ModelRelease]:
    """Make the folder that goes up, beside ``folder``, which stays as it is; it is gone in the end.

    Args:
        folder: What training saved; an export of it; or an adapter.
        repo_id: ``owner/name`` on the Hub; the card is headed by the name.
        options: All but the reason are for what is not exported yet; an adapter takes a license.

    Raises:
        FileNotFoundError: If there is no model in the folder, or a file that an export lists is missing.
        ValueError: If the id is none, an export is not as its checksums say, has links that lead out of it or
            code that does more than compute, an option is for another kind of folder, an adapter names a
            model of this machine, or something may identify a patient.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    with tempfile.TemporaryDirectory(dir=_place_beside(folder), prefix=".radtower-push-") as scratch:
        target = Path(scratch) / repo_id.rpartition("/")[2]
        kind = _kind(folder)
        if kind == "model":
            own = folder / "results.json"
            results = options.results or (own if own.exists() else None)
            export_model(folder, target, results, options.license_id, options.report, options.pictures)
        elif kind == "export":
            _refuse_options(kind, license=options.license_id, **_for_the_card(options))
            refuse_links(folder)
            verify_checksums(folder)
            _link_tree(folder, target)
            refuse_unsafe_code(target.rglob("*.py"), ALLOWED_PACKAGES)  # somebody may have edited it
        else:
            _refuse_options(kind, **_for_the_card(options))
            _write_adapter(folder, target, options.license_id)
        report = refuse_private_content(target, allowed_reason=options.allowed_reason)
        yield ModelRelease(target, kind, report)


def _kind(folder: Path) -> Literal["model", "export", "adapter"]:
    if not folder.is_dir():
        raise FileNotFoundError(f"folder must be that of a model, got {folder}. Check the path.")
    # An adapter beside weights is for the export to refuse: pushed alone it would lose them.
    if (folder / ADAPTER_CONFIG).is_file() and not any(folder.glob("model*.safetensors")):
        return "adapter"
    is_checked = (folder / CHECKSUM_FILE).is_file() and (folder / "config.json").is_file()
    return "export" if is_checked or is_export(folder) else "model"


def _for_the_card(options: ModelReleaseOptions) -> dict[str, object]:
    pictures = ", ".join(picture.file for picture in options.pictures) or None
    return {"results": options.results, "report": options.report, "pictures": pictures}


def _refuse_options(kind: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name} must be left out for a folder that is an {kind}, got {value}. Give it to radtower "
                "export, or push the folder of the training."
            )


def _place_beside(folder: Path) -> Path | None:
    """Where weights can be linked and need no second place; None is the place for temporary files."""
    try:
        with tempfile.TemporaryFile(dir=folder.absolute().parent):
            return folder.absolute().parent
    except OSError:
        return None


def _link_tree(folder: Path, target: Path) -> None:
    shutil.copytree(folder, target, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(Path(source).resolve())  # weights are large
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _is_hub_id(base: object) -> bool:
    """Whether it can be one, and is no folder that is here."""
    if not isinstance(base, str) or Path(base).exists():
        return False
    try:
        validate_repo_id(base)
    except HFValidationError:
        return False
    return True


def _write_adapter(folder: Path, target: Path, license_id: str | None) -> None:
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise FileNotFoundError(
            f"an adapter must have {ADAPTER_WEIGHTS}, got none in {folder}. Save it with save_pretrained."
        )
    config: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    if not _is_hub_id(base):
        raise ValueError(
            f"base_model_name_or_path of an adapter must be the id of a model on the Hub, got {base!r}. Push "
            f"the base model, and write its id into {ADAPTER_CONFIG}."
        )
    target.mkdir()
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        _link_or_copy(str(folder / name), str(target / name))
    card = ModelCard.from_template(
        ModelCardData(
            base_model=base,
            library_name="peft",
            license=license_id,
            tags=["radiology", "radtower", "research-only", "adapter"],
        ),
        template_path=str(ADAPTER_TEMPLATE),
        base=base,
        method=str(config.get("peft_type") or "an adapter"),
        radtower_version=version("radtower"),
    )
    (target / "README.md").write_text(card.content.rstrip() + "\n", encoding="utf-8")
