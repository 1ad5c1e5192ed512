"""Whether going on is pointless: a server that is gone, refuses the key, or does not know the model."""

from dataclasses import dataclass, field

from radtower.labeling.report_labels import StopLabeling

# What a server says to all requests alike, and what to do about it.
_REFUSALS = {
    401: ("unauthorized", "Check the key in the variable of --api-key-env."),
    402: ("payment", "Check the credit of the account."),
    403: ("unauthorized", "Check what the key may do."),
    # Not followed: the key would go wherever it leads.
    **dict.fromkeys(range(300, 400), ("redirected", "Check --base-url: give the address that it leads to.")),
    404: ("not_found", "Check --base-url, which ends in /v1 for most servers, and --model."),
}
_TRIES_TO_CONNECT = 3
_OUT_OF_QUOTA = "insufficient_quota"  # sent with 429 by OpenAI; no wait brings it back


@dataclass
class ServerHealth:
    """What the requests of a run heard from the server; they share one.

    Args:
        concurrency: Requests in flight at most. Twice as many bad ones in a row are no accident.
    """

    concurrency: int
    has_tried: bool = field(default=False, init=False)
    _has_answered: bool = field(default=False, init=False)
    _has_succeeded: bool = field(default=False, init=False)
    _silent_in_row: int = field(default=0, init=False)
    _refused_in_row: int = field(default=0, init=False)
    _given_up_in_row: int = field(default=0, init=False)

    def record_success(self) -> None:
        """A request was answered as it should be."""
        self.has_tried = self._has_answered = self._has_succeeded = True
        self._silent_in_row = self._refused_in_row = self._given_up_in_row = 0

    def record_silence(self, code: str, is_last_try: bool, is_sent: bool = True) -> None:
        """A request got no answer.

        Args:
            code: What happened instead, for the message.
            is_sent: Whether there was a connection to send it over.
            is_last_try: Whether its report gives up.

        Raises:
            StopLabeling: If it was the last try of a report and no report hears anything any more.
        """
        self.has_tried = True
        self._silent_in_row += 1
        # No connection from the start: a wrong address, or a server that does not run. One that restarts gets
        # the whole time of the retries.
        is_nowhere = not (self._has_answered or is_sent) and self._silent_in_row >= _TRIES_TO_CONNECT
        is_gone = not self._has_answered or self._silent_in_row >= 2 * self.concurrency
        if is_nowhere or (is_last_try and is_gone):
            raise StopLabeling(
                "unreachable",
                f"the server did not answer {self._silent_in_row} requests in a row ({code}). Check that it "
                "runs, and --timeout; run the same command again to go on.",
            )

    def record_status(self, status: int, code: str = "", is_last_try: bool = False) -> None:
        """A request was answered with an error, or (status 200) with something that is no completion.

        Args:
            status: HTTP status.
            code: What the server calls the error; for the message, an identifier only.
            is_last_try: Whether its report gives up.

        Raises:
            StopLabeling: If others will hear the same.
        """
        self.has_tried = self._has_answered = True
        self._silent_in_row = 0
        if code == _OUT_OF_QUOTA:
            raise StopLabeling("quota", "the account has no quota left. Raise it, or wait until it is back.")
        self._given_up_in_row += is_last_try
        if is_last_try and status == 200 and not self._has_succeeded:
            raise StopLabeling(
                "not_a_completion",
                "the server answers, but not with chat completions. Check --base-url; most end in /v1.",
            )
        if self._given_up_in_row >= self._no_accident:
            raise StopLabeling(
                "failing",
                f"the server answered every try of {self._given_up_in_row} reports in a row with an error, "
                f"last HTTP {status}. Look at its log; run the same command again to go on.",
            )
        if not 300 <= status < 500 or status in (408, 409, 425, 429):
            return
        self._refused_in_row += 1
        # The first refusal of these ends the run, if nothing worked before; any other may be one report's.
        reason, fix = _REFUSALS.get(status, ("refused", "Check --model and the fields of the request."))
        known_at_once = status in _REFUSALS and not self._has_succeeded
        if known_at_once or self._refused_in_row >= self._no_accident:
            named = f" ({code})" if code else ""
            raise StopLabeling(reason, f"the server answered HTTP {status}{named}. {fix}")

    @property
    def _no_accident(self) -> int:
        return 2 * max(self.concurrency, 4)
