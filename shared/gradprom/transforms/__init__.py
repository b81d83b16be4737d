"""Transforms: loading, geometry, intensity, degradation, recognition and saving."""

from gradprom.transforms.geometry import AxialLastd
from gradprom.transforms.intensity import NormaliseIntensityd
from gradprom.transforms.load import LoadCased
from gradprom.transforms.missing import MarkMissingd
from gradprom.transforms.noise import FixedNoised, add_noise
from gradprom.transforms.pair import AsEnhancementPair
from gradprom.transforms.recognise import Recognised, recognise
from gradprom.transforms.save import SaveImageEnhancedd
from gradprom.transforms.texture import RandTextured

__all__ = [
    "AsEnhancementPair",
    "AxialLastd",
    "FixedNoised",
    "LoadCased",
    "MarkMissingd",
    "NormaliseIntensityd",
    "RandTextured",
    "Recognised",
    "SaveImageEnhancedd",
    "add_noise",
    "recognise",
]
