import pytest

from radtower.data.release_check import search_folder
from radtower.hub_cards.export import export_model
from radtower.hub_cards.metrics.metric_export import export_metric, metric_names


@pytest.mark.parametrize("kind", ["ct3d_bare", "llm_biencoder", "medclip"])
def test_an_exported_model_has_nothing_that_the_privacy_check_finds(make_model_folder, tmp_path, kind):
    report = search_folder(export_model(make_model_folder(kind), tmp_path / "out"))
    assert report.kinds_by_id == {}
    assert report.num_texts > 100  # code, card and configuration were read


@pytest.mark.parametrize("name", metric_names())
def test_an_exported_metric_has_nothing_that_the_privacy_check_finds(tmp_path, name):
    report = search_folder(export_metric(name, tmp_path / name, f"owner/{name}"))
    assert report.kinds_by_id == {}
    assert report.num_texts > 10
