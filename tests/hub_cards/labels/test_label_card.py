import re
from datetime import UTC, datetime

import pytest
from huggingface_hub import DatasetCard, metadata_load, metadata_save

from radtower.data.targets import TargetPolicy
from radtower.evaluation.results import MetricResult, Results, write_results
from radtower.hub_cards.card_sections.citations import bibtex
from radtower.hub_cards.labels.agreement_table import read_agreement
from radtower.hub_cards.labels.label_card import PAPERS, class_counts, label_card, size_category
from radtower.labeling.encoder import EncoderLabeler

NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?!\w)")


@pytest.fixture
def measured(tmp_path):
    given = {
        "ci_method": "percentile, 50 resamples",
        "dataset": "gold reports",
        "class_set": "two_findings",
        "label_source": "two readers",
        "n": 57,
    }
    metrics = [
        {"metric": "macro_auroc", "value": 0.98314, "ci_low": 0.97121, "ci_high": 0.99017},
        {
            "metric": "auroc",
            "finding": "effusion",
            "value": 0.91263,
            "ci_low": 0.88,
            "ci_high": 0.94,
            "n": 43,
        },
        {
            "metric": "f1",
            "finding": "nodule",
            "value": None,
            "ci_low": None,
            "ci_high": None,
            "note": "one class",
        },
    ]
    results = Results(
        model_id="some/model-7b",
        model_revision=None,
        created=datetime(2026, 1, 1, tzinfo=UTC),
        phantom=False,
        metrics=tuple(MetricResult.model_validate(given | metric) for metric in metrics),
    )
    write_results(results, tmp_path / "results.json")
    return read_agreement(tmp_path / "results.json", ["some/model-7b"])


def _section(card, title):
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0].strip()


def _cells(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_front_matter_is_read_back_and_says_where_the_splits_are(make_release):
    data = DatasetCard(label_card(make_release(license_id="cc-by-nc-sa-4.0", language="de"), None)).data
    assert (data.license, data.language, data.size_categories) == ("cc-by-nc-sa-4.0", ["de"], ["n<1K"])
    assert data.task_categories == ["image-classification", "text-classification"]
    assert data.configs == [
        {
            "config_name": "default",
            "data_files": [
                {"split": split, "path": f"data/{split}.parquet"} for split in ("train", "validation", "test")
            ],
        }
    ]
    assert DatasetCard(label_card(make_release(), None)).data.license is None


@pytest.mark.parametrize(
    ("num_rows", "name"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (50_188, "10K<n<100K"), (999_999, "100K<n<1M"), (1_000_000, "n>1M")],
)
def test_the_size_is_one_of_those_of_the_hub(num_rows, name):
    assert size_category(num_rows) == name


def test_lists_every_reason_of_failure_the_most_frequent_first(make_release, write_label_table):
    failed = {"status": {"nodule": None, "effusion": None}, "score": {"nodule": None, "effusion": None}}
    write_label_table(s1=failed | {"error": "timeout"}, s2=failed | {"error": "timeout"})
    section = _section(label_card(make_release(), None), "Who labeled")
    lines = [line for line in section.splitlines() if line.startswith("| failed")]
    assert lines == ["| failed, `timeout` | 2 |", "| failed, `reply:no_json` | 1 |"]


def test_says_who_labeled_with_what_outcome_and_price(make_release):
    rows = dict(row[:2] for row in _cells(_section(label_card(make_release(), None), "Who labeled")))
    assert rows["labeler"] == "endpoint"
    assert rows["model"] == "some/model-7b"
    assert rows["prompt version"] == "ct-v3"
    assert rows["findings set"] == f"two_findings, fingerprint {make_release().findings.fingerprint}"
    assert (rows["unique reports"], rows["labeled"], rows["failed, `reply:no_json`"]) == ("4", "3", "1")
    assert rows["quotes dropped, because they are not in the report"] == "3"
    assert (rows["tokens in"], rows["tokens out"], rows["cost"]) == ("1,644", "148", "0.0084 USD")


def test_says_with_what_settings(make_release, write_label_table):
    generation = {
        "labeler": "endpoint",
        "settings.max_tokens": 512,
        "settings.a": "x|y",
        "settings.seed": None,
    }
    write_label_table(generation=generation)
    section = _section(label_card(make_release(), None), "Who labeled")
    rows = [line for line in section.splitlines() if "setting" in line]
    assert rows == [
        "| setting: max tokens | 512 |",
        "| setting: a | x\\|y |",
        "| setting: seed | none |",
    ]


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        (
            '{"user": "jane.doe@hospital.org", "key": "tk-4711", "seed": {"deep": 1}}',
            "key, seed, user",
        ),
        ("{}", "none"),
        (None, "none"),
        ("tk-4711", "not published"),
        ('["tk-4711"]', "not published"),
    ],
)
def test_further_fields_of_the_request_are_named_without_their_values(
    make_release, write_label_table, fields, shown
):
    write_label_table(generation={"settings.fields": fields})
    card = label_card(make_release(), None)
    assert f"| setting: fields | {shown} |\n" in card
    for secret in ("jane", "tk-4711", "deep"):
        assert secret not in card


