"""A Hub on 127.0.0.1 for tests: what clients need to push and to load, with faults, and nothing else.

Standard library only. Run what talks to it in a subprocess with ``LocalHub.environment``: huggingface_hub
reads the address when it is imported. No xet; parquet and safetensors go through LFS, the rest is regular.
Every request is kept, with its body, so that a test can say what left the machine.
"""

from .faults import Fault as Fault
from .server import run_local_hub as run_local_hub
from .state import TOKEN as TOKEN
from .state import USER as USER
from .state import Commit as Commit
from .state import LocalHub as LocalHub
from .state import Repo as Repo
from .state import Request as Request
