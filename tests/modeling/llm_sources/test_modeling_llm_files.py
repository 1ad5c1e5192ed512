import json

import pytest

from radtower.modeling.llm_sources.modeling_llm_files import path_inside, weight_files


def test_the_shards_of_an_index_are_beside_it(tmp_path):
    for name in ("model-2.safetensors", "model-1.safetensors"):
        (tmp_path / name).write_bytes(b"")
    index = {"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [path.name for path in weight_files(tmp_path)] == ["model-1.safetensors", "model-2.safetensors"]


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/model.safetensors", "model.bin", "a\\x.safetensors"]
)
def test_an_index_that_leads_elsewhere_or_to_a_pickle_is_refused(tmp_path, name):
    index = {"weight_map": {"a": name, "b": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"safetensors files beside it, got '(\.\./|/|a|model\.bin)"):
        weight_files(tmp_path)


def test_a_path_stays_in_its_folder(tmp_path):
    assert path_inside(tmp_path, "0_Transformer/x") == tmp_path / "0_Transformer" / "x"
    assert path_inside(tmp_path, "") == tmp_path
    for name in ("..", "a/../../b", "/etc", "..\\b"):
        with pytest.raises(ValueError, match=r"must stay in it, got '(\.\.|a/|/etc)"):
            path_inside(tmp_path, name)
