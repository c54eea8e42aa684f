"""What the site's build adds to MkDocs: pages that lie beside docs/, links to other files, anchors as on GitHub.

A link in a document is a path in the repository, so that it works where the repository is read. Documents that
lie outside of docs/ and that the navigation names become pages; any other file that a page links to lies in `files/`.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# Documents outside of docs/ and the pages that they become. MkDocs would take a README of the top for the first page.
BESIDE = {
    "README.md": "readme.md",
    **{name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "findings/README.md")},
    **{f"infra/{name}README.md": f"infra/{name}README.md" for name in ("", "prefect/", "ray/")},
    **{
        f"examples/{name}README.md": f"examples/{name}README.md"
        for name in ("", "cluster/", "onnx_plain/", "own_images/", "web/")
    },
}
NOTEBOOK = {"examples/first_ten_minutes.ipynb": "guides/notebook.md"}  # which notebook.py makes a page of
LINK = re.compile(r"(\[[^\]]*\]\()(?![\w+.-]+:|#)([^)#\s]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"(^```.*?^```)", re.M | re.S)


# What the theme would load from elsewhere, and where it lies here.
LOADED = re.compile(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="?((?:https?:)?//[^">\s]+)')
ELSEWHERE, HERE = "https://unpkg.com/iframe-worker/shim", "assets/iframe-worker.js"


def as_github_does(title: str, separator: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", separator)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.mdx_configs["toc"]["slugify"] = as_github_does
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, uri in BESIDE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as the site has them, in what is not code."""
    sources = {uri: name for name, uri in (BESIDE | NOTEBOOK).items()}
    here = posixpath.dirname(sources.get(page.file.src_uri, f"docs/{page.file.src_uri}"))
    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(lambda link: _in_site(link, here, page, config, files), part) for part in parts[::2]]
    return "".join(parts)


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Raises PluginError for a page that would load something from elsewhere."""
    output = output.replace(ELSEWHERE, posixpath.relpath(HERE, posixpath.dirname(page.url) or "."))
    if loaded := LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} loads {loaded[1]}; put it into docs/assets")
    return output


def on_post_template(output: str, *, template_name: str, config: MkDocsConfig) -> str:
    return output.replace(ELSEWHERE, f"/{HERE}")  # 404.html, which stands for any address


def _in_site(link: re.Match[str], here: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    before, target, anchor, after = link.groups(default="")
    path = posixpath.normpath(posixpath.join(here, target))
    pages = BESIDE | NOTEBOOK
    if path.startswith("docs/"):
        uri = path.removeprefix("docs/")
    elif path in pages and pages[path] != page.file.src_uri:
        uri = pages[path]
    elif path.endswith(".md") and path not in pages:
        raise PluginError(f"{page.file.src_uri} links to {path}, which is no page; name it in {Path(__file__).name}")
    else:
        uri = f"files/{path}"
        if (ROOT / path).is_file() and not files.get_file_from_path(uri):
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return f"{before}{posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or '.')}{anchor}{after}"
