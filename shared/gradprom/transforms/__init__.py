from gradprom.transforms.recognise import Recognised, recognise
from gradprom.transforms.noise import FixedNoised, add_noise
from gradprom.transforms.pair import AsEnhancementPair
from gradprom.transforms.texture import RandTextured
from gradprom.transforms.intensity import NormaliseIntensityd
from gradprom.transforms.load import LoadCased
from gradprom.transforms.geometry import AxialLastd
from gradprom.transforms.save import SaveImageEnhancedd
