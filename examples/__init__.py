"""Small programs that use a mesh; docs/guide.md says how to run each."""
