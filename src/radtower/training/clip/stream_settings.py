"""Where the studies of a dual tower come from: fields of its recipe."""

from dataclasses import dataclass

from radtower.data.streams.hub_rows import DEFAULT_BUFFER, HubSource
from radtower.training.towers.tower_settings import TowerSettings

COLUMNS = ("image_column", "report_column")
STREAM_FIELDS = (
    "dataset_config",
    "dataset_split",
    "dataset_revision",
    *COLUMNS,
    "study_column",
    "shuffle_buffer",
    "processor",
)


@dataclass(frozen=True, kw_only=True)
class StudySettings(TowerSettings):
    """Studies of a manifest, or streamed from a data set of the Hub, of which nothing is stored.

    Args:
        manifest: Table of studies with their reports. None streams ``dataset``.
        dataset: Id of a data set of the Hub, or a folder that ``datasets.load_dataset`` takes; ``max_steps``
            then says how long to train. None reads ``manifest``.
        dataset_config: Of a data set that has several. None takes its only or default one.
        dataset_split: Split to train on. None takes ``train``.
        dataset_revision: Commit, branch or tag. None takes the newest; a resumed run needs the same.
        image_column: Column of the data set with images, of feature ``Nifti`` for a 3D tower or ``Image`` for
            a 2D one.
        report_column: Column with reports.
        study_column: Column that is equal in reconstructions of one study. None where every row is a study of
            its own.
        shuffle_buffer: Rows that each reader holds to draw the next one from, with the bytes of their images
            where the files of the data set have these inside: for scans of 100 MB, take few. None takes 256.
        processor: Folder with the settings of the 3D image processor, for a data set. None takes those beside
            the image tower.
    """

    manifest: str | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    dataset_split: str | None = None
    dataset_revision: str | None = None
    image_column: str | None = None
    report_column: str | None = None
    study_column: str | None = None
    shuffle_buffer: int | None = None
    processor: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.manifest is None) == (self.dataset is None):
            raise ValueError(
                f"either manifest or dataset must be given, got {self.manifest!r} and {self.dataset!r}. "
                "Name a table of studies, or a data set that is streamed."
            )
        if self.dataset is None:
            given = [name for name in STREAM_FIELDS if getattr(self, name) is not None]
            if given:
                raise ValueError(
                    f"{', '.join(given)} must come with a dataset, got none. Leave it out for a manifest."
                )
            return
        self.require_of_manifest(cache=self.cache)
        missing = [name for name in COLUMNS if getattr(self, name) is None]
        if missing:
            raise ValueError(
                f"{' and '.join(missing)} must be given with a dataset, got {self.dataset!r} without. Name "
                "the columns."
            )
        if self.shuffle_buffer is not None and self.shuffle_buffer < 1:
            raise ValueError(
                f"shuffle_buffer must be at least 1, got {self.shuffle_buffer}. 1 keeps the order of a file."
            )

    def require_of_manifest(self, **fields: object) -> None:
        """Refuse fields that need to know all studies beforehand, where they are streamed.

        Raises:
            ValueError: If one of them is set.
        """
        given = {name: value for name, value in fields.items() if value}
        if self.dataset is not None and given:
            raise ValueError(
                f"{', '.join(given)} must be left out where a dataset is streamed, got {given}: nothing of a "
                "stream is stored or known beforehand. Leave it out, or write a manifest."
            )

    @property
    def source(self) -> HubSource:
        """What the fields of a data set say."""
        assert self.dataset is not None
        assert self.image_column is not None
        assert self.report_column is not None  # the run is checked
        return HubSource(
            dataset=self.dataset,
            config=self.dataset_config,
            split=self.dataset_split or "train",
            revision=self.dataset_revision,
            image_column=self.image_column,
            report_column=self.report_column,
            study_column=self.study_column,
            shuffle_buffer=self.shuffle_buffer or DEFAULT_BUFFER,
        )
