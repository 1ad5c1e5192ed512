"""Cards of every kind pass what huggingface_hub itself checks, offline and against a Hub."""

import json
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import RepoCard, metadata_load, metadata_save
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from local_hub.faults import Fault
from radtower.hub_cards.card_sections.results_section import model_index
from radtower.hub_cards.export import export_model
from radtower.hub_cards.metrics.metric_export import export_metric, metric_names

KINDS = ("ct3d_bare", "llm_mean_classifier", "medclip", "image_clip")
VALIDATE = """
import json, sys
from huggingface_hub import ModelCard, SpaceCard
answers = []
for kind, path in json.loads(sys.argv[1]):
    card = (ModelCard if kind == "model" else SpaceCard).load(path)
    try:
        card.validate()
        answers.append("valid")
    except ValueError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


@pytest.fixture
def cards(make_model_folder, make_results, tmp_path):
    results = make_results()
    exports = [export_model(make_model_folder(kind), tmp_path / f"new-{kind}", results) for kind in KINDS]
    metrics = [export_metric(name, tmp_path / name) for name in metric_names()]
    return [("model", folder / "README.md") for folder in exports] + [
        ("space", folder / "README.md") for folder in metrics
    ]


def test_front_matter_is_an_index_of_the_hub_and_survives_its_library(cards, make_results, tmp_path):
    measured = json.loads(make_results().read_text())
    for kind, path in cards:
        front = metadata_load(path)
        assert RepoCard.load(path, ignore_metadata_errors=False).data.to_dict().keys() == front.keys()
        copy = shutil.copyfile(path, tmp_path / "copy.md")
        metadata_save(copy, front)
        assert metadata_load(copy) == front
        assert copy.read_text().endswith(path.read_text().split("\n---\n", 1)[1])
        if kind == "model":
            expected = model_index(measured, front["pipeline_tag"])
            name, results = model_index_to_eval_results(front["model-index"])
            assert (name, results) == (path.parent.name, expected)
            assert eval_results_to_model_index(name, expected) == front["model-index"]


def test_a_hub_is_asked_about_every_card_and_its_answer_counts(cards, local_hub, tmp_path):
    asked = json.dumps([(kind, str(path)) for kind, path in cards])
    refuse_last = Fault("POST", "/api/validate-yaml", status=400, times=None)
    command = [sys.executable, "-c", VALIDATE]
    environment = local_hub.environment(tmp_path / "home")

    def answers(given):
        run = subprocess.run([*command, given], env=environment, capture_output=True, text=True, check=True)
        return json.loads(run.stdout)

    assert answers(asked) == ["valid"] * len(cards)
    sent = [request.json for request in local_hub.of("POST", "/api/validate-yaml")]
    assert [(body["repoType"], body["content"]) for body in sent] == [
        (kind, path.read_text()) for kind, path in cards
    ]
    local_hub.faults.append(refuse_last)
    assert answers(json.dumps([(kind, str(path)) for kind, path in cards[:1]])) == [
        '{"error": "planted fault"}'
    ]
