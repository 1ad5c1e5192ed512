"""The backends of ``radtower label``: flags, checked before anything is loaded, and how each is built."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from radtower.cli.extras import register_models, require

if TYPE_CHECKING:
    from radtower.labeling.findings import FindingsSet
    from radtower.labeling.labeler import LabelerBackend
    from radtower.labeling.labeling_summary import LabelingPlan


class Backend(StrEnum):
    """Who labels."""

    ENCODER = "encoder"
    ENDPOINT = "endpoint"


@dataclass(frozen=True)
class Labeler:
    """A backend that is ready.

    Args:
        backend: It.
        findings: What it answers for, which may be less than was asked for.
        on_plan: Called when it is known what is to be done, before the first report.
    """

    backend: "LabelerBackend"
    findings: "FindingsSet"
    on_plan: "Callable[[LabelingPlan], None]" = lambda plan: None


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """Flags of ``--backend encoder``.

    Args:
        model: Folder of the trained labeler.
    """

    model: str

    def build(self, findings: "FindingsSet") -> Labeler:
        """Load the model."""
        register_models()
        from radtower.labeling.encoder import EncoderLabeler

        encoder = EncoderLabeler(self.model)
        return Labeler(encoder, findings.subset(encoder.keys))


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """Flags of ``--backend endpoint``.

    Args:
        model: Name, as the server knows it.
        base_url: Address of the server.
        api_key_env: Environment variable with the key.

    Raises:
        ValueError: If there is no address.
    """

    model: str
    base_url: str | None
    api_key_env: str | None

    def __post_init__(self) -> None:
        if self.base_url is None:
            raise ValueError("--base-url must be given for an endpoint, got none. Add its address.")

    def build(self, findings: "FindingsSet") -> Labeler:
        """Connect to the server."""
        require("label")
        from radtower.labeling.endpoint import EndpointLabeler

        endpoint = EndpointLabeler(str(self.base_url), self.model, findings, api_key_env=self.api_key_env)

        def on_plan(plan: "LabelingPlan") -> None:
            endpoint.spent_usd = plan.spent_usd

        return Labeler(endpoint, findings, on_plan)


LabelerOptions = EncoderOptions | EndpointOptions
