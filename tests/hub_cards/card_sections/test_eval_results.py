"""Numbers on benchmarks of the Hub go where it looks for them; others do not."""

import json

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from radtower.hub_cards.card_sections.eval_results import write_eval_results
from radtower.hub_cards.checksums import verify_checksums
from radtower.hub_cards.export import export_model


def _name_benchmark(path, name):
    content = json.loads(path.read_text())
    for item in content["metrics"]:
        item["dataset"] = name
    path.write_text(json.dumps(content))
    return path


def test_an_export_has_the_headlines_as_entries_of_the_hub(make_model_folder, make_results, tmp_path):
    results = _name_benchmark(make_results(phantom=False), "someone/CT-RATE, validation")
    trained = make_model_folder("ct3d_bare")
    folder = export_model(trained, tmp_path / "out", results)
    files = sorted((folder / ".eval_results").iterdir())
    assert [path.name for path in files] == ["01-macro_auroc.yaml", "02-recall_at_5_image_to_report.yaml"]
    first, second = (parse_eval_result_entries(yaml.safe_load(path.read_text()))[0] for path in files)
    assert (first.dataset_id, first.task_id, first.value) == ("someone/CT-RATE", "macro_auroc", 0.7184)
    assert first.date == "2026-01-01T00:00:00Z"
    assert first.notes == (
        "data: someone/CT-RATE, validation; 95 % CI: 0.6141 to 0.8285; n: 31; class set: two findings; label "
        "source: truth of the phantom; protocol: prompt ensemble"
    )
    assert (second.task_id, second.value) == ("recall_at_5_image_to_report", 0.4167)
    assert ".eval_results/01-macro_auroc.yaml" in (folder / "checksums.sha256").read_text()
    verify_checksums(folder)
    before = {path.name: path.read_bytes() for path in files}
    export_model(trained, folder, results)  # an export with such a folder is one that may be replaced
    assert {path.name: path.read_bytes() for path in (folder / ".eval_results").iterdir()} == before
    (folder / ".eval_results" / "notes.txt").write_text("by hand")
    with pytest.raises(FileExistsError, match="which is neither"):
        export_model(trained, folder, results)


@pytest.mark.parametrize(
    ("phantom", "name"),
    [(True, "someone/CT-RATE"), (False, "manifest, test"), (False, "our/own/scans"), (False, "../scans")],
)
def test_phantoms_and_private_data_are_no_benchmark(make_results, tmp_path, phantom, name):
    measured = json.loads(_name_benchmark(make_results(phantom), name).read_text())
    assert write_eval_results(tmp_path, measured) == []
    assert write_eval_results(tmp_path, None) == []
    assert not (tmp_path / ".eval_results").exists()
