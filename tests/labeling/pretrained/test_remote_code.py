import json

import pytest
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from radtower.labeling.encoder import EncoderLabeler
from radtower.labeling.pretrained.weights import load_weights

CODE = """
import os
from transformers import BertConfig, BertForSequenceClassification
os.makedirs({made!r}, exist_ok=True)
class StrangeConfig(BertConfig):
    model_type = "strange"
class StrangeClassifier(BertForSequenceClassification):
    config_class = StrangeConfig
"""


@pytest.fixture
def strange(tmp_path, tiny_tokenizer):
    """A classifier that brings code, and the folder that the code makes where it is run."""
    folder = tmp_path / "strange"
    settings = BertConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        problem_type="multi_label_classification",
        id2label={0: "a", 1: "b"},
    )
    BertForSequenceClassification(settings).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "strange",
        "auto_map": {
            "AutoConfig": "strange.StrangeConfig",
            "AutoModelForSequenceClassification": "strange.StrangeClassifier",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "strange.py").write_text(CODE.format(made=str(tmp_path / "made")))
    return folder, tmp_path / "made"


def test_code_that_comes_with_a_classifier_is_run_only_if_trusted(strange, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, made = strange
    with pytest.raises(ValueError, match=r"got one that brings code of its own\. Read that .*--trust-remote"):
        EncoderLabeler(folder)
    assert not made.exists()
    model, missing = load_weights(AutoModelForSequenceClassification, folder, is_remote_code_trusted=True)
    assert (type(model).__name__, missing) == ("StrangeClassifier", [])
    assert made.is_dir()
    assert EncoderLabeler(folder, is_remote_code_trusted=True).keys == ("a", "b")
