from gradprom.inferers.halo import HaloInferer