def test_says_what_was_not_recorded(make_release, write_label_table):
    unknown = {"tokens_in": None, "tokens_out": None, "cost_usd": None, "prompt_version": None}
    write_label_table(all_rows=unknown, s1={"tokens_in": 500, "model_id": "/data/models/labeler-b"})
    rows = dict(row[:2] for row in _cells(_section(label_card(make_release(), None), "Who labeled")))
    assert rows["tokens in"] == "500, recorded for 1 reports"
    assert (rows["tokens out"], rows["cost"]) == ("not recorded", "not recorded")
    assert rows["settings"] == "not recorded"
    assert rows["prompt version"] == "none: the labeler takes no prompt"
    assert rows["model"] == "labeler-b (1 reports), some/model-7b (3 reports)"
    compute = _section(label_card(make_release(), None), "Compute and emissions")
    assert "not recorded, so no CO2 is\nestimated" in compute


STATES_SEEN = {"status": {"nodule": "present", "effusion": "absent"}}


@pytest.mark.parametrize(
    ("others", "rows"), [({}, "all rows"), ({"labeler": "endpoint"}, "rows of the labeler encoder")]
)
def test_says_what_absent_means_where_the_labeler_knows_two_states(
    make_release, write_label_table, others, rows
):
    encoder = {"labeler": EncoderLabeler.name}
    write_label_table(all_rows=encoder, s2=STATES_SEEN, s3=STATES_SEEN | others)
    card = label_card(make_release(), None)
    columns, limits = _section(card, "Columns"), _section(card, "Limitations")
    assert f"In {rows}, `absent` need not mean that the report denies the finding" in columns
    assert "`uncertain` and `not_mentioned` cannot occur." in columns
    assert f"The labeler of {rows} cannot tell a finding that a report denies" in limits
    assert _cells(columns)[-1][0] == "`<key>_score`"  # the text stands below the table, not in it


def test_says_nothing_of_the_kind_of_a_labeler_with_four_states(make_release, write_label_table):
    write_label_table(all_rows={"labeler": "llm"})
    card = label_card(make_release(), None)
    assert "cannot occur" not in card
    assert "cannot tell" not in card


def test_class_balance_counts_rows_in_every_state(make_release):
    counts = class_counts(make_release())
    assert list(counts.columns) == ["present", "uncertain", "absent", "not_mentioned", "no answer"]
    assert counts.loc["Lung nodule"].tolist() == [3, 0, 0, 1, 1]
    assert counts.loc["Effusion"].tolist() == [0, 1, 3, 0, 1]
    card = label_card(make_release(), None)
    assert _cells(_section(card, "Class balance"))[0][1:] == [
        *("present", "uncertain", "absent", "not mentioned", "no answer")
    ]
    assert _cells(_section(card, "Class balance"))[2] == ["Lung nodule", "3", "0", "0", "1", "1"]
    assert "](assets/class_balance.png)" in card


def test_agreement_is_that_of_results_json_or_not_measured(make_release, measured):
    card = label_card(make_release(), measured)
    section = _section(card, "Agreement with reference labels")
    assert "Data: gold reports; class set: two_findings; label source: two readers;" in section
    assert _cells(section)[2:] == [
        ["effusion", "43", "", "0.913 (0.880 to 0.940)", ""],
        ["nodule", "57", "", "", "one class"],
        ["mean of the findings", "57", "", "0.983 (0.971 to 0.990)", ""],
    ]
    assert "where it says nothing, they are left out" in section
    without = _section(label_card(make_release(), None), "Agreement with reference labels")
    assert without.startswith("Not measured.")
    assert "they are left out" not in without
    for text in (card, without):
        assert "CT-RATE releases are themselves the output of a model (RadBERT), not of readers" in text


