import json
import os

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from radtower.modeling.safe_loading import load_model, refuse_pickles


class Payload:
    """What makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def pickled(tmp_path, tiny_llm_folder):
    """A model whose weights are a pickle that would make a folder, and that folder."""
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny_llm_folder / "config.json").read_bytes())
    torch.save({"x": Payload(tmp_path / "made")}, folder / "pytorch_model.bin")
    return folder, tmp_path / "made"


def test_the_payload_would_run(pickled):
    folder, made = pickled
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert made.is_dir()


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.bin", "adapter_model.bin", "a.pt", "b.pth", "c.ckpt", "d.pkl"]
)
def test_a_pickle_is_refused_and_not_read(pickled, name):
    folder, made = pickled
    (folder / "pytorch_model.bin").rename(folder / name)
    for auto in (AutoModel, AutoModelForCausalLM):
        with pytest.raises(ValueError, match=rf"must be safetensors, got .*{name}, a pickle, which is never"):
            load_model(auto, folder)
    assert not made.exists()


def test_a_pickle_beside_safetensors_is_not_read(pickled, tiny_llm_folder):
    folder, made = pickled
    (folder / "model.safetensors").write_bytes((tiny_llm_folder / "model.safetensors").read_bytes())
    model = load_model(AutoModelForCausalLM, folder)
    whole = AutoModelForCausalLM.from_pretrained(tiny_llm_folder).state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in model.state_dict().items())
    assert not made.exists()


def test_the_line_of_the_message_converts(tmp_path):
    torch.save({"a": torch.arange(3.0), "b": torch.ones(4, 4).T}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="convert it once") as error:
        refuse_pickles(tmp_path)
    loading, saving = str(error.value).partition("with ")[2].rstrip(".").split(" and safetensors", 1)
    path, names = tmp_path / "pytorch_model.bin", {"torch": torch, "path": tmp_path / "pytorch_model.bin"}
    exec(loading, names)
    import safetensors.torch  # noqa: PLC0415 -- as the reader would

    saving = saving.replace("'model.safetensors'", f"'{tmp_path / 'model.safetensors'}'")
    exec("safetensors" + saving, names | {"safetensors": safetensors})
    refuse_pickles(tmp_path)
    assert torch.equal(safetensors.torch.load_file(tmp_path / "model.safetensors")["a"], torch.arange(3.0))
    assert path.exists()


def test_what_a_trainer_saves_beside_is_no_weight(tmp_path):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin"):
        (tmp_path / name).write_bytes(b"")
    refuse_pickles(tmp_path)
    refuse_pickles(tmp_path / "nothing")
    refuse_pickles("owner/name")


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/x.safetensors", "a\\x.safetensors", "pytorch_model.bin"]
)
def test_an_index_of_weights_stays_beside_them(tmp_path, shard):
    (tmp_path / "model.safetensors").write_bytes(b"")
    index = {"weight_map": {"a": "model-1.safetensors", "b": shard}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"must name safetensors files beside it, got '(\.\./|/|a|pytorch)"):
        refuse_pickles(tmp_path)
    index["weight_map"]["b"] = "model-2.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse_pickles(tmp_path)


def test_remote_code_is_not_run(tmp_path, tiny_llm_folder):
    config = json.loads((tiny_llm_folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((tiny_llm_folder / "model.safetensors").read_bytes())
    (tmp_path / "code.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'made')!r})\n")
    with pytest.raises(ValueError, match=r"contains custom code|trust_remote_code"):
        load_model(AutoModel, tmp_path)
    assert not (tmp_path / "made").exists()
