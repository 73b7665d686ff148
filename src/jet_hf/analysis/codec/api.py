# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Lossless compression of images at a model's rate."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from tqdm.auto import tqdm

from ...model.configuration_jet import JetConfig
from ...model.modeling_jet import JetForDensityEstimation, scale_bytes
from ...model.validation_jet import check_whole
from ...utils.noise import uniform_noise
from ..fingerprint import fingerprint
from ..inference import evaluation_mode
from ..sampling import no_labels
from . import container
from .container import FLOW, WEBP, Header
from .decoder import decode_stack, decode_webp_images
from .encoder import Encoder, Weight
from .errors import CodecError
from .integer_flow import OFFSETS, IntegerFlow, check_model
from .regions import LONGEST_SIDE, encode_webp, strips, tiles
from .stack import CHUNK


def compress(
    images: Sequence[np.ndarray],
    model: JetForDensityEstimation,
    labels: Sequence[int] | None = None,
    names: Sequence[str] = (),
    allow_webp: bool = True,
    verify: bool = True,
    batch_size: int = 8,
    progress: bool = False,
) -> bytes:
    """
    Compress images without loss, to about the size that the model's bits per dimension give.

    Args:
        images: uint8 arrays (H, W, C) of any sizes, with the model's number of channels; also (H, W) for one channel.
            Each is read once or twice, so that a sequence may load its images on access.
        model: Density model, which [`decompress`] needs too.
        labels: Class of each image, for a class-conditional model; by default unknown.
        names: Names of the images to store, or none.
        allow_webp: Whether the file may hold plain WebP images if these are smaller, as with small models.
        verify: Whether to decompress the result and compare it with the images, which takes as long again.
        batch_size: Number of tiles that a conditioner takes at a time. It changes speed and memory, but not the file.
        progress: Whether to show progress bars on stderr.

    Raises:
        ValueError: for images, labels or names that do not fit, or a model that the codec has no integer maps for.
            The message names the argument or the field.
        CodecError: if the result does not decompress to the images.

    Example:

    ```python
    >>> import numpy as np
    >>> from jet_hf import JetConfig, JetForDensityEstimation
    >>> from jet_hf.codec import compress, decompress

    >>> config = JetConfig(image_size=16, num_coupling_layers=2, hidden_size=32, num_attention_heads=2)
    >>> model = JetForDensityEstimation(config).eval()
    >>> images = [np.zeros((20, 30, 3), dtype=np.uint8)]
    >>> bool((decompress(compress(images, model), model)[0] == images[0]).all())
    True
    ```"""
    return Codec(model, batch_size).compress(images, labels, names, allow_webp, verify, progress)[0]


def decompress(
    data: bytes, model: JetForDensityEstimation, batch_size: int = 8, progress: bool = False
) -> list[np.ndarray]:
    """
    Return the images of [`compress`], uint8 arrays (H, W, C).

    Args:
        data: A file, or several one after another.
        model: Model that the file was made with.
        batch_size, progress: See [`compress`].

    Raises:
        CodecError: for data that are no such file, are damaged, or were made with another model, version or setting.
        ValueError: for a model that the codec has no integer maps for.
    """
    codec = Codec(model, batch_size)
    images: list[np.ndarray] = []
    for kind, header, body in list(container.unpack(data)):
        found = dict(codec.decode(kind, header, body, progress))
        images += [found[i] for i in range(len(found))]
    return images


@torch.no_grad()
def estimate(images: Sequence[np.ndarray], model: JetForDensityEstimation, batch_size: int = 32) -> int:
    """
    Return the number of bytes that [`compress`] makes of images, to about one percent, in a fraction of its time.

    Tiles are scored by the model as it is, in its dtype on its device, as of unknown class. Files of few tiles take
    more bytes, which is not part of the estimate.

    Args:
        images, model: See [`compress`].
        batch_size: Number of tiles that the model scores at a time.

    Raises:
        ValueError: see [`compress`].
    """
    config = model.config
    check_model(config)
    tile_shape = config.image_shape[1:]
    waiting: list[np.ndarray] = []
    bits, plain, num_scored = 0.0, 0, 0
    for i in range(len(images)):
        image = check_image(images[i], i, config)
        plain += len(encode_webp(image))
        shape = image.shape[0], image.shape[1]
        bits += 8 * sum(len(encode_webp(region.of(image))) for region in strips(shape, tile_shape))
        waiting += [region.of(image) for region in tiles(shape, tile_shape)]
        while len(waiting) >= batch_size or (waiting and i == len(images) - 1):
            batch, waiting = waiting[:batch_size], waiting[batch_size:]
            bits += score_tiles(np.stack(batch), model, num_scored) * config.num_dims
            num_scored += len(batch)
    return min(plain, round(bits / 8)) + container.FIXED.size


def score_tiles(levels: np.ndarray, model: JetForDensityEstimation, index: int) -> float:
    """
    Return the sum of the model's bits per dimension over tiles, of unknown class.

    Args:
        levels: uint8 array (B, H, W, C).
        model: Density model.
        index: Index of the first tile, which draws its noise.
    """
    device = model.jet.input_device
    pixels = torch.from_numpy(levels).permute(0, 3, 1, 2).to(device)
    indices = torch.arange(index, index + len(levels), device=device)
    labels = no_labels(model, len(levels))
    noise = uniform_noise(0, indices, tuple(pixels.shape[1:]))
    with evaluation_mode(model):
        output = model(scale_bytes(pixels, model.config.num_levels), labels=labels, noise=noise)
    return output.bits_per_dim.double().sum().item()


