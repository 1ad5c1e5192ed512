from pathlib import Path

import pytest

from radtower.labeling.pretrained.source import find_source


@pytest.fixture
def folder(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()
    return tmp_path


def test_a_folder_is_a_path_and_a_hub_id_stays_text(folder, monkeypatch):
    assert find_source(str(folder)) == folder
    assert find_source("owner/name") == "owner/name"
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find_source(f"~/{folder.name}") == folder


def test_an_adapter_has_a_configuration_of_its_own(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")
    assert find_source(folder) == folder


@pytest.mark.parametrize("path", ["nowhere/at/all", "./nowhere", "nowhere", "a/b.gguf", Path("a/b")])
def test_refuses_a_path_that_is_not_there(path):
    with pytest.raises(FileNotFoundError, match=f"must be an existing folder or a Hub id, got '{path}'"):
        find_source(path)


def test_a_gguf_file_is_taken_where_it_can_be_read(tmp_path):
    file = tmp_path / "llm.gguf"
    file.touch()
    assert find_source(file, takes_gguf=True) == file
    with pytest.raises(ValueError, match=r"existing folder or a Hub id, got the file '.*llm.gguf'"):
        find_source(file)


def test_refuses_another_file(folder):
    with pytest.raises(ValueError, match=r"a .gguf file or a Hub id, got the file '.*model.safetensors'"):
        find_source(folder / "model.safetensors", takes_gguf=True)


@pytest.mark.parametrize(
    ("name", "missing"), [("config.json", "config.json"), ("model.safetensors", "safetensors weights")]
)
def test_refuses_a_folder_that_lacks_files(folder, name, missing):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"must hold a whole model, got no {missing}. Download"):
        find_source(folder)
