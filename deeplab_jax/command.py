"""What the command lines of the three packages share."""

import sys
from collections.abc import Callable
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

BAD_USE = 2


def run(command: Callable[[], int]) -> NoReturn:
    """Exits with the command's status; with 2 and a message, no traceback, where its input is bad.

    All errors that a user can cause are ValueErrors and OSErrors with the way out in their message.
    """
    try:
        status = command()
    except (ValueError, OSError) as error:
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        console.print(f"[red]error[/]: {escape(str(error))}")
        status = BAD_USE
    sys.exit(status)
