"""Contents are compared as git and the Hub name them; what others wrote stays."""

import hashlib

import pytest
from huggingface_hub import RepoFile

from radtower.data.folder_change import Change, LocalFile, Version, change_to, files_of


def _there(name, content, *, is_large=False):
    sha256 = hashlib.sha256(content).hexdigest()
    large = {"lfs": {"size": len(content), "oid": sha256, "pointerSize": 130}} if is_large else {}
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return RepoFile(path=name, size=len(content), oid="0" * 40 if is_large else blob, **large)


def _version(**contents):
    files = {name.replace("_", "/", 1): content for name, content in contents.items()}
    return Version("c" * 40, {name: _there(name, content) for name, content in files.items()})


def test_git_names_a_file_as_git_does(tmp_path):
    (tmp_path / "a").write_bytes(b"hello\n")
    assert LocalFile(tmp_path / "a").git_sha1 == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object


@pytest.mark.parametrize("is_large", [False, True])
def test_a_file_equals_one_with_its_contents_only(tmp_path, is_large):
    (tmp_path / "a").write_bytes(b"ab" * 2**20)
    file = LocalFile(tmp_path / "a")
    assert file.equals(_there("a", b"ab" * 2**20, is_large=is_large))
    assert not file.equals(_there("a", b"ba" * 2**20, is_large=is_large))
    assert not file.equals(_there("a", b"ab", is_large=is_large))


def test_files_have_their_path_in_the_folder_and_links_are_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("far")
    folder = tmp_path / "folder"
    (folder / "sub" / "empty").mkdir(parents=True)
    (folder / "sub" / "link").symlink_to(tmp_path / "elsewhere")
    assert list(files_of(folder)) == ["sub/link"]
    assert files_of(folder)["sub/link"].size == 3


def test_patterns_of_owned_files_stay_within_their_folder(tmp_path):
    (tmp_path / "model-1.st").write_text("same")
    version = _version(
        sub_a=b"", sub_b=b"", **{"model-1.st": b"same", "model-2.st": b"", "sub_model-2.st": b""}
    )
    owned = ["model*.st", "*/b", "nowhere"]
    assert change_to(version, files_of(tmp_path), owned) == Change(
        frozenset(), frozenset({"model-2.st", "sub/b"})
    )


def test_no_change_is_false():
    assert not Change(frozenset(), frozenset())
    assert Change(frozenset("a"), frozenset())
    assert Change(frozenset(), frozenset("a"))
