"""What of a folder goes up: never more than an export has, and nothing that was not looked at."""

import json
from fnmatch import fnmatchcase

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from radtower.hub_cards.card_sections.pictures_section import CardPicture
from radtower.hub_cards.export import export_model
from radtower.hub_cards.model_release import OWNED_FILES, ModelReleaseOptions, prepare_model

REPO = "me/tower"


@pytest.fixture
def trained(make_model_folder):
    return make_model_folder("ct3d")


@pytest.fixture
def exported(trained, tmp_path):
    return export_model(trained, tmp_path / "export")


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "adapter"
    config = LoraConfig(target_modules=["0"])
    model = get_peft_model(_base(), config)
    torch.nn.init.ones_(model.base_model.model[0].lora_B["default"].weight)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "optimizer.pt").write_bytes(b"pickle")
    (folder / "README.md").write_text("my notes")
    return folder


def _base():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    model.name_or_path = "someone/base"
    return model


def _contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_trained_folder_is_exported_with_its_results(trained, make_results, tmp_path):
    make_results().rename(trained / "results.json")
    before = _contents(trained)
    options = ModelReleaseOptions(license_id="mit")
    expected = export_model(trained, tmp_path / "elsewhere" / "tower", trained / "results.json", "mit")
    with prepare_model(trained, REPO, options) as release:
        assert release.kind == "model"
        assert _contents(release.folder) == _contents(expected)
        assert release.files["config.json"] == (expected / "config.json").stat().st_size
        place = release.folder
    assert not place.parent.exists()
    assert place.parent.parent == tmp_path  # beside it, where there is room for weights
    assert _contents(trained) == before


def test_results_that_are_given_are_those_of_the_card(trained, make_results, tmp_path):
    (trained / "results.json").write_text("not even JSON")
    with prepare_model(trained, REPO, ModelReleaseOptions(results=make_results())) as release:
        assert "0.718" in (release.folder / "README.md").read_text()


def test_an_export_goes_up_as_it_is(exported):
    with prepare_model(exported, REPO) as release:
        assert release.kind == "export"
        assert _contents(release.folder) == _contents(exported)
        # Linked: weights are large.
        assert (release.folder / "model.safetensors").samefile(exported / "model.safetensors")


def test_an_export_without_checksums_goes_up_as_it_is(exported):
    (exported / "checksums.sha256").unlink()
    with prepare_model(exported, REPO) as release:
        assert release.kind == "export"


def test_checksums_without_a_model_are_no_export(tmp_path):
    (tmp_path / "checksums.sha256").write_text("")
    with (
        pytest.raises(FileNotFoundError, match=r"model_folder must hold config\.json"),
        prepare_model(tmp_path, REPO),
    ):
        pass


def test_an_export_that_was_changed_is_refused(exported):
    (exported / "README.md").write_text("other")
    with pytest.raises(ValueError, match=r"got other contents in README\.md"), prepare_model(exported, REPO):
        pass
    assert not list(exported.parent.glob(".radtower-push-*"))


def test_links_out_of_an_export_and_code_that_was_added_are_refused(exported, tmp_path):
    (exported / "checksums.sha256").unlink()
    code = exported / "losses.py"
    code.write_text(code.read_text() + "\nimport subprocess\n")
    line = len(code.read_text().splitlines())
    with (
        pytest.raises(ValueError, match=rf"got losses\.py:{line}, which has an import of subprocess"),
        prepare_model(exported, REPO),
    ):
        pass
    code.unlink()
    (tmp_path / "other.py").write_text("x = 1\n")
    code.symlink_to(tmp_path / "other.py")
    with (
        pytest.raises(ValueError, match=r"every link must stay in the folder, got losses\.py"),
        prepare_model(exported, REPO),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"license_id": "mit"}, "license"),
        ({"results": "r.json"}, "results"),
        ({"report": "r"}, "report"),
        ({"pictures": (CardPicture("a.png", "t", "c", "a", b"\x89PNG\r\n\x1a\n"),)}, "pictures"),
    ],
)
def test_options_of_an_export_come_too_late(exported, options, name):
    with (
        pytest.raises(ValueError, match=f"{name} must be left out for a folder that is an export, got "),
        prepare_model(exported, REPO, ModelReleaseOptions(**options)),
    ):
        pass


