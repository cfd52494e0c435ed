"""The conversion of any image file to the network's input."""

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from leanresnet.config.schema import IMAGE_SIZE
from leanresnet.errors import DataError
from leanresnet.files import not_read

SUFFIXES = (".jpeg", ".jpg", ".png")
# The largest number of pixels of an image. Decoding an image of this size takes about half a gigabyte.
MOST_PIXELS = 2**26
# The largest file: as many pixels of four channels of 16 bits. Not every path is a file that ends, such as /dev/zero.
MOST_BYTES = 8 * MOST_PIXELS
# The operation that makes an image upright, by its EXIF orientation.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: Path) -> Tensor:
    """Read and `decode` a file.

    Raises:
        StorageError: if it cannot be read.
        DataError: if it is not a whole image, or too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise not_read(path, error) from error
    if len(content) > MOST_BYTES:
        raise DataError(f"{path}: too large, expected: up to {MOST_BYTES:,} bytes")
    return decode(content, str(path))


def decode(content: bytes, name: str) -> Tensor:
    """Decode an image, turn it upright, and scale its central square with antialiasing.

    Transparent pixels become white.

    Args:
        content: content of a JPEG or PNG file; of an animation, the first picture is taken.
        name: name of the image for error messages.

    Returns:
        (3, 32, 32) uint8, RGB.

    Raises:
        DataError: if it is not a whole image, has more than `MOST_PIXELS` pixels, or has three channels of 16 bits and
            a transparent colour, which Pillow cannot find among its pixels.
    """
    try:
        # Pillow warns of damage in spite of which it can read the image.
        with warnings.catch_warnings(action="ignore"), _open(content) as image:
            width, height = image.size
            if width * height <= MOST_PIXELS:
                return _scaled(image)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except Exception as error:  # on damaged files, Pillow raises nearly everything
        raise DataError(f"{name}: not a whole image, expected: JPEG or PNG") from error
    raise DataError(f"{name}: {width:,} x {height:,} pixels, expected: up to {MOST_PIXELS:,}")


def _open(content: bytes) -> ImageFile:
    """Open an image and read its header. `Image.open` is not used because it refuses large images, or warns of them."""
    return (PngImageFile if content.startswith(b"\x89PNG") else JpegImageFile)(io.BytesIO(content))


def _scaled(image: ImageFile) -> Tensor:
    square = ImageOps.fit(_in_8_bits(image), (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    turn = UPRIGHT.get(_orientation(image))
    upright = square if turn is None else square.transpose(turn)
    if upright.mode in ("LA", "RGBA"):
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1).contiguous()


def _in_8_bits(image: ImageFile) -> Image.Image:
    """Return the image in mode L, LA, RGB or RGBA."""
    sampled_as = image.tile[0].args
    image.load()
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if sampled_as in ("L;2", "L;4") and "transparency" in image.info:
        # Pillow scales the samples to 8 bits, but not the value that means transparency.
        image.info["transparency"] *= {"L;2": 85, "L;4": 17}[sampled_as]
    if sampled_as == "RGB;16B" and "transparency" in image.info:
        raise DataError("a transparent colour of 16 bits, expected: an alpha channel for transparent pixels")
    wanted = ("LA", "RGBA") if image.has_transparency_data else ("L", "RGB")
    return image if image.mode in wanted else image.convert(wanted[1])


def _from_16_bits(image: ImageFile) -> Image.Image:
    """Scale samples of 16 bits to 8 bits; Pillow's own conversion makes all values above 255 white."""
    samples = np.asarray(image)
    grey = Image.fromarray(((np.arange(2**16) + 128) // 257).astype(np.uint8)[samples])
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(samples == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1, upright, if it is missing or cannot be read, as image viewers assume too."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    # Pillow's errors of a block that does not begin as TIFF does, that is cut, or whose hexadecimal digits are none.
    except (SyntaxError, struct.error, ValueError):
        return 1
    return found if isinstance(found, int) else 1
