import numpy as np
import pytest
import torch

from radtower.evaluation.read_outs.finding_head import finding_head_read_out, head_findings, head_logits
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification


@pytest.fixture
def scans() -> torch.Tensor:
    return torch.rand(3, 1, 8, 8, 8) * 2 - 1


def test_logits_are_those_of_the_dual_tower(tiny_medclip, scans):
    vectors = tiny_medclip.encode_image(scans, normalize=False)
    expected = tiny_medclip(pixel_values=scans, return_loss=False).finding_logits_image.detach().numpy()
    np.testing.assert_allclose(head_logits(tiny_medclip, vectors), expected, atol=1e-6)


def test_findings_are_found_by_their_key_and_not_by_their_place(tiny_medclip, scans):
    vectors = tiny_medclip.encode_image(scans, normalize=False)
    logits = torch.as_tensor(head_logits(tiny_medclip, vectors)).double()  # effusion, nodule
    read_out = finding_head_read_out(tiny_medclip, vectors, ["nodule", "hernia", "effusion"], vectors[:2])
    np.testing.assert_allclose(read_out.test[:, [0, 2]], logits.sigmoid().numpy()[:, [1, 0]], rtol=1e-12)
    assert np.isnan(read_out.test[:, 1]).all()
    np.testing.assert_array_equal(read_out.validation, read_out.test[:2])
    assert read_out.undefined == {"hernia": "the finding head does not know it"}
    assert (read_out.protocol, read_out.note) == ("finding head", "2 of 3 findings known to the head")


def test_a_classifier_of_scans_is_read_by_its_labels(tiny_vision_config, scans):
    model = CT3DVisionForImageClassification(tiny_vision_config).eval()
    assert head_findings(model) == ("effusion", "nodule")
    vectors = model.vision_model(scans).pooler_output
    expected = model(scans).logits.detach().numpy()
    np.testing.assert_allclose(head_logits(model, vectors), expected, atol=1e-6)
    read_out = finding_head_read_out(model, vectors, ["nodule"])
    np.testing.assert_allclose(read_out.test[:, 0], 1 / (1 + np.exp(-expected[:, 1])), atol=1e-6)
    assert read_out.validation is None


def test_normalized_vectors_are_refused(tiny_medclip, scans):
    with pytest.raises(ValueError, match=r"vectors must be as the tower gives them .* got 3 of length 1"):
        head_logits(tiny_medclip, tiny_medclip.encode_image(scans))


def test_a_head_that_knows_nothing_of_it_is_refused(tiny_medclip, scans):
    vectors = tiny_medclip.encode_image(scans, normalize=False)
    with pytest.raises(ValueError, match="must know one of the 1 findings, got effusion, nodule"):
        finding_head_read_out(tiny_medclip, vectors, ["hernia"])
    tiny_medclip.finding_head = None
    with pytest.raises(ValueError, match="model must have a finding head"):
        head_logits(tiny_medclip, vectors)
