import json
import math

import pandas as pd
import pytest
import yaml

from radtower.data.targets import TargetPolicy
from radtower.hub_cards.labels.label_dataset import write_label_dataset
from radtower.hub_cards.labels.label_release import ReleaseOptions, prepare_release
from radtower.processing.report_text import report_sha256

ABSENT_ROW = {"nodule": None, "effusion": None}


def test_rows_have_the_column_layout_of_ct_rate_and_the_target_rule(make_release):
    release = make_release()
    assert release.splits == {"train": 2, "validation": 2, "test": 1}
    assert release.table("validation").to_pylist() == [
        {
            "VolumeName": "v2",
            "Lung nodule": 0,
            "Effusion": None,
            "nodule_status": "not_mentioned",
            "nodule_score": 0.25,
            "effusion_status": "uncertain",
            "effusion_score": None,
        },
        {
            "VolumeName": "v5",
            "Lung nodule": 1,
            "Effusion": 0,
            "nodule_status": "present",
            "nodule_score": 0.875,
            "effusion_status": "absent",
            "effusion_score": 0.125,
        },
    ]
    assert [str(field.type) for field in release.table("train").schema] == [
        *("string", "int8", "int8", "string", "double", "string", "double")
    ]


def test_a_failed_report_keeps_its_row_with_nothing_in_it(make_release):
    (row,) = make_release().table("test").to_pylist()
    assert row.pop("VolumeName") == "v4"
    assert set(row.values()) == {None}


@pytest.mark.parametrize(
    ("policy", "kind", "validation"),
    [
        (TargetPolicy(uncertain=1.0), "int8", [[0, 1], [1, 0]]),
        (TargetPolicy(uncertain=0.25, not_mentioned=None), "float", [[None, 0.25], [1.0, 0.0]]),
    ],
)
def test_another_rule_gives_other_targets_and_never_minus_one(make_release, policy, kind, validation):
    table = make_release(policy=policy).table("validation").select(["Lung nodule", "Effusion"])
    assert [list(row.values()) for row in table.to_pylist()] == validation
    assert {str(field.type) for field in table.schema} == {kind}


def test_texts_and_quotes_are_there_only_when_asked_for(make_release):
    release = make_release(has_text=True, license_id="cc-by-4.0")
    assert release.table("train").column_names[-3:] == ["nodule_evidence", "effusion_evidence", "report"]
    rows = release.table("train").to_pylist() + release.table("validation").to_pylist()
    assert [(row["nodule_evidence"], row["effusion_evidence"]) for row in rows] == [
        ("A small nodule.", "No effusion."),
        ("A small nodule.", "No effusion."),
        (None, "Perhaps an effusion."),
        ("A small nodule.", "No effusion."),
    ]
    assert rows[2]["report"] == "Perhaps an effusion."
    without_table = make_release(has_text=True, license_id="cc-by-4.0", reports=None)
    assert without_table.table("train").column_names[-1] == "effusion_evidence"
    assert without_table.splits == {"train": 4}


def test_findings_are_those_of_the_labels_in_their_order(make_release, findings_path, write_label_table):
    assert make_release().findings.keys == ("nodule", "effusion")
    content = yaml.safe_load(findings_path.read_text())
    content["findings"].reverse()
    content["findings"].append({"key": "other", "name": "Other", "definition": "Else.", "prompts": ["other"]})
    findings_path.write_text(yaml.safe_dump(content))
    assert make_release().findings.names == ("Lung nodule", "Effusion")
    content["findings"] = content["findings"][1:]
    findings_path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"got 'two_findings', which has no \['effusion'\]"):
        make_release()
    with pytest.raises(ValueError, match="a shipped findings set or a YAML file, got 'two_findings'"):
        make_release(findings=None)
    write_label_table(all_rows={"findings_set": "ct_rate_18[lung_nodule,pleural_effusion]"})
    with pytest.raises(ValueError, match=r"got 'ct_rate_18', which has no \['effusion', 'nodule'\]"):
        make_release(findings=None)


def test_definitions_are_those_that_were_labeled_with(make_release, findings_path, write_label_table):
    identity = make_release().findings.identity
    write_label_table(generation={"findings": identity})
    assert make_release().findings.identity == identity
    findings_path.write_text(findings_path.read_text().replace("A round thing.", "A square thing."))
    with pytest.raises(ValueError, match=f"those that were labeled with, '{identity}', got 'two_findings "):
        make_release()


def test_a_table_of_two_findings_sets_or_without_labels_is_refused(make_release, write_label_table):
    write_label_table(s2={"findings_set": "other"})
    with pytest.raises(ValueError, match=r"one findings set, got \['other', 'two_findings'\]"):
        make_release()
    failed = {"status": ABSENT_ROW, "score": ABSENT_ROW, "error": "timeout"}
    write_label_table(all_rows=failed)
    with pytest.raises(ValueError, match="got 4 that all failed"):
        make_release()