def test_an_adapter_goes_up_alone_with_a_card(adapter):
    with prepare_model(adapter, REPO, ModelReleaseOptions(license_id="mit")) as release:
        assert release.kind == "adapter"
        assert set(release.files) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
        loaded, ones = PeftModel.from_pretrained(_base(), release.folder), torch.ones(1, 3)
        assert not torch.equal(loaded(ones), _base()(ones))
        card = (release.folder / "README.md").read_text()
    for stated in (
        "base_model: someone/base",
        "library_name: peft",
        "license: mit",
        "(LORA)",
        "Not for diag",
        "\n## Training data and labels\n\nNot recorded",
        "\n## Limitations\n\nThose of the base model.",
    ):
        assert stated in card
    assert "my notes" not in card


@pytest.mark.parametrize("base", ["/data/base", "../base", "adapter", None])
def test_an_adapter_names_no_model_of_this_machine(adapter, base, monkeypatch):
    monkeypatch.chdir(adapter.parent)
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with (
        pytest.raises(ValueError, match="must be the id of a model on the Hub, got "),
        prepare_model(adapter, REPO),
    ):
        pass


def test_an_adapter_has_safetensors_and_takes_no_results(adapter, tmp_path):
    options = ModelReleaseOptions(results=tmp_path / "results.json")
    with (
        pytest.raises(ValueError, match="results must be left out for a folder that is an adapter"),
        prepare_model(adapter, REPO, options),
    ):
        pass
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with (
        pytest.raises(FileNotFoundError, match=r"an adapter must have adapter_model\.safetensors, got none"),
        prepare_model(adapter, REPO),
    ):
        pass


def test_an_adapter_beside_weights_is_not_pushed_without_them(trained, adapter):
    (adapter / "adapter_config.json").rename(trained / "adapter_config.json")
    with (
        pytest.raises(ValueError, match=r"must hold no adapter, got adapter_config\.json"),
        prepare_model(trained, REPO),
    ):
        pass


def test_an_id_without_an_owner_is_refused_first(tmp_path):
    with pytest.raises(ValueError, match="must be OWNER/NAME, got 'x'"), prepare_model(tmp_path, "x"):
        pass


def test_a_folder_that_is_none_is_refused(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"folder must be that of a model, got .*nowhere"),
        prepare_model(tmp_path / "nowhere", REPO),
    ):
        pass


def test_what_may_identify_a_patient_is_refused_or_recorded(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["note"] = "Seen by Dr. Miller on 2021-03-12."
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with (
        pytest.raises(ValueError, match=r"adapter_config\.json \(date, name\)"),
        prepare_model(adapter, REPO),
    ):
        pass
    options = ModelReleaseOptions(allowed_reason="An invented note.")
    with prepare_model(adapter, REPO, options) as release:
        record = json.loads((release.folder / "privacy.json").read_text())
        assert release.privacy.num_matches == 2
    assert record["allowed_because"] == "An invented note."
    assert not (adapter / "privacy.json").exists()


@pytest.mark.parametrize("kind", ["ct3d", "llm", "llm_latent", "medclip", "image_clip"])
def test_every_file_that_goes_up_is_replaced_by_the_next_push(make_model_folder, kind):
    with prepare_model(make_model_folder(kind), REPO) as release:
        names = set(release.files) - {"README.md"}  # which is always there again
    assert not {name for name in names if not any(fnmatchcase(name, pattern) for pattern in OWNED_FILES)}
    assert "model-00001-of-00002.safetensors" not in names
    assert any(fnmatchcase("model-00001-of-00002.safetensors", pattern) for pattern in OWNED_FILES)
