"""The door of this folder to ``radtower.data.privacy``: it lies lower, because evaluation pushes, too."""

from radtower.data.privacy import PrivacyReport as PrivacyReport
from radtower.data.privacy import count_identifiers as count_identifiers
from radtower.data.privacy import refuse_identifiers as refuse_identifiers
from radtower.data.privacy import refuse_identifying_ids as refuse_identifying_ids
from radtower.data.privacy import search_ids as search_ids
from radtower.data.privacy import search_texts as search_texts
