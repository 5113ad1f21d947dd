"""Lines from a terminal, by prompt_toolkit: editing, history, a pasted text as one message, Alt-Enter for a new line.

Keys that are typed while an answer is printed wait for the next line: `Terminal.answering`.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import termios
except ImportError:  # Windows: typed keys are echoed into the answer there
    termios = None  # type: ignore[assignment]

PASTE_ON, PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"  # bracketed paste: the terminal marks where a paste begins and ends


def history_path() -> Path:
    """`$XDG_STATE_HOME/eagle3-hsd/chat_history`, by default below ~/.local/state."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "eagle3-hsd" / "chat_history"


class Terminal:
    """The terminal that stdin and stdout are."""

    def __init__(self, prompt: str = "> "):
        self.prompt = prompt
        self._session = _session()

    def read(self) -> str:
        """The next message. Raises EOFError at Ctrl-D and KeyboardInterrupt at Ctrl-C."""
        return str(self._session.prompt(self.prompt) if self._session else input(self.prompt))

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Nothing typed is shown, and what is typed waits."""
        if termios is None or self._session is None:
            yield
            return
        before = termios.tcgetattr(sys.stdin)
        quiet = [*before]
        quiet[3] = before[3] & ~(termios.ECHO | termios.ICANON)  # Ctrl-C still interrupts
        termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
        sys.stdout.write(PASTE_ON)
        try:
            yield
        finally:
            sys.stdout.write(PASTE_OFF)
            sys.stdout.flush()
            termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def _session() -> Any:
    """None where prompt_toolkit is not installed: lines then come from `input`."""
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings
    except ImportError:
        return None
    keys = KeyBindings()

    @keys.add("enter")
    @keys.add("c-j")  # what Enter was while an answer was printed
    def accept(event: Any) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def new_line(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    path = _writable(history_path())
    history = FileHistory(str(path)) if path else InMemoryHistory()
    return PromptSession(history=history, key_bindings=keys, multiline=True, prompt_continuation="  ")


def _writable(path: Path) -> Path | None:
    """The file, made where it is not there; None where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            return path
    except OSError:
        return None