def test_no_number_is_in_neither_the_labels_nor_the_results(make_release, measured):
    release = make_release(source_license="research only")
    text = label_card(release, measured).split("---\n", 2)[2]
    for known in (
        release.findings.fingerprint,
        "95 % intervals (percentile, 50 resamples)",
        "[0, 1]",
        "Made with RadTower 0.1.0",
        "some/model-7b",
        bibtex(PAPERS),
    ):
        assert known in text
        text = text.replace(known, "")
    rule = release.options.policy.describe()
    text = text.replace(rule, "")
    counted = {"5", "2", "1", "4", "3", "0", "1,644", "148", "0.0084", "644"}
    results = {"0.983", "0.971", "0.990", "57", "0.913", "0.880", "0.940", "43"}
    assert results <= set(NUMBER.findall(text)) <= counted | results | {"89"}


def test_states_the_rule_the_definitions_and_what_it_is_not_for(make_release):
    policy = TargetPolicy(uncertain=0.5, not_mentioned=None)
    card = label_card(make_release(policy=policy), None)
    assert policy.describe() in card
    assert _cells(_section(card, "Findings"))[2] == ["`nodule`", "Lung nodule", "A round thing."]
    assert "Research use only. Not for diagnosis, and not a medical device." in card
    assert "{{" not in card
    assert "{%" not in card
    assert 'load_dataset("tester/silver")' in card
    assert _cells(_section(card, "How to load"))[2:] == [["train", "2"], ["validation", "2"], ["test", "1"]]


def test_states_what_is_missing_from_the_rows(make_release):
    card = label_card(make_release(), None)
    assert "1 rows of the source table are not here" in card
    assert "1 labeled reports are not here" in card
    assert "1 reports have rows in more than one split" in card
    assert "One row per unique report" not in card
    alone = label_card(make_release(reports=None), None)
    assert "One row per unique report: of studies with the same text, only the first is listed." in alone
    assert "are not here" not in alone


def test_license_of_the_source_is_stated_or_said_to_be_unknown(make_release):
    stated = _section(
        label_card(make_release(source_license="CC-BY-NC-SA 4.0"), None), "License of the source"
    )
    assert stated.startswith("Reports: CC-BY-NC-SA 4.0.")
    unknown = _section(label_card(make_release(), None), "License of the source")
    assert unknown.startswith("Not stated by who published this.")


def test_privacy_says_what_is_there_and_what_was_accepted(
    make_release, write_label_table, manifest_frame, tmp_path
):
    plain = _section(label_card(make_release(), None), "Privacy")
    assert plain.startswith("Holds no text of a report")
    assert "look like" not in plain
    write_label_table(s2={"evidence": {"nodule": "Seen by Dr. Miller.", "effusion": None}})
    manifest_frame["volume_id"] = [f"8812345{row}" for row in range(6)]
    manifest_frame.to_csv(tmp_path / "mrn.csv", index=False)
    release = make_release(has_text=True, license_id="cc-by-4.0", reports=tmp_path / "mrn.csv")
    card = label_card(release, None)
    assert "1 matches (1 name), which the publisher looked at and judged harmless" in card
    assert "5 look like record numbers or dates" in card
    assert "Miller" not in card
    assert "`<key>_evidence`" in card


@pytest.mark.parametrize("options", [{"is_phantom": True}, {}])
def test_phantoms_are_called_so(make_release, measured, options):
    phantom = measured | {"phantom": not options}
    assert "phantoms, not patients" in label_card(make_release(**options), phantom)
    assert "phantoms" not in label_card(make_release(), measured)


def test_no_sentence_and_no_patient_of_the_table_is_in_the_card(make_release, measured):
    card = label_card(make_release(), measured)
    for secret in ("small nodule", "Perhaps", "quiet", "p5"):
        assert secret not in card


def test_says_what_the_labels_are_for_and_what_to_cite(make_release):
    card = label_card(make_release(), None)
    assert _section(card, "Intended use").startswith("Research: targets for training")
    assert "Out of scope: any clinical decision" in _section(card, "Intended use")
    assert "arXiv preprint arXiv:2509.13175" in _section(card, "Citation")
    assert "arXiv preprint arXiv:2603.06467" in _section(card, "Citation")


def test_front_matter_stays_what_it_is_when_the_hub_library_reads_and_writes_it(make_release, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(label_card(make_release(license_id="cc-by-nc-sa-4.0"), None))
    front, text = metadata_load(path), path.read_text().split("\n---\n", 1)[1]
    metadata_save(path, front)
    assert metadata_load(path) == front
    assert path.read_text().endswith(text)
    assert DatasetCard.load(path, ignore_metadata_errors=False).data.to_dict().keys() == front.keys()
