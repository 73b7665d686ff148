# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Overlapping tiles of the model's size, whose weighted log-densities make a prior of larger images."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """Place of a tile in an image, in pixels, and its weight."""

    top: int
    left: int
    weight: float


class Tiling:
    """
    Tiles of an image at even distances of at most the stride, from edge to edge.

    With a distance of s pixels, a tile of S pixels has the weight s / S along each axis, and (1 + s / S) / 2 at both
    ends of the axis. The weights of the tiles that cover a pixel then add up to 1, except within S pixels of the
    edges, where fewer tiles overlap and the sum is 1 on average. An image of the tile's size is one tile of weight 1.

    Args:
        image_shape: Height and width of the image, at least those of a tile.
        tile_shape: Height and width of a tile.
        stride: Largest distance of neighboring tiles along both axes.
    """

    def __init__(self, image_shape: tuple[int, int], tile_shape: tuple[int, int], stride: tuple[int, int]):
        rows, columns = (_axis(*sizes) for sizes in zip(image_shape, tile_shape, stride, strict=True))
        self.image_shape = image_shape
        self.tile_shape = tile_shape
        self.tiles = [
            Tile(top, left, row_weight * column_weight)
            for (top, row_weight), (left, column_weight) in itertools.product(rows, columns)
        ]

    def batches(self, num_images: int, batch_size: int) -> Iterator[tuple[list[int], list[Tile]]]:
        """Yield the image indices and the places of all tiles, `batch_size` at a time."""
        places = itertools.product(range(num_images), self.tiles)
        while batch := list(itertools.islice(places, batch_size)):
            yield [index for index, _ in batch], [tile for _, tile in batch]

    def cut(self, images: torch.Tensor, indices: list[int], places: list[Tile]) -> torch.Tensor:
        """Return a batch of tiles (b, C, h, w) of images (B, C, H, W)."""
        return torch.stack([self.view(images[index], tile) for index, tile in zip(indices, places, strict=True)])

    def view(self, image: torch.Tensor, tile: Tile) -> torch.Tensor:
        """Return a tile (..., h, w) of an image (..., H, W) as a view."""
        height, width = self.tile_shape
        return image[..., tile.top : tile.top + height, tile.left : tile.left + width]

    def coverage(self, like: torch.Tensor) -> torch.Tensor:
        """Return the sum of the weights (H, W) of the tiles that cover each pixel, in the dtype of `like`."""
        coverage = like.new_zeros(self.image_shape)
        for tile in self.tiles:
            self.view(coverage, tile).add_(tile.weight)
        return coverage


def _axis(length: int, size: int, stride: int) -> list[tuple[int, float]]:
    """Return the start and the weight of the tiles along one axis."""
    last = length - size
    if last == 0:
        return [(0, 1.0)]
    num_gaps = -(-last // stride)
    overlap = last / num_gaps / size
    weights = [(1 + overlap) / 2, *[overlap] * (num_gaps - 1), (1 + overlap) / 2]
    return [(round(last * index / num_gaps), weight) for index, weight in enumerate(weights)]
