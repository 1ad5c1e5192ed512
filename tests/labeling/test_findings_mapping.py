import os
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from radtower.labeling import findings_mapping
from radtower.labeling.findings import load_findings
from radtower.labeling.findings_mapping import load_mapping, map_scores, map_statuses

P, A, U, N = "present", "absent", "uncertain", "not_mentioned"
SHIPPED = sorted(
    path.stem for path in Path(findings_mapping.__file__).parent.glob("findings/mappings/*.yaml")
)


def write_set(folder, name, *keys):
    lines = [f"- {{key: {key}, name: {key.upper()}, definition: d, prompts: [p]}}\n" for key in keys]
    (folder / f"{name}.yaml").write_text(f"name: {name}\nfindings:\n{''.join(lines)}")


@pytest.fixture
def write_mapping(tmp_path):
    """Write a mapping from one (a, b) to two (c, d), of which only its body is given."""
    write_set(tmp_path, "one", "a", "b")
    write_set(tmp_path, "two", "c", "d")

    def write(body, name="mapping", ends="source: one.yaml\ntarget: two.yaml\n"):
        (tmp_path / f"{name}.yaml").write_text(ends + body)
        return tmp_path / f"{name}.yaml"

    return write


@pytest.fixture
def union(write_mapping):
    return load_mapping(write_mapping("findings: {d: {sources: [a, b]}}\nunmapped: {c: not labeled}\n"))


# The whole truth table of two sources; the order of the sources does not matter.
TRUTH = {
    (P, P): P,
    (P, U): P,
    (P, N): P,
    (P, A): P,
    (U, U): U,
    (U, N): U,
    (U, A): U,
    (N, N): N,
    (N, A): N,
    (A, A): A,
}


@pytest.mark.parametrize(("first", "second"), list(product((P, U, N, A), repeat=2)))
def test_the_truth_table_of_two_sources(union, first, second):
    expected = TRUTH.get((first, second)) or TRUTH[second, first]
    mapped = map_statuses(pd.DataFrame({"a": [first], "b": [second]}, index=["r7"]), union)
    assert mapped.columns.tolist() == ["c", "d"]
    assert mapped.loc["r7"].tolist() == [N, expected]


@pytest.mark.parametrize("status", [P, U, N, A])
def test_one_source_is_taken_over(write_mapping, status):
    mapping = load_mapping(write_mapping("findings: {c: {sources: [b]}, d: {sources: [a]}}\n"))
    other = A if status == P else P
    mapped = map_statuses(pd.DataFrame({"a": [status], "b": [other]}), mapping)
    assert mapped.iloc[0].tolist() == [other, status]


def test_a_failed_report_stays_failed_in_all_findings(union):
    mapped = map_statuses(pd.DataFrame({"a": [P, None], "b": [A, None]}, dtype=object), union)
    assert mapped["c"].tolist() == [N, None]
    assert mapped["d"].tolist() == [P, None]


def test_what_follows_from_an_unknown_source_is_unknown(union):
    mapped = map_statuses(pd.DataFrame({"a": [P, None], "b": [None, A]}, dtype=object), union)
    assert mapped["c"].tolist() == [N, N]
    assert mapped["d"].tolist() == [None, None]


def test_no_reports_are_no_rows(union):
    empty = pd.DataFrame({"a": [], "b": []}, dtype=object)
    assert map_statuses(empty, union).shape == map_scores(empty, union).shape == (0, 2)


def test_scores_take_the_maximum_and_unknown_stays_unknown(union):
    scores = pd.DataFrame({"b": [0.2, 0.7, np.nan, 0.0], "a": [0.5, 0.1, 0.9, 0.0]}, index=list("wxyz"))
    mapped = map_scores(scores, union)
    assert mapped.index.tolist() == list("wxyz")
    np.testing.assert_array_equal(mapped["d"], [0.5, 0.7, np.nan, 0.0])
    assert mapped["c"].isna().all()
    assert mapped.dtypes.tolist() == [np.float64, np.float64]


def test_a_table_without_a_source_is_refused(union):
    for function in (map_statuses, map_scores):
        with pytest.raises(
            KeyError, match=r"findings of 'one' that 'two' is made of, got none named \['b'\]"
        ):
            function(pd.DataFrame({"a": [A]}), union)


