"""Progress of the demo on stderr: a bar per stage on a terminal, a line per stage in a log."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn


class Steps:
    """A column of progress bars; use as a context manager."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self.is_log = not console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description:<48}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=self.is_log,  # in a log, the bars would come all at once, at the end
        )

    def __enter__(self) -> "Steps":
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    @contextmanager
    def step(self, label: str, total: int | None = None) -> Iterator[Callable[..., None]]:
        """Draw a bar; yields a function of the items done and, where it was unknown, the total."""
        task = self.progress.add_task(label, total=total)

        def on_progress(done: int, new_total: int | None = None) -> None:
            self.progress.update(task, completed=done, total=new_total or total)

        yield on_progress
        final = self.progress.tasks[task].total or 1
        self.progress.update(task, completed=final, total=final)
        self.progress.stop_task(task)
        if self.is_log:
            self.progress.console.print(
                f"{label}: {self.progress.tasks[task].elapsed:.0f} s", highlight=False
            )
