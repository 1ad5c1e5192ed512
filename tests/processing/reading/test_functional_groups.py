"""What GDCM would not read anyway must still be refused by our own decoder."""

import pytest

from radtower.processing.reading.functional_groups import group_value, read_functional_groups


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"])
def test_refuses_big_endian_and_deflated_files(scans, syntax):
    path = scans.enhanced_ct("a.dcm", syntax=syntax)
    with pytest.raises(ValueError, match=rf"got transfer syntax {syntax.replace('.', '[.]')} in a\.dcm"):
        read_functional_groups(path)


@pytest.mark.parametrize("num_bytes", [133, 500, 900])
def test_refuses_a_file_that_ends_in_its_header(scans, num_bytes):
    path = scans.cut(scans.enhanced_ct("a.dcm"), num_bytes)
    with pytest.raises(ValueError, match=r"got the end of a\.dcm within its header"):
        read_functional_groups(path)


def test_the_own_group_of_a_frame_comes_before_the_shared_one():
    sequence, tag = (0x0028, 0x9145), (0x0028, 0x1052)
    shared, own = {sequence: [{tag: b"-1024 "}]}, {sequence: [{tag: b"-8192 "}]}
    assert group_value([own, shared], sequence, tag) == b"-8192 "
    assert group_value([{}, shared], sequence, tag) == b"-1024 "
    assert group_value([{sequence: []}, {}], sequence, tag) is None
