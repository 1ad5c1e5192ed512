import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image, PngImagePlugin

from radtower.data.file_metadata import is_dicom, metadata_fields, remove_picture_metadata
from radtower.processing.volume_io import read_volume, write_volume

PICTURE = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5)


@pytest.fixture
def nifti(tmp_path):
    """Write a NIfTI file with header fields, and return its path."""

    def write(kind=nib.Nifti1Image, name="a.nii", extension=None, **fields):
        values = np.linspace(-1000, 400, 60, dtype=np.int16).reshape(3, 4, 5)
        image = kind(values, np.diag([2.0, 3.0, 4.0, 1.0]))
        for key, value in fields.items():
            image.header[key] = value
        if extension is not None:
            image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", extension))
        nib.save(image, tmp_path / name)
        return tmp_path / name

    return write


def test_text_of_a_png_is_named_and_removed(tmp_path):
    path = tmp_path / "a.PNG"
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", "Jane Doe")
    text.add_itxt("Note", "Jane Doe", zip=True)
    text.add_text("Long", "Jane Doe", zip=True)
    exif = Image.Exif()
    exif[0x010E] = "Jane Doe"
    PICTURE.save(path, format="png", pnginfo=text, exif=exif, dpi=(110, 110))
    with path.open("ab") as file:
        file.write(b"Jane Doe")
    assert sorted(metadata_fields(path)) == ["eXIf", "iTXt", "rest", "tEXt", "zTXt"]
    (tmp_path / "twin.png").hardlink_to(path)
    remove_picture_metadata(path)
    assert metadata_fields(path) == []
    assert b"Doe" not in path.read_bytes()
    assert b"Doe" in (tmp_path / "twin.png").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.PNG", "twin.png"]
    with Image.open(path) as image:
        assert np.array_equal(image, PICTURE)
        assert image.info["dpi"] == pytest.approx((110, 110), abs=0.1)


def test_text_of_a_jpeg_is_named_and_removed(tmp_path):
    path, plain = tmp_path / "a.jpg", tmp_path / "b.jpeg"
    exif = Image.Exif()
    exif[0x010E] = "Jane Doe"
    PICTURE.save(path, exif=exif, comment="Jane Doe", quality=90)
    PICTURE.save(plain, quality=90)
    with path.open("ab") as file:
        file.write(b"Jane Doe")
    assert metadata_fields(path) == ["segment E1", "segment FE", "segment FE"]
    assert metadata_fields(plain) == []
    before = plain.read_bytes()
    remove_picture_metadata(plain)
    assert plain.read_bytes() == before
    remove_picture_metadata(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("field", ["descrip", "aux_file", "intent_name"])
def test_text_of_a_nifti_header_is_named(nifti, kind, name, field):
    assert metadata_fields(nifti(kind, name)) == []
    assert metadata_fields(nifti(kind, name, **{field: "Jane Doe"})) == [field]


def test_further_places_of_a_nifti_file_are_searched(nifti, tmp_path):
    assert metadata_fields(nifti(data_type=b"Doe", db_name=b"Jane")) == ["data_type", "db_name"]
    assert metadata_fields(nifti(extension=b"Jane Doe")) == ["extension"]
    content = nifti().read_bytes()
    swapped = struct.pack(">i", 348) + content[4:148] + b"Jane" + content[152:]
    (tmp_path / "b.nii").write_bytes(swapped)
    assert metadata_fields(tmp_path / "b.nii") == ["descrip"]
    with gzip.GzipFile(tmp_path / "Jane Doe.nii.gz", "wb") as file:
        file.write(content)
    assert metadata_fields(tmp_path / "Jane Doe.nii.gz") == ["file name of gzip"]


def test_comments_and_keys_of_nrrd_and_metaimage_are_named(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((3, 4, 5), np.int16))
    for name in ("a.nrrd", "a.mha", "a.mhd"):
        sitk.WriteImage(image, str(tmp_path / name))
        assert metadata_fields(tmp_path / name) == []
    image.SetMetaData("PatientName", "Jane Doe")
    sitk.WriteImage(image, str(tmp_path / "b.nrrd"))
    assert metadata_fields(tmp_path / "b.nrrd") == ["key and value"]
    lines = (tmp_path / "a.nrrd").read_bytes().replace(b"type:", b"# Jane Doe\ncontent: Jane\ntype:", 1)
    (tmp_path / "c.nrrd").write_bytes(lines)
    assert metadata_fields(tmp_path / "c.nrrd") == ["comment", "content"]
    text = (tmp_path / "a.mha").read_bytes()
    (tmp_path / "c.mha").write_bytes(b"Comment = Jane Doe\n" + text)
    assert metadata_fields(tmp_path / "c.mha") == ["field 0"]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.nii", "a.nii.gz", "a.mha", "a.nrrd"])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8\xff\xe1", b"\x89PNG\r\n\x1a\n\0\0\0\x09IHDR", b"NRXD0004\n\n"]
)
def test_a_damaged_header_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} must be a whole picture or scan of its kind, got \w+"):
        metadata_fields(tmp_path / name)


def test_dicom_is_known_by_content_and_by_name(tmp_path):
    (tmp_path / "slice").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "slice.IMA").write_bytes(b"")
    (tmp_path / "DICOMDIR").write_bytes(b"")
    (tmp_path / "text").write_bytes(bytes(127) + b"DICM")
    assert [is_dicom(tmp_path / name) for name in ("slice", "slice.IMA", "DICOMDIR", "text")] == [
        True,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"])
def test_scans_are_written_without_what_their_headers_said(nifti, tmp_path, suffix):
    source = nifti(descrip="Jane Doe", aux_file="Jane Doe", intent_name="Doe", extension=b"Jane Doe")
    path = tmp_path / f"b{suffix}"
    write_volume(read_volume(source), path)
    assert metadata_fields(path) == []
    assert b"Doe" not in path.read_bytes()