def test_numbers_are_no_statuses(union):
    with pytest.raises(ValueError, match=r"or None, got \['-1'\]\. Numbers go through map_scores"):
        map_statuses(pd.DataFrame({"a": [-1], "b": [A]}), union)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_mapping_joins_the_sets_of_its_name(name):
    mapping = load_mapping(name)
    assert name == f"{mapping.source.name}_to_{mapping.target.name}"
    assert mapping.source == load_findings(mapping.source.name)
    assert mapping.mapped_keys == tuple(key for key in mapping.target.keys if key in mapping.findings)


def test_these_mappings_are_shipped():
    assert SHIPPED == [
        "chexpert_14_to_ct_rate_18",
        "ct_rate_18_to_chexpert_14",
        "ct_rate_18_to_ct_rate_16",
        "ct_rate_18_to_rad_chestct_15",
        "ct_rate_18_to_rad_chestct_16",
        "rad_chestct_columns_to_ct_rate_18",
        "rad_chestct_columns_to_rad_chestct_15",
        "rad_chestct_columns_to_rad_chestct_16",
    ]


@pytest.mark.parametrize("target", ["ct_rate_16", "rad_chestct_15"])
def test_a_part_of_ct_rate_18_keeps_every_finding(target):
    mapping = load_mapping(f"ct_rate_18_to_{target}")
    assert {key: found.sources for key, found in mapping.findings.items()} == {
        key: (key,) for key in load_findings(target).keys
    }
    assert (mapping.unmapped, mapping.notes) == ({}, ())


def test_ct_clip_scores_calcification_by_the_larger_of_two():
    mapping = load_mapping("ct_rate_18_to_rad_chestct_16")
    rng = np.random.default_rng(0)
    scores = pd.DataFrame(rng.random((5, 18)), columns=load_findings("ct_rate_18").keys)
    mapped = map_scores(scores, mapping)
    # The columns of CT-RATE by number: 13 and 4 skipped, 1 is the maximum of 1 and 4.
    values = scores.to_numpy()
    expected = np.delete(values, [4, 13], axis=1)
    expected[:, 1] = np.maximum(values[:, 1], values[:, 4])
    np.testing.assert_array_equal(mapped.to_numpy(), expected)


def test_one_calcification_column_of_rad_chestct_serves_two_findings():
    mapping = load_mapping("rad_chestct_columns_to_rad_chestct_15")
    assert len(mapping.findings) == 15
    assert len({source for found in mapping.findings.values() for source in found.sources}) == 14
    for key in ("arterial_wall_calcification", "coronary_artery_wall_calcification"):
        assert mapping.findings[key].sources == ("calcification",)
        assert mapping.findings[key].relation == "broader"


def test_a_column_of_rad_chestct_says_where_it_is_not_the_finding():
    # By the terms of SARLE, which made the columns.
    found = load_mapping("rad_chestct_columns_to_ct_rate_18").findings
    assert {key: mapped.relation for key, mapped in found.items() if mapped.relation != "broader"} == {
        "pericardial_effusion": "same",
        "lymphadenopathy": "same",
        "emphysema": "same",
        "atelectasis": "same",
        "peribronchial_thickening": "same",
        "lung_opacity": "narrower",
        "consolidation": "narrower",
        "bronchiectasis": "narrower",
        "pleural_effusion": "narrower",
        "pulmonary_fibrotic_sequela": "overlapping",
    }
    assert "groundglass, infiltrate and airspace disease" in (found["lung_opacity"].note or "")


def test_rad_chestct_16_has_no_column_for_medical_material():
    mapping = load_mapping("rad_chestct_columns_to_rad_chestct_16")
    assert list(mapping.unmapped) == ["medical_material"]
    assert mapping.findings["arterial_wall_calcification"].sources == ("calcification",)
    statuses = pd.DataFrame(A, index=[0], columns=load_findings("rad_chestct_columns").keys)
    mapped = map_statuses(statuses, mapping).iloc[0]
    assert mapped[mapped == N].index.tolist() == ["medical_material"]


