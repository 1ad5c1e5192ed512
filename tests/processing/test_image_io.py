import numpy as np
import pytest
from PIL import Image

from radtower.processing.image_io import read_image

NOISE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def test_reads_the_depth_of_the_file(tmp_path):
    deep = np.array([[0, 300], [65535, 7]], dtype=np.uint16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(deep).save(tmp_path / name)
        assert np.array(read_image(tmp_path / name)).tolist() == deep.tolist()
    Image.fromarray(NOISE).save(tmp_path / "color.png")
    assert np.array_equal(np.array(read_image(str(tmp_path / "color.png"))), NOISE)


def test_reads_a_row_of_a_data_set_by_its_bytes_or_by_its_path(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "color.png")
    content = (tmp_path / "color.png").read_bytes()
    for row in ({"bytes": content, "path": "elsewhere.png"}, {"path": str(tmp_path / "color.png")}):
        assert np.array_equal(np.array(read_image(row)), NOISE)
    with pytest.raises(ValueError, match=r"must be whole, got the bytes of a row: "):
        read_image({"bytes": content[:200], "path": None})
    with pytest.raises(ValueError, match=r"must have bytes or a path, got neither in \['bytes', 'path'\]"):
        read_image({"bytes": None, "path": None})


def test_turns_an_image_upright(tmp_path):
    image = Image.fromarray(np.array([[0, 0, 255, 255]] * 4, dtype=np.uint8).repeat(8, 0).repeat(8, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees, clockwise
    image.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    upright = np.array(read_image(tmp_path / "turned.jpg"))
    assert upright.shape == (32, 32)
    assert (upright[:14] < 20).all()
    assert (upright[18:] > 235).all()


def test_refuses_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must be a file, got none at .*nothing\.png"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(FileNotFoundError, match="must be a file"):
        read_image(tmp_path)


def test_refuses_what_is_no_image(tmp_path):
    (tmp_path / "report.png").write_text("no nodule")
    with pytest.raises(ValueError, match=r"one of PNG, JPEG, .*got another file at .*report\.png"):
        read_image(tmp_path / "report.png")


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.tif"])
def test_refuses_a_truncated_image(tmp_path, name):
    Image.fromarray(NOISE).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(ValueError, match=rf"an image must be (whole|one of).*{name}"):
        read_image(tmp_path / name)


def test_refuses_a_damaged_image(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "bad.png")
    content = bytearray((tmp_path / "bad.png").read_bytes())
    content[60:90] = bytes(30)
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"must be whole, got .*bad\.png"):
        read_image(tmp_path / "bad.png")


@pytest.mark.parametrize("name", ["loop.gif", "loop.png", "pages.tif"])
def test_refuses_several_frames(tmp_path, name):
    frames = [Image.new("L", (4, 4), value) for value in (10, 200, 90)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=rf"must have one frame, got 3 in .*{name}. Save the one"):
        read_image(tmp_path / name)


def test_refuses_huge_images_before_they_are_read(tmp_path, monkeypatch):
    Image.new("1", (10_000, 8_500)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match=r"at most 80,000,000 pixels, got 10000 x 8500 in .*huge\.png"):
        read_image(tmp_path / "huge.png")
    # Pillow warns of more, here as an error, and refuses twice as much.
    for limit in (60_000_000, 1_000_000):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=r"at most 80,000,000 pixels, got even more in .*huge\.png"):
            read_image(tmp_path / "huge.png")
