import pytest

from radtower.data.release_check import search_folder
from radtower.hub_cards.export import export_model
from radtower.hub_cards.metrics.metric_export import export_metric, metric_names


@pytest.mark.parametrize("kind", ["ct3d_bare", "llm_biencoder", "medclip"])
def test_an_exported_model_has_nothing_that_the_privacy_check_finds(
    make_model_folder, make_results, tmp_path, kind
):
    report = search_folder(export_model(make_model_folder(kind), tmp_path / "out", make_results(), "mit"))
    assert report.kinds_by_id == {}
    assert report.num_texts > 100  # code, card and configuration were read


def test_an_export_with_the_record_of_a_push_is_one_still(make_model_folder, tmp_path):
    trained = make_model_folder("ct3d_bare")
    out = export_model(trained, tmp_path / "out")
    (out / "privacy.json").write_text("{}")
    assert not (export_model(trained, out) / "privacy.json").exists()


@pytest.mark.parametrize("name", metric_names())
def test_an_exported_metric_has_nothing_that_the_privacy_check_finds(tmp_path, name):
    report = search_folder(export_metric(name, tmp_path / name, f"owner/{name}"))
    assert report.kinds_by_id == {}
    assert report.num_texts > 10
