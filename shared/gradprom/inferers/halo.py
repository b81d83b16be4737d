"""Inference in tiles that gives what the whole image would give."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from types import EllipsisType

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer

from gradprom.errors import InputError

__all__ = ["HaloInferer", "Span", "plan_axis"]

# (start and stop of what the network sees, start and stop of what is kept), in voxels of the image
Span = tuple[int, int, int, int]


def plan_axis(size: int, tile: int | None, halo: int, align: int) -> list[Span]:
    """Cuts one axis into cores of ``tile`` voxels, each seen with ``halo`` voxels on both sides.

    The part seen starts at a multiple of ``align`` or at 0, so that strided layers sample the same
    voxels as in the whole image, and ends at the same distance behind the core or at the image's
    end. An axis that fits into one tile with its halo is not cut.

    Args:
        size: voxels along the axis, >= 1.
        tile: voxels of a core, rounded up to a multiple of ``align``; None leaves the axis whole.
        halo: voxels on each side, rounded up likewise.
        align: product of the network's strides.

    Returns:
        spans in order; their cores cover ``0 .. size`` exactly once.
    """
    if tile is None:
        return [(0, size, 0, size)]
    tile, halo = -(-tile // align) * align, -(-halo // align) * align
    if size <= tile + 2 * halo:
        return [(0, size, 0, size)]
    cores = ((start, min(start + tile, size)) for start in range(0, size, tile))
    return [(max(a - halo, 0), min(b + halo, size), a, b) for a, b in cores]


class HaloInferer(Inferer):
    """Runs an image-to-image network on tiles with a halo and keeps the tiles' cores.

    A network whose receptive field reaches no further than ``halo`` gives the result of the whole
    image up to rounding; averaging overlapping tiles does not. Memory beyond input and output is
    that of one batch of tiles.

    Args:
        spatial_dims: spatial axes of the network, 2 or 3. A 2D network is given a volume slice by
            slice.
        tile: voxels of a core along each axis, one number or one an axis; None: the whole image.
        halo: voxels that the network sees on each side of a core.
        batch: tiles (or slices) in one call of the network.
        align: multiple at which tiles start; the product of the network's strides.
        slice_axis: spatial axis of a volume along which a 2D network goes; -1 is the last.
        device: where the network computes; default where the input is.
        output_device: where the result is assembled; default where the input is.

    Shapes:
        ``[B, C, *spatial]`` to ``[B, C', *spatial]``; the network keeps the spatial size.

    Raises:
        InputError: sizes that are no positive numbers; an input with other axes; a network that
            changes the size.
    """

    def __init__(
        self,
        spatial_dims: int,
        tile: int | Sequence[int] | None = None,
        halo: int = 0,
        batch: int = 1,
        align: int = 8,
        slice_axis: int = -1,
        device: torch.device | str | None = None,
        output_device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        tiles = tuple(tile) if isinstance(tile, Sequence) else (tile,) * spatial_dims
        sizes = [t for t in tiles if t is not None]
        if len(tiles) != spatial_dims or min([*sizes, batch, align, halo + 1]) < 1:
            raise InputError(
                f"HaloInferer got tile={tile!r}, halo={halo!r}, batch={batch!r}, align={align!r}: "
                f"give positive whole numbers, and for the tile one number or {spatial_dims}."
            )
        self.spatial_dims = spatial_dims
        self.tiles = tiles
        self.halo = halo
        self.batch = batch
        self.align = align
        self.slice_axis = slice_axis
        self.device = device
        self.output_device = output_device

    def __call__(
        self,
        inputs: torch.Tensor,
        network: Callable[..., torch.Tensor],
        *args: object,
        **kwargs: object,
    ) -> torch.Tensor:
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        extra = image.dim() - 2 - self.spatial_dims
        if extra not in (0, 1) or (extra and self.spatial_dims == 3):
            raise InputError(
                f"HaloInferer for {self.spatial_dims}D networks got an input of shape "
                f"{tuple(image.shape)}: give [batch, channel] and {self.spatial_dims} "
                f"spatial axes{' or 3' * (self.spatial_dims == 2)}."
            )
        axis = self.slice_axis % (image.dim() - 2) + 2
        slices = image.movedim(axis, -1) if extra else image.unsqueeze(-1)
        output = self.assemble(slices, lambda x: network(x, *args, **kwargs))
        output = output.movedim(-1, axis) if extra else output.squeeze(-1)
        return (
            MetaTensor(output).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else output
        )

    def assemble(
        self, slices: torch.Tensor, network: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """The output for ``[B, C, *spatial, slices]``; a 3D network has one slice."""
        source = slices.device if self.device is None else self.device
        target = slices.device if self.output_device is None else self.output_device
        output = torch.empty(0)
        for group in self.batches(slices):
            tiles = torch.cat([slices[at(seen(spans), s)] for spans, s in group])
            result = network(tiles.to(source))
            check_size(result, tiles)
            if not output.numel():
                shape = (slices.shape[0], result.shape[1], *slices.shape[2:])
                output = torch.empty(shape, dtype=result.dtype, device=target)
            for (spans, s), tile in zip(group, result.split(slices.shape[0]), strict=True):
                output[at(kept(spans), s)] = tile[at(core(spans))].to(target)
        return output

    def batches(self, slices: torch.Tensor) -> Iterator[list[tuple[tuple[Span, ...], int]]]:
        """Yields up to ``batch`` tiles of equal size at a time: spans and number of the slice."""
        plans = [
            plan_axis(size, tile, self.halo, self.align)
            for size, tile in zip(slices.shape[2:-1], self.tiles, strict=True)
        ]
        tiles = sorted(itertools.product(*plans), key=seen_size)
        for _, same in itertools.groupby(tiles, key=seen_size):
            work = itertools.product(list(same), range(slices.shape[-1]))
            while group := list(itertools.islice(work, self.batch)):
                yield group


def check_size(result: torch.Tensor, tiles: torch.Tensor) -> None:
    """Refuses a network whose output has another spatial size than its input."""
    if result.shape[2:] != tiles.shape[2:]:
        raise InputError(
            f"the network made {tuple(result.shape[2:])} of a tile of {tuple(tiles.shape[2:])}: "
            "HaloInferer needs one that keeps the spatial size."
        )


def at(part: tuple[slice, ...], *rest: int) -> tuple[EllipsisType | slice | int, ...]:
    """The index of ``part`` in the spatial axes, after batch and channel and before ``rest``."""
    return (..., *part, *rest)


def seen(spans: Sequence[Span]) -> tuple[slice, ...]:
    """What the network sees, in coordinates of the image."""
    return tuple(slice(a, b) for a, b, _, _ in spans)


def kept(spans: Sequence[Span]) -> tuple[slice, ...]:
    """What is kept, in coordinates of the image."""
    return tuple(slice(a, b) for _, _, a, b in spans)


def core(spans: Sequence[Span]) -> tuple[slice, ...]:
    """What is kept, in coordinates of the tile."""
    return tuple(slice(c - a, d - a) for a, _, c, d in spans)


def seen_size(spans: Sequence[Span]) -> tuple[int, ...]:
    """The spatial size of a tile."""
    return tuple(b - a for a, b, _, _ in spans)
