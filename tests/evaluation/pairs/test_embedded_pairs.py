import pandas as pd
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file

from radtower.evaluation.pairs.embedded_pairs import embed_pairs, embed_volumes, load_dual_tower
from radtower.modeling.modeling_medclip import MedCLIPModel

REPORTS = ["There is  no nodule.", "small effusion", "  ", "There is no nodule.", "nodule present"]
STUDIES = pd.DataFrame({"volume_id": list("vwxyz"), "study_id": list("abcde"), "report": REPORTS})
SCANS = {
    name: torch.rand(1, 8, 8, 8, generator=torch.Generator().manual_seed(n)) for n, name in enumerate("vwxyz")
}


def load(volume_id: str) -> torch.Tensor:
    if volume_id == "w":
        raise OSError("the disk is gone")
    return SCANS[volume_id]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_pairs_keep_their_order_whatever_the_batch_and_what_cannot_be_read(tiny_medclip, batch_size):
    done = []
    pairs = embed_pairs(tiny_medclip, STUDIES, load, batch_size, done.append)
    assert done == [1, 2, 3, 4, 5]
    assert list(pairs.studies["study_id"]) == ["a", "d", "e"]
    assert pairs.failures == {"w": "the disk is gone", "x": "the report is empty"}
    assert pairs.similarity == "cosine"
    for row, name in enumerate("vyz"):
        torch.testing.assert_close(pairs.images[row], tiny_medclip.encode_image(SCANS[name][None])[0])
    texts = tiny_medclip.encode_text(["There is no nodule.", "nodule present"])
    torch.testing.assert_close(pairs.reports, texts[[0, 0, 1]])
    assert not torch.allclose(pairs.images[0], pairs.images[1], atol=1e-3)
    torch.testing.assert_close(pairs.images.norm(dim=1), torch.ones(3))


def test_a_tower_of_dot_products_keeps_the_lengths(tiny_medclip):
    tiny_medclip.config.similarity = "legacy_dot"
    pairs = embed_pairs(tiny_medclip, STUDIES.iloc[[0, 4]], SCANS.__getitem__)
    assert pairs.similarity == "dot"
    torch.testing.assert_close(
        pairs.images[1], tiny_medclip.encode_image(SCANS["z"][None], normalize=False)[0]
    )
    assert (pairs.images.norm(dim=1) - 1).abs().min() > 0.01
    assert (pairs.reports.norm(dim=1) - 1).abs().min() > 0.01


def test_vectors_for_a_finding_head_are_not_normalized(tiny_medclip):
    found = {n: embed_volumes(tiny_medclip, STUDIES.iloc[:1], load, normalize=n) for n in (None, True, False)}
    raw = tiny_medclip.encode_image(SCANS["v"][None], normalize=False)
    torch.testing.assert_close(found[False].images, raw)
    for normalize in (None, True):
        torch.testing.assert_close(found[normalize].images, raw / raw.norm())


def test_what_a_decoder_raises_is_a_reason(tiny_medclip):
    def damaged(volume_id: str) -> torch.Tensor:
        raise KeyError(volume_id) if volume_id == "v" else ValueError("truncated")

    studies = STUDIES.iloc[[0, 1]]
    with pytest.raises(ValueError, match=r"got 2 of 2 without\. The first says: KeyError: 'v'"):
        embed_pairs(tiny_medclip, studies, damaged)


def test_no_study_and_no_batch_are_refused(tiny_medclip):
    with pytest.raises(ValueError, match=r"got 0 of 0 without\. The first says: there were no studies"):
        embed_pairs(tiny_medclip, STUDIES.iloc[:0], load)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        embed_pairs(tiny_medclip, STUDIES, load, batch_size=0)


def test_one_tower_alone_is_refused(tiny_medclip, tmp_path):
    tiny_medclip.save_pretrained(tmp_path / "dual")
    tiny_medclip.text_model.save_pretrained(tmp_path / "text")
    assert load_dual_tower(tmp_path / "dual").config.projection_dim == 12
    with pytest.raises(TypeError, match=r"model must be a dual tower, got LLMBiEncoder in .*text"):
        load_dual_tower(tmp_path / "text")


def test_a_text_that_depends_on_its_batch_is_read_alone(tiny_medclip, tiny_tokenizer):
    tower = tiny_medclip.text_model
    tower.tokenizer = tiny_tokenizer
    tower.set_prompt("Describe", "small nodule")
    tower.config.prompt_padding = "legacy_middle"
    studies = STUDIES.iloc[[0, 4]]
    alone = embed_pairs(tiny_medclip, studies, SCANS.__getitem__).reports
    together = embed_pairs(tiny_medclip, studies, SCANS.__getitem__, text_batch_size=2).reports
    expected = torch.cat([tiny_medclip.encode_text(t) for t in ("There is no nodule.", "nodule present")])
    torch.testing.assert_close(alone, expected)
    assert (together - alone).abs().max() > 1e-3


def test_refuses_a_checkpoint_with_adapters_and_one_without_all_weights(tiny_medclip, tmp_path):
    tiny_medclip.save_pretrained(tmp_path)
    assert isinstance(load_dual_tower(tmp_path), MedCLIPModel)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if name.endswith("q_proj.weight"))
    kept = {name: value for name, value in weights.items() if name != lost}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"must find all its weights, got .* without 1, such as {lost}"):
        load_dual_tower(tmp_path)
    assert isinstance(MedCLIPModel.from_pretrained(tmp_path), MedCLIPModel)
    inject_adapter_in_model(LoraConfig(target_modules=["q_proj"], r=2), tiny_medclip.text_model)
    tiny_medclip.save_pretrained(tmp_path)
    for load in (load_dual_tower, MedCLIPModel.from_pretrained):
        with pytest.raises(ValueError, match=r"got a checkpoint with LoRA adapters, .* Resume its training"):
            load(tmp_path)
