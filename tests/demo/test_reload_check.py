import pytest

from radtower.demo.reload_check import reload_without_the_package
from radtower.hub_cards.export import export_model
from radtower.modeling.modeling_medclip import MedCLIPModel


@pytest.fixture
def trained(tiny_medclip, tmp_path):
    tiny_medclip.save_pretrained(tmp_path / "trained")
    tiny_medclip.processor.save_pretrained(tmp_path / "trained")
    return tmp_path / "trained"


@pytest.mark.slow
def test_measures_how_far_an_export_is_from_its_model(trained, tmp_path):
    export = export_model(trained, tmp_path / "export")
    assert reload_without_the_package(trained, export) < 1e-5
    model = MedCLIPModel.from_pretrained(trained)
    model.visual_projection.weight.data.neg_()
    model.save_pretrained(trained)
    assert reload_without_the_package(trained, export) > 0.1


@pytest.mark.slow
def test_an_export_that_does_not_load_is_an_error_with_its_reason(trained, tmp_path):
    export = export_model(trained, tmp_path / "export")
    (export / "losses.py").unlink()
    with pytest.raises(RuntimeError, match=r"(?s)must load on its own, got an error from .*export.*losses"):
        reload_without_the_package(trained, export)