def test_ct_findings_and_x_ray_observations_meet_where_concepts_agree():
    there, back = load_mapping("ct_rate_18_to_chexpert_14"), load_mapping("chexpert_14_to_ct_rate_18")
    shared = {"cardiomegaly", "lung_opacity", "consolidation", "atelectasis", "pleural_effusion"}
    assert set(there.findings) == shared | {"support_devices"}
    assert set(back.findings) == shared | {"medical_material"}
    assert there.findings["support_devices"].relation == "broader"
    assert back.findings["medical_material"].relation == "narrower"
    assert there.notes[0].startswith("support_devices from medical_material, which is broader: ")
    scores = pd.DataFrame(1.0, index=[0], columns=there.source.keys)
    assert map_scores(scores, there).iloc[0].isna().sum() == 8


def test_an_error_in_a_mapping_is_one_line_with_its_file(write_mapping):
    path = write_mapping("findings: {c: {sources: a}}\nunmapped: {d: x}\n")
    with pytest.raises(
        ValueError, match=r"^findings\.c\.sources must .*got 'a' in mapping\.yaml: "
    ) as caught:
        load_mapping(path)
    assert "http" not in str(caught.value)
    assert "\n" not in str(caught.value)
    path.write_text("source: [one\ntarget: two\n")
    with pytest.raises(
        ValueError, match=r"a mapping of findings must be YAML, got mapping\.yaml with an error"
    ):
        load_mapping(path)


def test_an_unknown_mapping_is_refused_with_the_list():
    with pytest.raises(
        ValueError, match=r"got 'ct_rate_18_to_padchest'\. Shipped: .*ct_rate_18_to_ct_rate_16"
    ):
        load_mapping("ct_rate_18_to_padchest")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("findings: {c: {sources: [a]}}\n", r"without a word on these: \['d'\]"),
        ("same: [a]\nunmapped: {c: x, d: x}\n", r"which are not in it: \['a'\]"),
        (
            "findings: {c: {sources: [a]}}\nunmapped: {c: x, d: x}\n",
            r"both mapped and unmapped: \['c'\]",
        ),
        (
            "findings: {c: {sources: [z]}}\nunmapped: {d: x}\n",
            r"findings of 'one', got \['z'\]\. It has a, b",
        ),
        ("findings: {c: {sources: []}}\nunmapped: {d: x}\n", "sources"),
        (
            "findings: {c: {sources: [a], relation: broader}}\nunmapped: {d: x}\n",
            r"relation is 'broader', got none for the sources \['a'\]",
        ),
        ("same: [c]\nfindings: {c: {sources: [a]}}\n", r"must not repeat what is in same, got \['c'\]"),
        ("same: [c]\nvia: [x]\n", "via must stand alone"),
        ("rule: min\n", "rule"),
    ],
)
def test_a_mapping_that_does_not_fit_its_sets_is_refused(write_mapping, body, message):
    with pytest.raises(ValueError, match=message):
        load_mapping(write_mapping(body))


CHAIN = "findings: {c: {sources: [a], relation: broader, note: n1}}\nunmapped: {d: why}\n"
ON = "source: two.yaml\ntarget: three.yaml\n"
ENDS = "source: one\ntarget: three\n"


def test_a_chain_joins_sources_relations_and_gaps(write_mapping, tmp_path):
    write_set(tmp_path, "three", "e", "f", "g", "h")
    write_mapping(
        "findings: {c: {sources: [a, b]}, d: {sources: [b], relation: broader, note: n1}}\n", "first"
    )
    write_mapping(
        "findings:\n  e: {sources: [c, d]}\n  f: {sources: [d], relation: narrower, note: n2}\n"
        "  g: {sources: [c]}\nunmapped: {h: never}\n",
        "second",
        ON,
    )
    mapping = load_mapping(write_mapping("via: [first.yaml, second.yaml]\n", "both", ENDS))
    found = mapping.findings
    assert (found["e"].sources, found["e"].relation, found["e"].note) == (("a", "b"), "broader", "n1")
    assert (found["f"].sources, found["f"].relation, found["f"].note) == (("b",), "overlapping", "n1; n2")
    assert (found["g"].sources, found["g"].relation) == (("a", "b"), "same")
    assert mapping.unmapped == {"h": "never"}


