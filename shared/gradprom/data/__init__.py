from gradprom.data.datalist import load_datalist
from gradprom.data.cases import CaseDataset, list_images, report_failures
