"""Data sets, data lists and the cases of an inference run."""

from gradprom.data.cases import CaseDataset, list_images, report_failures
from gradprom.data.datalist import load_datalist

__all__ = ["CaseDataset", "list_images", "load_datalist", "report_failures"]
