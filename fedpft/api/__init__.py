"""The Python API: what `import fedpft` offers, as functions of plain arguments that return plain objects."""
