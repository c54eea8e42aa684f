"""The notebook as a page of the site: run when the site is built, so that what is shown is what comes out."""

from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
SOURCE, PAGE = "examples/first_ten_minutes.ipynb", "guides/notebook.md"
SECONDS = 300  # of a cell


def on_files(files: Files, config: MkDocsConfig) -> Files:
    notebook = nbformat.read(ROOT / SOURCE, as_version=4)
    with TemporaryDirectory() as elsewhere:
        NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": elsewhere}}).execute()
    text = "\n\n".join(_as_markdown(cell) for cell in notebook.cells)
    text += f"\n\nThe notebook itself: [{Path(SOURCE).name}]({Path(SOURCE).name}).\n"
    files.append(File.generated(config, PAGE, content=text))
    return files


def _as_markdown(cell: NotebookNode) -> str:
    if cell.cell_type == "markdown":
        return cell.source
    said = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
    shown = [_shown(output.data) for output in cell.outputs if "data" in output]
    return "\n\n".join([_fenced(cell.source, "python"), *([_fenced(said.rstrip())] if said else []), *shown])


def _shown(data: NotebookNode) -> str:
    """A picture within the page, or text."""
    picture = data.get("image/png")
    return f"![output](data:image/png;base64,{''.join(picture.split())})" if picture else _fenced(data["text/plain"])


def _fenced(text: str, language: str = "text") -> str:
    return f"```{language}\n{text}\n```"
