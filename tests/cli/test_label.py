from radtower.labeling.label_table import read_labels


def test_an_encoder_labels_a_table_and_an_empty_report_is_listed(radtower, labeler, tmp_path):
    (tmp_path / "reports.csv").write_text("no,text\n1,There is no nodule\n2,\n3,effusion\n")
    columns = ("--id-column", "no", "--text-column", "text")
    output = tmp_path / "labels.parquet"
    done = radtower("label", tmp_path / "reports.csv", "-o", output, "--model", labeler, *columns)
    assert done.code == 1
    assert "2 of 3 unique reports labeled in" in done.out
    assert "failed: 2: empty_report" in done.err
    table = read_labels(output)
    assert table.keys == ("lung_nodule", "pleural_effusion")
    assert table.frame["report_id"].tolist() == ["1", "2", "3"]
    assert set(table.frame["labeler"]) == {"encoder"}
    assert "There is no nodule" not in done.out + done.err


def test_an_endpoint_needs_its_address(radtower, manifest, tmp_path):
    done = radtower("label", manifest, "-o", tmp_path / "l.parquet", "--model", "m", "--backend", "endpoint")
    assert done.code == 2
    assert "--base-url must be given for an endpoint, got none" in done.err
    assert not (tmp_path / "l.parquet").exists()


def test_a_findings_set_that_lacks_the_labelers_findings_is_refused(radtower, labeler, manifest, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("name: own\nfindings:\n- {key: mass, name: Mass, definition: A mass., prompts: [mass]}\n")
    done = radtower("label", manifest, "-o", tmp_path / "l.parquet", "--model", labeler, "--findings", own)
    assert done.code == 2
    assert "got ['lung_nodule', 'pleural_effusion']" in done.err
