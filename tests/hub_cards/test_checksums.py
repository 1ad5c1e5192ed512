"""An export is what its checksums say, and nothing more."""

import subprocess

import pytest

from radtower.hub_cards.checksums import verify_checksums, write_checksums


@pytest.fixture
def export(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "card.md").write_text("card")
    (tmp_path / "sub" / "a b.txt").write_text("text")
    done = subprocess.run(
        ["sha256sum", "card.md", "sub/a b.txt"], cwd=tmp_path, capture_output=True, check=True
    )
    (tmp_path / "checksums.sha256").write_bytes(done.stdout)
    return tmp_path


def test_an_export_as_it_was_written_passes_and_one_without_checksums_too(export):
    verify_checksums(export)
    for name in ("privacy.json", ".gitattributes"):  # of a push, and of the Hub
        (export / name).write_text("{}")
    verify_checksums(export)
    (export / "checksums.sha256").unlink()
    (export / "sub" / "a b.txt").write_text("else")
    verify_checksums(export)


def test_checksums_are_those_of_sha256sum(export):
    expected = (export / "checksums.sha256").read_bytes()
    (export / "privacy.json").write_text("{}")
    assert write_checksums(export).read_bytes() == expected
    assert b"  card.md\n" in expected


def test_other_contents_are_refused(export):
    (export / "sub" / "a b.txt").write_text("tent")
    with pytest.raises(ValueError, match=r"checksums\.sha256 says, got other contents in sub/a b\.txt"):
        verify_checksums(export)


def test_a_file_that_is_missing_is_refused(export):
    (export / "card.md").unlink()
    with pytest.raises(FileNotFoundError, match=r"lists, got none at card\.md"):
        verify_checksums(export)


def test_a_file_that_is_not_listed_is_refused(export):
    (export / "sub" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"no files but those that .* lists, got sub/notes\.txt"):
        verify_checksums(export)


@pytest.mark.parametrize("line", ["card.md", "0" * 63 + "  card.md", ""])
def test_a_line_that_is_none_of_sha256sum_is_refused(export, line):
    with (export / "checksums.sha256").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match="must be one of sha256sum, got another in line 3"):
        verify_checksums(export)
