"""MkDocs' hook: pages that stand outside docs/, README as the first, and links that hold both in the repository and on the site.

A link of a document leads to a file of the repository. On the site it leads to that file's page; to a file that has no page,
such as a test, it becomes the file's name. One that leads nowhere is left to MkDocs, which refuses it under --strict.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "deploy/README.md": "deployment.md",
}
"""Documents outside docs/ by the path of their page."""

_LINK = re.compile(
    r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages whose documents stand elsewhere."""
    for document, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / document).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """The text with its links as they are on the site."""
    here = next((document for document, to in OUTSIDE.items() if to == page.file.src_uri), f"docs/{page.file.src_uri}")
    return _LINK.sub(lambda link: _on_site(link, posixpath.dirname(here), page.file.src_uri, files), markdown)


def _on_site(link: re.Match[str], folder: str, page: str, files: Files) -> str:
    meant = posixpath.normpath(posixpath.join(folder, link["path"]))
    to = OUTSIDE.get(meant, meant.removeprefix("docs/"))
    if files.get_file_from_path(to) is not None and (meant in OUTSIDE or meant.startswith("docs/")):
        return f"{link['image']}[{link['text']}]({posixpath.relpath(to, posixpath.dirname(page) or '.')}{link['anchor'] or ''})"
    if (ROOT / meant).exists() and not link["image"]:
        return link["text"] if link["text"].startswith("`") else f"`{link['text']}`"
    return link[0]
