"""A folder of Markdown files, searchable while it is being written: `python -m examples.notes`."""
