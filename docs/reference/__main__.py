"""Write the reference pages: `python -m docs.reference`."""

from docs.reference import FOLDER, PAGES

for name, render in PAGES.items():
    (FOLDER / name).write_text(render())
