"""Findings sets, mappings between them, and YAML files by name, for layers that may not reach labeling."""

from radtower.labeling.findings import FindingsSet as FindingsSet
from radtower.labeling.findings import is_shipped_name_of_another as is_shipped_name_of_another
from radtower.labeling.findings import load_findings as load_findings
from radtower.labeling.findings_mapping import FindingsMapping as FindingsMapping
from radtower.labeling.findings_mapping import beside as beside
from radtower.labeling.findings_mapping import load_mapping as load_mapping
from radtower.labeling.findings_mapping import map_scores as map_scores
from radtower.labeling.shipped_data import DataFile as DataFile
from radtower.labeling.shipped_data import open_data_file as open_data_file
from radtower.labeling.shipped_data import problems_in as problems_in