def test_a_chain_equals_its_links_one_after_the_other():
    first, second = (
        load_mapping("rad_chestct_columns_to_ct_rate_18"),
        load_mapping("ct_rate_18_to_rad_chestct_16"),
    )
    rng = np.random.default_rng(0)
    keys = first.source.keys
    statuses = pd.DataFrame(rng.choice([P, A, U, N], (40, len(keys))), columns=keys)
    scores = pd.DataFrame(rng.random((40, len(keys))), columns=keys)
    whole = load_mapping("rad_chestct_columns_to_rad_chestct_16")
    pd.testing.assert_frame_equal(
        map_statuses(map_statuses(statuses, first), second), map_statuses(statuses, whole)
    )
    pd.testing.assert_frame_equal(map_scores(map_scores(scores, first), second), map_scores(scores, whole))


def test_a_finding_that_a_link_lost_is_unmapped_in_the_chain(write_mapping, tmp_path):
    write_set(tmp_path, "three", "e")
    write_mapping(CHAIN, "first")
    write_mapping("findings: {e: {sources: [c, d]}}\n", "second", ON)
    mapping = load_mapping(write_mapping("via: [first.yaml, second.yaml]\n", "both", ENDS))
    assert (mapping.findings, mapping.unmapped) == ({}, {"e": "why"})


def test_links_that_do_not_meet_are_refused(write_mapping, tmp_path):
    write_set(tmp_path, "three", "e")
    write_mapping(CHAIN, "first")
    path = write_mapping("via: [first.yaml, first.yaml]\n", "both", ENDS)
    with pytest.raises(ValueError, match="from 'one' after one to 'two'"):
        load_mapping(path)


def test_a_chain_to_elsewhere_is_refused(write_mapping):
    write_mapping(CHAIN, "first")
    with pytest.raises(ValueError, match="from 'one' to 'three', got a chain from 'one' to 'two'"):
        load_mapping(write_mapping("via: [first.yaml]\n", "both", ENDS))


def test_a_chain_of_itself_is_refused(write_mapping):
    with pytest.raises(ValueError, match="must not be built on itself, got both -> both"):
        load_mapping(write_mapping("via: [both.yaml]\n", "both", ENDS))


@pytest.fixture
def real_tables():
    if "RADTOWER_REAL_DATA" not in os.environ:
        pytest.skip("RADTOWER_REAL_DATA is not set")
    folder = Path(os.environ["RADTOWER_REAL_DATA"]) / "ct_label_tables"
    ours = {finding.name: finding.key for finding in load_findings("ct_rate_18").findings}

    def read(name):
        return pd.read_csv(folder / name, index_col=0).rename(columns=ours)

    return read


def test_calcification_in_the_real_table_is_as_frequent_as_published(real_tables):
    table = real_tables("rad_chestct_labels.csv")
    assert tuple(table) == load_findings("rad_chestct_15").keys
    share = (100 * table.mean()).round(1)
    assert share[["emphysema", "lung_nodule", "hiatal_hernia"]].tolist() == [27.3, 79.2, 11.7]
    # One column of RAD-ChestCT, twice, as the mapping says.
    mapping = load_mapping("rad_chestct_columns_to_rad_chestct_15")
    columns = pd.DataFrame(
        {found.sources[0]: table[key] for key, found in mapping.findings.items()}, index=table.index
    )
    pd.testing.assert_frame_equal(map_scores(columns, mapping), table.astype(np.float64))
    assert share["arterial_wall_calcification"] == share["coronary_artery_wall_calcification"] == 70.6


def test_the_real_labels_of_ct_rate_in_other_sets(real_tables):
    table = real_tables("ctrate_valid_labels.csv")
    joined = map_scores(table, load_mapping("ct_rate_18_to_rad_chestct_16"))
    assert len(joined) == 3039
    assert table["arterial_wall_calcification"].sum() == 867
    assert joined["arterial_wall_calcification"].sum() == 961
    statuses = table.replace({1: P, 0: A})
    mapped = map_statuses(statuses, load_mapping("ct_rate_18_to_rad_chestct_16"))
    assert (mapped["arterial_wall_calcification"] == P).sum() == 961
    assert map_scores(table, load_mapping("ct_rate_18_to_ct_rate_16")).to_numpy().sum() == (
        table.drop(columns=["medical_material", "lymphadenopathy"]).to_numpy().sum()
    )
