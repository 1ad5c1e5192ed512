"""The door of this folder to ``radtower.data.publish``: it lies lower, because evaluation pushes, too."""

from radtower.data.publish import Published as Published
from radtower.data.publish import push_folder as push_folder
from radtower.data.publish import require_token as require_token
