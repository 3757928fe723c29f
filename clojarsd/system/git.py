"""git for a rollout: as the service user, asking nobody, running nobody's hooks, trusting one repository alone."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from clojarsd.core.errors import CommandFailed
from clojarsd.core.hook import last_words
from clojarsd.core.tags import local_path, shown_repository
from clojarsd.system.build_command import Builder, CommandOutcome

MOST_ANSWER: Final = 16 * 1024**2
"""Bytes of an answer: some 200,000 tags."""
_SUFFIXES: Final = ("/.git", "", ".git/.git", ".git")
"""What git tries at the end of a repository's path."""
_REASONS: Final = ("fatal:", "error:")
_QUIET: Final = (
    "core.hooksPath=/dev/null",
    "advice.detachedHead=false",
    "gc.autoDetach=false",  # what goes on in the background is ended with the command
    "maintenance.autoDetach=false",
)


@dataclass(frozen=True, slots=True)
class Git:
    """Runs git on one repository and its copies.

    Attributes:
        repository: a path or an address.
        step: of the rollout, for the log.
        timeout: seconds for each command.
        on_output: see `Builder.run`.
    """

    builder: Builder
    repository: str
    step: str
    timeout: float
    on_output: Callable[[Sequence[str]], None] | None = field(default=None, compare=False)

    async def ask(self, directory: Path, *arguments: str) -> CommandOutcome:
        """Run git in the directory; its output is the outcome's, and told to nobody."""
        return await self._run(directory, arguments, None)

    async def do(self, directory: Path, *arguments: str) -> str:
        """Run git in the directory, and give its output.

        Raises:
            CommandFailed: it did not succeed.
        """
        outcome = await self._run(directory, arguments, self.on_output)
        if outcome.failure is not None:
            raise failed(outcome)
        return outcome.output

    async def _run(
        self, directory: Path, arguments: Sequence[str], on_output: Callable[[Sequence[str]], None] | None
    ) -> CommandOutcome:
        settings = [word for setting in (*_QUIET, *self._trust()) for word in ("-c", setting)]
        hide = {self.repository: shown_repository(self.repository)}
        return await self.builder.run(
            self.step,
            ("git", *settings, *arguments),
            directory,
            timeout=self.timeout,
            environment=self._environment(),
            on_output=on_output,
            keep=MOST_ANSWER,
            shown=("git", *(hide.get(word, word) for word in arguments)),
        )

    def serving(self) -> tuple[str, ...]:
        """The options with which a command reads from the repository, also from one that belongs to somebody else.

        git refuses such a one on this machine unless it is trusted by name, and hands no trust on to the process that
        reads it, so that process is told.
        """
        path = local_path(self.repository)
        if path is None:
            return ()
        trusted = " ".join(f"-c safe.directory={shlex.quote(path.rstrip('/') + suffix)}" for suffix in _SUFFIXES)
        return ("--upload-pack", f"git {trusted} upload-pack")

    def _trust(self) -> tuple[str, ...]:
        """Settings for submodules, which may be on this machine only when the repository is."""
        return ("protocol.file.allow=always",) if local_path(self.repository) is not None else ()

    def _environment(self) -> Mapping[str, str]:
        known = {**self.builder.world.environment, **self.builder.environment}
        ssh = {} if "GIT_SSH_COMMAND" in known else {"GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o ConnectTimeout=20"}
        return {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "", "SSH_ASKPASS": "", "GIT_PAGER": "cat", **ssh}


def failed(outcome: CommandOutcome, what: str | None = None) -> CommandFailed:
    """The failure of git as an error, with what git itself takes for the reason.

    Args:
        what: how the sentence begins, such as `cannot check out v1`.
    """
    reasons = [line for line in outcome.last_lines if line.startswith(_REASONS)]
    said = last_words("\n".join(reasons or outcome.last_lines))
    text = f"{outcome.failure}: {said}" if said else str(outcome.failure)
    return CommandFailed(f"{what}: {text}" if what is not None else text, outcome.last_lines)
