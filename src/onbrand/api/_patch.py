"""patch: onbrand's lines in somebody else's trainer."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

from onbrand.errors import OnbrandError
from onbrand.io import whole_file
from onbrand.options._verb import verb
from onbrand.options.patch import PatchOptions


@verb(PatchOptions)
def patch(options: PatchOptions) -> str:
    """Print the patch by which somebody else's trainer trains with the brand's start.

    It is made from your own copy of the script, of whatever version: `git apply` or `patch -p1` applies it.

    Returns:
        The patch, a unified diff.

    Raises:
        OnbrandError: no such script, one without the places that are patched, or one that is patched.
    """
    from onbrand.exporting.patch import TRIED, difference, patched

    script = Path(options.script)
    try:
        content = script.read_bytes()
    except OSError as error:
        raise OnbrandError(
            "script", f"{script} cannot be read ({error.strerror}): give the trainer's script"
        ) from error
    text = patched(options.trainer, str(script), content, str(options.prior), options.start_timestep)
    tried = TRIED[options.trainer]
    if options.version and ".".join(options.version.lstrip("v").split(".")[:2]) not in tried:
        warnings.warn(
            f"{options.trainer} {options.version} was not tried, only {', '.join(tried)}: its places are there, but "
            "read the patch before you train with it",
            stacklevel=2,
        )
    lines = difference(script, content.decode(), text)
    print(lines, end="")
    if options.write:
        with whole_file(script.resolve()) as draft:
            draft.write_bytes(text.encode())
            shutil.copymode(script, draft)
    return lines
