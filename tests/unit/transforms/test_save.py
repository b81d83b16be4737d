"""SaveImageEnhancedd: the input's grid, unit and name, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImaged
from PIL import Image

from gradprom.errors import InputError
from gradprom.transforms import LoadCased, SaveImageEnhancedd
from gradprom.transforms.save import case_name

OBLIQUE = np.array([[0.9, 0.2, 0, -8], [-0.3, 1.1, 0.1, 30], [0.05, 0, -2.5, 4], [0, 0, 0, 1]])


def source(
    path: Path, shape: tuple[int, ...], klass: type[nib.Nifti1Image] = nib.Nifti1Image
) -> str:
    """An int16 file with scaling, an sform and a different qform, codes 2 and 1, units mm and s."""
    image = klass(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), OBLIQUE)
    image.header.set_slope_inter(0.5, 100.0)
    image.set_sform(OBLIQUE, code=2)
    image.set_qform(np.diag([1.5, 1.5, 3.0, 1.0]), code=1)
    image.header.set_xyzt_units("mm", "sec")
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"who it is"))
    nib.save(image, path)
    return str(path)


def save(file: str, out: Path, plus: float = 1.0, **arguments: object) -> None:
    image = LoadCased("image", volumes=True)({"image": file})["image"]
    SaveImageEnhancedd("pred", out, **arguments)({"pred": image + plus})


@pytest.mark.parametrize(
    "shape", [(4, 5), (4, 5, 1), (4, 5, 1, 1), (4, 5, 3), (1, 5, 3), (4, 5, 3, 1)]
)
@pytest.mark.parametrize("klass", [nib.Nifti1Image, nib.Nifti2Image])
def test_grid_unit_and_header_are_those_of_the_input(
    tmp_path: Path, shape: tuple[int, ...], klass: type[nib.Nifti1Image]
) -> None:
    before = nib.load(source(tmp_path / "a.nii", shape, klass))
    save(str(tmp_path / "a.nii"), tmp_path / "out")
    after = nib.load(tmp_path / "out" / "a" / "a_enhanced.nii.gz")
    assert type(after) is type(before)
    assert after.shape == before.shape == shape
    assert after.get_data_dtype() == np.float32
    assert (after.dataobj.slope, after.dataobj.inter) == (1.0, 0.0)
    np.testing.assert_allclose(after.get_fdata(), before.get_fdata() + 1)
    for form in ("get_sform", "get_qform"):
        there, code = getattr(before, form)(coded=True)
        here, same_code = getattr(after, form)(coded=True)
        assert code == same_code
        np.testing.assert_array_equal(here, there)
    np.testing.assert_array_equal(after.affine, before.affine)
    np.testing.assert_array_equal(after.header["pixdim"], before.header["pixdim"])
    assert after.header.get_xyzt_units() == ("mm", "sec")
    assert not after.header.extensions


def test_a_header_without_forms_stays_without(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones((4, 5, 3), np.uint8), None)
    image.header.set_zooms((2, 2, 5))
    nib.save(image, tmp_path / "a.nii")
    save(str(tmp_path / "a.nii"), tmp_path / "out")
    header = nib.load(tmp_path / "out" / "a" / "a_enhanced.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (0, 0)
    assert header.get_zooms() == (2, 2, 5)


def test_a_big_endian_file_is_understood(tmp_path: Path) -> None:
    header = nib.Nifti1Header(endianness=">")
    nib.save(nib.Nifti1Image(np.arange(20.0).reshape(4, 5), OBLIQUE, header), tmp_path / "a.nii")
    save(str(tmp_path / "a.nii"), tmp_path / "out")
    after = nib.load(tmp_path / "out" / "a" / "a_enhanced.nii.gz")
    np.testing.assert_array_equal(after.get_fdata(), np.arange(20.0).reshape(4, 5) + 1)


@pytest.mark.parametrize(("channels", "shape"), [(3, (6, 4, 1, 1, 3)), (1, (6, 4))])
def test_a_picture_has_no_grid_to_keep(
    tmp_path: Path, channels: int, shape: tuple[int, ...]
) -> None:
    pixels = np.arange(24 * channels, dtype=np.uint8).reshape(4, 6, channels).squeeze()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = LoadCased("image", channels=channels)({"image": str(tmp_path / "a.png")})["image"]
    SaveImageEnhancedd("image", tmp_path / "out")({"image": image})
    after = nib.load(tmp_path / "out" / "a" / "a_enhanced.nii.gz")
    assert after.shape == shape
    np.testing.assert_array_equal(after.get_fdata().squeeze(), pixels.swapaxes(0, 1))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a.nii", "a"),
        ("in/a.nii.gz", "a"),
        ("/x/a.v2.NII.GZ", "a.v2"),
        ("a.png", "a"),
        ("nii.nii", "nii"),
    ],
)
def test_name_of_a_case(file: str, name: str) -> None:
    assert case_name(file) == name


def test_postfix_and_dotted_name(tmp_path: Path) -> None:
    save(source(tmp_path / "a.v2.nii.gz", (4, 5)), tmp_path / "out", postfix="x")
    assert (tmp_path / "out" / "a.v2" / "a.v2_x.nii.gz").is_file()


@pytest.mark.parametrize("existing", [None, b"before"])
def test_a_failed_write_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bytes | None
) -> None:
    target = tmp_path / "out" / "a" / "a_enhanced.nii.gz"
    if existing is not None:
        target.parent.mkdir(parents=True)
        target.write_bytes(existing)

    def half(image: nib.Nifti1Image, path: Path) -> None:
        Path(path).write_bytes(image.to_bytes()[:100])
        raise OSError("No space left on device")

    monkeypatch.setattr(nib, "save", half)
    with pytest.raises(OSError, match="No space"):
        save_prepared(tmp_path)
    assert [f.read_bytes() for f in target.parent.iterdir()] == (
        [] if existing is None else [existing]
    )


def save_prepared(tmp_path: Path) -> None:
    """Saves an image whose source was written without ``nibabel.save``, which is broken."""
    file = tmp_path / "a.nii"
    file.write_bytes(nib.Nifti1Image(np.ones((4, 5), np.float32), np.eye(4)).to_bytes())
    save(str(file), tmp_path / "out")


def test_an_existing_result_is_replaced(tmp_path: Path) -> None:
    file = source(tmp_path / "a.nii", (4, 5))
    save(file, tmp_path / "out", plus=1.0)
    save(file, tmp_path / "out", plus=2.0)
    after = nib.load(tmp_path / "out" / "a" / "a_enhanced.nii.gz").get_fdata()
    np.testing.assert_allclose(after, nib.load(file).get_fdata() + 2)
    assert len(list((tmp_path / "out" / "a").iterdir())) == 1


def test_a_result_of_another_size_is_refused(tmp_path: Path) -> None:
    image = LoadCased("image")({"image": source(tmp_path / "a.nii", (4, 5))})["image"]
    with pytest.raises(InputError, match=r"a\.nii.*\(1, 4, 4\).*inverse"):
        SaveImageEnhancedd("image", tmp_path / "out")({"image": image[..., :4]})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("image", [torch.ones(1, 4, 5), MetaTensor(torch.ones(1, 4, 5))])
def test_an_image_without_a_file_is_refused(tmp_path: Path, image: torch.Tensor) -> None:
    with pytest.raises(InputError, match="comes from no file"):
        SaveImageEnhancedd("image", tmp_path)({"image": image})


def test_servers_recognise_a_saver() -> None:
    # MONAI Label drops instances of SaveImaged, MONAI Deploy classes with SaveImage in their name.
    assert issubclass(SaveImageEnhancedd, SaveImaged)
    assert "SaveImage" in SaveImageEnhancedd.__name__