@pytest.mark.parametrize("name", ["VolumeName", "effusion_score", "report"])
def test_a_finding_named_like_another_column_is_refused(make_release, findings_path, name):
    content = yaml.safe_load(findings_path.read_text())
    content["findings"][0]["name"] = name
    findings_path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=rf"names of their own, got \['{name}'\] twice"):
        make_release()


def test_text_with_an_identifier_is_refused_until_the_number_is_accepted(
    make_release, manifest_path, write_label_table
):
    quotes = {"nodule": "Seen by Dr. Miller.", "effusion": None}  # of no report of the table
    write_label_table(s2={"evidence": quotes})
    with_text = {"has_text": True, "license_id": "cc-by-4.0"}
    release = make_release(**with_text)
    assert release.text_check.kinds_by_id == {"v2": ("name",)}
    assert release.text_check.num_texts == 3  # a text of several volumes counts once
    with pytest.raises(ValueError, match=r"got 1 in 1 of 3 texts \(1 name\)"):
        release.refuse_risks()
    make_release(**with_text, num_accepted_matches=1).refuse_risks()
    assert make_release().text_check is None
    make_release().refuse_risks()


def test_a_quote_of_the_report_is_not_counted_again(make_release, write_label_table):
    text = "A small nodule. No effusion. Dr. Miller knows."
    fields = {
        "report_sha256": report_sha256(text),
        "evidence": {"nodule": "Dr. Miller knows.", "effusion": None},
    }
    write_label_table(s1=fields)
    with_text = {"has_text": True, "license_id": "cc-by-4.0"}
    assert make_release(**with_text, reports=None).text_check.counts == {"name": 1}
    path = make_release().options.reports
    frame = pd.read_csv(path).assign(report=text)
    frame.to_csv(path, index=False)
    assert make_release(**with_text).text_check.counts == {"name": 1}


def test_ids_like_record_numbers_are_refused_until_they_are_called_public(
    make_release, tmp_path, manifest_frame
):
    path = tmp_path / "mrn.csv"
    manifest_frame.assign(volume_id=[f"8812345{row}" for row in range(6)]).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"got 5 of 5 that do \(5 record number\)"):
        make_release(reports=path).refuse_risks()
    make_release(reports=path, are_ids_public=True).refuse_risks()


def test_reports_are_called_phantoms_by_flag_and_by_ids_that_all_say_so(
    make_release, tmp_path, manifest_frame
):
    assert not make_release().is_phantom
    assert make_release(is_phantom=True).is_phantom
    path = tmp_path / "phantoms.csv"
    manifest_frame.assign(volume_id=[f"phantom-{row:04}-1" for row in range(6)]).to_csv(path, index=False)
    assert make_release(reports=path).is_phantom
    # One id of a test object does not make the reports of patients synthetic.
    manifest_frame.loc[1, "volume_id"] = "phantom-qa"
    manifest_frame.to_csv(path, index=False)
    assert not make_release(reports=path).is_phantom


def test_unusable_options_are_refused():
    for name in ("silver", "a/b/c", "a b/c", ""):
        with pytest.raises(ValueError, match=f"repo_id must be owner/name, got '{name}'"):
            ReleaseOptions(repo_id=name)
    with pytest.raises(ValueError, match="license_id must be given where texts are published, got None"):
        ReleaseOptions(repo_id="a/b", has_text=True)
    with pytest.raises(ValueError, match="license_id must name a license, got ' '"):
        ReleaseOptions(repo_id="a/b", license_id=" ")


class Small:
    """An analyzer that finds an adjective."""

    def find(self, text):
        return ["adjective"] * text.lower().count("small")


def test_analyzers_search_the_texts_and_what_a_reason_allows(make_release, tmp_path):
    options = {"has_text": True, "license_id": "cc-by-4.0", "analyzers": (Small(),), "are_ids_public": True}
    release = make_release(**options)
    assert release.text_check.counts["adjective"] == 1
    with pytest.raises(ValueError, match=r"got \d in .*1 adjective"):
        release.refuse_risks()
    allowed = make_release(**options, allowed_reason="Words.")
    allowed.refuse_risks()
    record = json.loads((write_label_dataset(allowed, tmp_path / "out") / "privacy.json").read_text())
    # In every cell of a row, and the card.
    assert record["allowed_because"] == "Words."
    assert record["counts"]["adjective"] > 1


def test_a_shipped_set_needs_no_name_and_subsets_are_understood(write_label_table, tmp_path):
    keys = ("lung_nodule", "pleural_effusion")
    fields = {
        name: dict.fromkeys(keys, value)
        for name, value in (("status", "present"), ("score", 0.75), ("evidence", None))
    }
    failed = {"error": None}
    path = write_label_table(all_rows=fields | failed | {"findings_set": f"ct_rate_18[{','.join(keys)}]"})
    release = prepare_release(path, ReleaseOptions(repo_id="a/b"))
    assert release.findings.names == ("Lung nodule", "Pleural effusion")
    assert math.isclose(release.table("train")["lung_nodule_score"][0].as_py(), 0.75)
