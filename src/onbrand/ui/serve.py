"""ui: the app in a browser."""

from __future__ import annotations

import warnings
from pathlib import Path

from onbrand.errors import OnbrandError
from onbrand.options._verb import verb
from onbrand.options.ui import UiOptions

PATIENCE = 3
"""Seconds that open pages have to be answered when the app ends."""
LOCAL = ("127.0.0.1", "localhost", "::1")


@verb(UiOptions)
def ui(options: UiOptions) -> None:
    """Work in a browser: choose photos and a model, fit, diagnose, make images, check, train, report.

    Serves one page, to this machine alone, until Ctrl-C. It reads and writes in the folder that it was opened with and
    nowhere else; results go into its sub-folder onbrand/, a folder a brand, where every other verb finds them. Jobs run
    one at a time, each a command that can also be typed. A page that is closed or loaded anew loses nothing.

    Raises:
        OnbrandError: no such folder, a port that is taken, or gradio is not installed.
    """
    import os
    import socket
    import tempfile

    for folder in (options.folder, options.models):
        if folder is not None and not Path(folder).is_dir():
            raise OnbrandError("folder", f"the app is opened with a folder that is there; got {folder}: make it first")
    try:
        with socket.create_server((options.host, options.port)):
            pass
    except OSError as error:
        raise OnbrandError(
            "option",
            f"{options.host} port {options.port} cannot be listened on ({error.strerror}): give another --port",
        ) from error
    warnings.simplefilter("ignore", ResourceWarning)  # gradio's own, of its event loops
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory(prefix="onbrand-") as cache:
        os.environ["GRADIO_TEMP_DIR"] = cache
        try:
            import gradio
            import uvicorn
        except ImportError as error:
            raise OnbrandError("install", "the app needs gradio: pip install 'onbrand[ui]'") from error
        from fastapi import FastAPI
        from fastapi.responses import FileResponse, Response

        from onbrand.ui import app
        from onbrand.ui.jobs import Jobs
        from onbrand.ui.studio import REPORT, Studio

        studio = Studio(Path(options.folder).resolve(), Path(options.models).resolve() if options.models else None)
        jobs, server = Jobs(studio.root), FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

        def report(name: str) -> Response:
            brand = studio.known(name)
            page = brand.path / REPORT if brand else None
            return FileResponse(page, media_type="text/html") if page and page.is_file() else Response(status_code=404)

        server.add_api_route("/report/{name}", report)
        page = app.build(studio, jobs)
        gradio.mount_gradio_app(
            server, page, "/", server_name=options.host, allowed_paths=[str(studio.root / "onbrand")], theme=app.THEME,
            css=app.CSS, show_error=True, enable_monitoring=False, footer_links=[],
        )  # fmt: skip
        if options.host not in LOCAL:
            warnings.warn(
                f"{options.host} lets others in: whoever reaches it may read and write {studio.root}", stacklevel=2
            )
        print(f"open http://{options.host}:{options.port} in a browser; Ctrl-C ends it")
        try:
            uvicorn.run(
                server, host=options.host, port=options.port, log_level="warning", timeout_graceful_shutdown=PATIENCE
            )
        finally:
            jobs.end()
