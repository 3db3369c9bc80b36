"""What the name of a measurement says: compartment, feature group, measurement, channel, scale and so on.

CellProfiler joins the parts with underscores: ``Cells_Texture_Contrast_DNA_3_00_256`` is the contrast of channel DNA
in cells, three pixels apart, in direction 00, of 256 grey levels. What a part means depends on the group, that is, on
the module that measured it; names of channels may have underscores themselves. A part that is not understood stays
empty, and no name is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

DEEP_PROFILER = "DeepProfiler"

_NUMBER = re.compile(r"\d+")
_BIN = re.compile(r"(\d+)of(\d+)")
_DEEP = re.compile(r"(.*)_(\d+)", re.DOTALL)
_AXES = ("X", "Y", "Z")


@dataclass(frozen=True)
class FeatureName:
    """The parts of a measurement's name; texts are empty and numbers None where the name does not tell.

    Attributes:
        compartment: "Cells", "Nuclei", ...
        feature_group: "AreaShape", "Intensity", "Texture", ...: CellProfiler's category.
        measurement: What was measured, without channel and numbers, such as "Contrast".
        channel: The image that was measured.
        second_channel: The other one, of a measurement of two.
        scale: Pixels, or "Adjacent" and "Expanded" of neighbours.
        angle: The direction of a texture, as CellProfiler counts directions ("00" to "03").
        gray_levels: Of a texture.
        axis: "X", "Y" or "Z", of a place.
        order: Of a moment: "2_0".
        radial_bin: Of a radial distribution, counted from the centre.
        radial_bins: How many there are.
        number: Of a feature that has no name, as of a neural network.
    """

    compartment: str = ""
    feature_group: str = ""
    measurement: str = ""
    channel: str = ""
    second_channel: str = ""
    scale: str = ""
    angle: str = ""
    gray_levels: int | None = None
    axis: str = ""
    order: str = ""
    radial_bin: int | None = None
    radial_bins: int | None = None
    number: int | None = None


def parse_names(names: Sequence[str], labels: Iterable[str]) -> list[FeatureName]:
    """The parts of every name.

    Args:
        names: Of columns, with the compartment before CellProfiler's name.
        labels: The compartments, as they stand before their columns.

    >>> parse_names(["Cells_Texture_Contrast_DNA_3_00_256"], ["Cells"])[0].scale
    '3'
    """
    longest_first = sorted(labels, key=len, reverse=True)
    parsed = [_parsed(name, longest_first) for name in names]
    channels = {one.channel for one in parsed if one.channel and one.feature_group != "Correlation"}
    return [_two_channels(one, channels) if one.feature_group == "Correlation" else one for one in parsed]


def parse_deep_names(names: Iterable[str]) -> list[FeatureName]:
    """The parts of DeepProfiler's names, which are a model's name and a number.

    >>> parse_deep_names(["efficientnet_12"])[0].number
    12
    """
    found = [(name, _DEEP.fullmatch(name)) for name in names]
    return [
        FeatureName(feature_group=DEEP_PROFILER, measurement=match[1], number=int(match[2])) if match else FeatureName()
        for name, match in found
    ]


def _parsed(name: str, labels: list[str]) -> FeatureName:
    label = next((one for one in labels if name.startswith(f"{one}_")), None)
    if label is None:
        return FeatureName()
    group, *rest = name[len(label) + 1 :].split("_")
    known = FeatureName(label, group)
    if not rest:
        return replace(known, measurement=group, feature_group="")
    return _GROUPS.get(group, _plain)(known, rest)


def _plain(known: FeatureName, parts: list[str]) -> FeatureName:
    """Children_Cytoplasm_Count, Distance_Centroid_Nuclei, and whatever is not known."""
    return replace(known, measurement="_".join(parts))


def _shape(known: FeatureName, parts: list[str]) -> FeatureName:
    """AreaShape_Area, AreaShape_Center_X, AreaShape_Zernike_2_0, AreaShape_CentralMoment_0_1."""
    measurement, *rest = parts
    if len(rest) == 1 and rest[0] in _AXES:
        return replace(known, measurement=measurement, axis=rest[0])
    if rest and all(map(_NUMBER.fullmatch, rest)):
        return replace(known, measurement=measurement, order="_".join(rest))
    return _plain(known, parts)


def _intensity(known: FeatureName, parts: list[str]) -> FeatureName:
    """Intensity_MeanIntensity_DNA."""
    return replace(known, measurement=parts[0], channel="_".join(parts[1:]))


def _location(known: FeatureName, parts: list[str]) -> FeatureName:
    """Location_Center_X, Location_MaxIntensity_X_DNA."""
    if len(parts) > 1 and parts[1] in _AXES:
        return replace(known, measurement=parts[0], axis=parts[1], channel="_".join(parts[2:]))
    return _plain(known, parts)


def _granularity(known: FeatureName, parts: list[str]) -> FeatureName:
    """Granularity_3_DNA."""
    if _NUMBER.fullmatch(parts[0]):
        return replace(known, measurement="Granularity", scale=parts[0], channel="_".join(parts[1:]))
    return _plain(known, parts)


def _texture(known: FeatureName, parts: list[str]) -> FeatureName:
    """Texture_Contrast_DNA_3_00_256; Texture_Contrast_DNA_3_0 and Texture_Gabor_DNA_3 of older versions."""
    end = len(parts)
    while end > 1 and len(parts) - end < 3 and _NUMBER.fullmatch(parts[end - 1]):
        end -= 1
    scale, angle, levels = (*parts[end:], "", "", "")[:3]
    channel = "_".join(parts[1:end])
    gray_levels = int(levels) if levels else None
    return replace(known, measurement=parts[0], channel=channel, scale=scale, angle=angle, gray_levels=gray_levels)


def _radial(known: FeatureName, parts: list[str]) -> FeatureName:
    """RadialDistribution_MeanFrac_DNA_1of4, ..._Overflow, RadialDistribution_ZernikePhase_DNA_2_0."""
    measurement, *rest = parts
    known = replace(known, measurement=measurement)
    if measurement.startswith("Zernike") and len(rest) > 2 and all(map(_NUMBER.fullmatch, rest[-2:])):
        return replace(known, channel="_".join(rest[:-2]), order="_".join(rest[-2:]))
    if rest and (match := _BIN.fullmatch(rest[-1])):
        return replace(known, channel="_".join(rest[:-1]), radial_bin=int(match[1]), radial_bins=int(match[2]))
    if rest and rest[-1] == "Overflow":
        return replace(known, measurement=f"{measurement}_Overflow", channel="_".join(rest[:-1]))
    return replace(known, channel="_".join(rest))


def _neighbors(known: FeatureName, parts: list[str]) -> FeatureName:
    """Neighbors_NumberOfNeighbors_10, Neighbors_PercentTouching_Nuclei_Adjacent (neighbours of another kind)."""
    if len(parts) > 1 and (parts[-1] in ("Adjacent", "Expanded") or _NUMBER.fullmatch(parts[-1])):
        return replace(known, measurement="_".join(parts[:-1]), scale=parts[-1])
    return _plain(known, parts)


def _two_channels(one: FeatureName, channels: set[str]) -> FeatureName:
    """Correlation_Correlation_DNA_ER: where a channel's name has underscores, channels known otherwise tell which."""
    parts = one.channel.split("_")
    splits = [("_".join(parts[:at]), "_".join(parts[at:])) for at in range(1, len(parts))]
    if len(splits) > 1:
        splits = [pair for pair in splits if set(pair) <= channels]
    if len(splits) == 1:
        return replace(one, channel=splits[0][0], second_channel=splits[0][1])
    return replace(one, channel=one.channel if one.channel in channels or len(parts) == 1 else "")


_GROUPS: dict[str, Callable[[FeatureName, list[str]], FeatureName]] = {
    "AreaShape": _shape,
    "Correlation": _intensity,
    "Granularity": _granularity,
    "Intensity": _intensity,
    "Location": _location,
    "Neighbors": _neighbors,
    "RadialDistribution": _radial,
    "Texture": _texture,
}
