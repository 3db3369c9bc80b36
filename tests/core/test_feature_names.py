"""What the names of measurements say."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from prefect_cytotable.tasks.core.feature_names import FeatureName, parse_deep_names, parse_names

LABELS = ("Cells", "Nuclei", "Cytoplasm", "Nuclei_Cellpose3")


def parts(name: FeatureName) -> dict[str, Any]:
    return {key: value for key, value in asdict(name).items() if value not in ("", None)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Cells_AreaShape_Area", {"feature_group": "AreaShape", "measurement": "Area"}),
        ("Cells_AreaShape_Center_X", {"feature_group": "AreaShape", "measurement": "Center", "axis": "X"}),
        ("Cells_AreaShape_Zernike_2_0", {"feature_group": "AreaShape", "measurement": "Zernike", "order": "2_0"}),
        ("Cells_AreaShape_HuMoment_3", {"feature_group": "AreaShape", "measurement": "HuMoment", "order": "3"}),
        (
            "Cells_Intensity_MeanIntensity_Phase_Orig",
            {"feature_group": "Intensity", "measurement": "MeanIntensity", "channel": "Phase_Orig"},
        ),
        (
            "Cells_Location_MaxIntensity_Y_DNA",
            {"feature_group": "Location", "measurement": "MaxIntensity", "axis": "Y", "channel": "DNA"},
        ),
        ("Cells_Location_Center_Z", {"feature_group": "Location", "measurement": "Center", "axis": "Z"}),
        (
            "Cells_Granularity_12_DNA",
            {"feature_group": "Granularity", "measurement": "Granularity", "scale": "12", "channel": "DNA"},
        ),
        (
            "Cells_Texture_Contrast_Ch_1_5_03_256",
            {
                "feature_group": "Texture",
                "measurement": "Contrast",
                "channel": "Ch_1",
                "scale": "5",
                "angle": "03",
                "gray_levels": 256,
            },
        ),
        (
            "Cells_Texture_Contrast_DNA_3_0",
            {"feature_group": "Texture", "measurement": "Contrast", "channel": "DNA", "scale": "3", "angle": "0"},
        ),
        (
            "Cells_Texture_Gabor_DNA_3",
            {"feature_group": "Texture", "measurement": "Gabor", "channel": "DNA", "scale": "3"},
        ),
        (
            "Cells_RadialDistribution_MeanFrac_DNA_2of4",
            {
                "feature_group": "RadialDistribution",
                "measurement": "MeanFrac",
                "channel": "DNA",
                "radial_bin": 2,
                "radial_bins": 4,
            },
        ),
        (
            "Cells_RadialDistribution_FracAtD_DNA_Overflow",
            {"feature_group": "RadialDistribution", "measurement": "FracAtD_Overflow", "channel": "DNA"},
        ),
        (
            "Cells_RadialDistribution_ZernikePhase_DNA_9_1",
            {"feature_group": "RadialDistribution", "measurement": "ZernikePhase", "channel": "DNA", "order": "9_1"},
        ),
        (
            "Cells_Neighbors_PercentTouching_Adjacent",
            {"feature_group": "Neighbors", "measurement": "PercentTouching", "scale": "Adjacent"},
        ),
        (
            "Cells_Neighbors_NumberOfNeighbors_Nuclei_10",
            {"feature_group": "Neighbors", "measurement": "NumberOfNeighbors_Nuclei", "scale": "10"},
        ),
        ("Cells_Children_Cytoplasm_Count", {"feature_group": "Children", "measurement": "Cytoplasm_Count"}),
    ],
)
def test_names_of_cellprofiler(name: str, expected: dict[str, Any]) -> None:
    (found,) = parse_names([name], LABELS)
    assert parts(found) == {"compartment": "Cells", **expected}


def test_two_channels() -> None:
    known = ["Cells_Intensity_MeanIntensity_Phase_Orig", "Cells_Intensity_MeanIntensity_DNA"]
    names = ["Cells_Correlation_K_DNA_ER", "Cells_Correlation_RWC_DNA_Phase_Orig", "Cells_Correlation_K_A_B_C"]
    plain, underscored, unclear = parse_names([*names, *known], LABELS)[:3]
    assert (plain.channel, plain.second_channel) == ("DNA", "ER")
    assert (underscored.channel, underscored.second_channel) == ("DNA", "Phase_Orig")
    assert (unclear.measurement, unclear.channel, unclear.second_channel) == ("K", "", "")


def test_the_longest_compartment_counts() -> None:
    (found,) = parse_names(["Nuclei_Cellpose3_AreaShape_Area"], LABELS)
    assert (found.compartment, found.feature_group) == ("Nuclei_Cellpose3", "AreaShape")


@pytest.mark.parametrize("name", ["", "x", "Primary Target Area wv1", "Other_AreaShape_Area"])
def test_what_is_not_understood_stays_empty(name: str) -> None:
    assert parse_names([name], LABELS) == [FeatureName()]


def test_features_of_deepprofiler() -> None:
    named, other = parse_deep_names(["efficient_net_12", "loss"])
    assert parts(named) == {"feature_group": "DeepProfiler", "measurement": "efficient_net", "number": 12}
    assert other == FeatureName()
