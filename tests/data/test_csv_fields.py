import pytest

from radtower.data.csv_fields import check_csv_fields


@pytest.mark.parametrize(
    "text",
    [
        "",
        "id,text\n",
        'id,text\n\ns1,"Small effusion, no nodule."\n \ns2,"Two\nlines, one ""field"""\r\ns3\n',
        "\ufeff\nid,text\ns1,x\n",
    ],
)
def test_rows_of_at_most_the_fields_of_the_header_pass(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode())
    check_csv_fields(path)


def test_bytes_that_are_no_utf_8_are_left_to_the_reader(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b"id,text\ns1,\xe9\n")
    check_csv_fields(path)


@pytest.mark.parametrize(
    ("rows", "place"),
    [
        ("s1,Small effusion, no nodule, large mass.\n", "4 in row 0 (line 2)"),
        ('s1,"Two\nlines"\n\ns2,secret, mass\n', "3 in row 1 (line 5)"),
        ("s1,x,\n", "3 in row 0 (line 2)"),
    ],
)
def test_a_row_with_more_fields_is_refused_without_its_text(tmp_path, rows, place):
    path = tmp_path / "table.csv"
    path.write_text("id,text\n" + rows)
    with pytest.raises(ValueError, match=r"as its header, 2, got .* Put text .* in double quotes") as caught:
        check_csv_fields(path)
    assert f"every row of table.csv must have as many fields as its header, 2, got {place}." in str(
        caught.value
    )
    assert "mass" not in str(caught.value)


def test_a_quote_that_is_never_closed_is_refused_without_its_text(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('id,text\ns0,x\ns1,"' + "mass\n" * 30_000)
    with pytest.raises(ValueError, match=r"table.csv must .* a longer one in row 1\. Close") as caught:
        check_csv_fields(path)
    assert "mass" not in str(caught.value)