def check_image(image: np.ndarray, index: int, config: JetConfig) -> np.ndarray:
    """
    Return an image as a uint8 array (H, W, C).

    Raises:
        ValueError: for another dtype or shape, no pixels, or levels that the model does not have.
    """
    array, channels = np.asarray(image), config.num_channels
    if array.ndim == 2 and channels == 1:
        array = array[:, :, None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != channels or array.size == 0:
        raise ValueError(
            f"`images[{index}]` must be a uint8 array (H, W, {channels}), for a model with `num_channels` {channels}, "
            f"got {array.dtype} {array.shape}."
        )
    if (largest := int(array.max())) >= config.num_levels:
        raise ValueError(f"`images[{index}]` must have levels from 0 to {config.num_levels - 1}, got {largest}.")
    return array


class Codec:
    """
    Codec of images with a model. Several calls share the model's copy in float64.

    Args:
        model: Density model.
        batch_size: Number of tiles that a conditioner takes at a time.

    Raises:
        ValueError: for a model that the codec has no integer maps for; the message names the field.
    """

    def __init__(self, model: JetForDensityEstimation, batch_size: int = 8):
        check_whole("batch_size", batch_size)
        self.config = model.config
        self.flow = IntegerFlow(model, batch_size)
        self.fingerprint = fingerprint(model).hex()
        density = self.flow.density
        constants = (container.VERSION, CHUNK, OFFSETS, self.flow.cells_per_unit, density.num_bins, density.low_bits)
        digest = hashlib.sha256(repr(constants).encode())
        for table in (*self.flow.scales, density.weights):
            digest.update(table.astype(table.dtype.newbyteorder("<")).tobytes())
        self.settings = digest.hexdigest()[:8]

    def compress(
        self,
        images: Sequence[np.ndarray],
        labels: Sequence[int] | None = None,
        names: Sequence[str] = (),
        allow_webp: bool = True,
        verify: bool = True,
        progress: bool = False,
    ) -> tuple[bytes, Weight]:
        """Return the file of images and the size of its parts, see [`compress`]."""
        labels = self._check_labels(labels, len(images))
        if names and len(names) != len(images):
            raise ValueError(f"`names` must have one name for each of {len(images)} images, got {len(names)}.")
        encoder, files = Encoder(self.flow), list[bytes]()
        for i in tqdm(range(len(images)), unit="image", desc="compress", disable=not progress):
            image = check_image(images[i], i, self.config)
            allow_webp = allow_webp and max(image.shape) <= LONGEST_SIDE
            if allow_webp:
                files.append(encode_webp(image))
            encoder.add(image, None if labels is None else labels[i])
        body, weight = encoder.finish(), encoder.weight
        header = Header(
            channels=self.config.num_channels,
            shapes=container.runs(encoder.shapes),
            pixels=container.checksum(encoder.checksums),
            names=list(names),
            model=self.fingerprint,
            settings=self.settings,
            steps=encoder.steps,
            labels=[] if labels is None else container.runs((label,) for label in labels),
        )
        data = container.pack(FLOW, header, body)
        if allow_webp and sum(map(len, files)) < len(body):
            header.steps, header.labels, header.model, header.settings = [[len(file)] for file in files], [], "", ""
            data = container.pack(WEBP, header, b"".join(files))
            weight = Weight(num_dims=weight.num_dims, is_webp=True)
        weight.num_bytes = len(data)
        if verify:
            for kind, header, packed in container.unpack(data):
                for _ in self.decode(kind, header, packed, progress):
                    pass
        return data, weight

    def decode(
        self, kind: int, header: Header, body: memoryview, progress: bool = False
    ) -> Iterator[tuple[int, np.ndarray]]:
        """
        Yield index and pixels of each image of a file from [`container.unpack`], in any order.

        Raises:
            CodecError: see [`decompress`]. Images that were yielded before the error are not to be used.
        """
        if kind == WEBP:
            found = decode_webp_images(header, body)
        else:
            self._check_origin(header)
            found = decode_stack(self.flow, header, body)
        yield from tqdm(found, total=header.num_images, unit="image", desc="decompress", disable=not progress)

    def _check_origin(self, header: Header) -> None:
        if header.model != self.fingerprint:
            raise CodecError(
                f"the file must be decompressed with the model {header.model} that made it, got the model "
                f"{self.fingerprint}: these are hashes of weights and configuration."
            )
        if header.settings != self.settings or header.channels != self.config.num_channels:
            raise CodecError(
                f"the file must be decompressed with the codec settings {header.settings}, got {self.settings}: it "
                "needs another version of jet_hf."
            )

    def _check_labels(self, labels: Sequence[int] | None, count: int) -> list[int] | None:
        num_classes = self.config.num_classes
        if num_classes is None:
            if labels is not None:
                raise ValueError("`labels` must be None for a model without classes.")
            return None
        if labels is None:
            return [num_classes] * count
        labels = [int(label) for label in labels]
        if len(labels) != count or not all(0 <= label <= num_classes for label in labels):
            raise ValueError(
                f"`labels` must be {count} numbers from 0 to {num_classes}, which stands for an unknown class, got "
                f"{labels[:10]}."
            )
        return labels
